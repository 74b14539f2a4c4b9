"""Whose flow is it?  The rules of trust, as one function of what is known.

Proxy logs carry text that strangers chose: a forged line is well formed and may even come
before the true one.  So neither "the first line wins" nor "the flow exists" is enough:

- an untainted claim gives an unclaimed flow to its user and beats every tainted claim;
- a tainted claim counts only if the same user had an untainted one from the same address within
  the last hour; otherwise the flow is restricted until an untainted claim comes; so it is when
  tainted claims disagree, because the line that a stranger's flow cannot avoid is then among them;
- a flow has one user for life: two untainted claims of different users restrict it for good;
- restricted flows share one class per source address, at the lowest limit that was claimed and
  never above the default.

The kernel's own mark is the memory of what was decided: it lives and dies with the flow.
"""

from __future__ import annotations

from enum import Enum

from ..htb import MINOR_MASK, TAG_MASK

#: How long an untainted claim vouches for tainted ones of the same user and address.
VOUCH_S = 3_600


class Verdict(Enum):
    """What to do with a flow."""

    GIVE = "give it to the claiming user"
    KEEP = "leave its mark as it is"
    RESTRICT = "into the restricted class of its address, until an untainted claim comes"
    CONFLICT = "into the restricted class of its address, for its life"
    FOREIGN = "the mark is somebody else's: never touch it"


def judge(
    mark: int, tag: int, claimed: int | None, tainted: bool, vouched: bool, soft: bool
) -> Verdict:
    """The verdict on one claim for one live flow.

    ``mark`` is the flow's present mark, ``tag`` our upper half, ``claimed`` the minor of the
    claiming user (0: the user has none yet; None: the line names nobody), ``vouched`` whether an
    untainted claim of the same user and address is remembered, ``soft`` whether the present mark
    comes from tainted claims only.
    """
    if mark and mark & TAG_MASK != tag:
        return Verdict.FOREIGN
    held = mark & MINOR_MASK
    if claimed is None:
        if held:
            return Verdict.KEEP
        return Verdict.RESTRICT if tainted else Verdict.CONFLICT
    if held and held == claimed:
        return Verdict.GIVE if soft and not tainted else Verdict.KEEP
    if not held:
        return Verdict.GIVE if not tainted or vouched else Verdict.RESTRICT
    if soft:
        return Verdict.RESTRICT if tainted else Verdict.GIVE
    return Verdict.KEEP if tainted else Verdict.CONFLICT


def address_key(address: bytes) -> bytes:
    """What counts as one source: an IPv4 address, or an IPv6 /64 (one customer's usual net)."""
    return address if len(address) == 4 else address[:8]
