"""The rules of our nft table through libnftables (package python3-nftables of the distribution).

Only what reads or writes rules comes here: `packed.nftables` finds and deletes the table.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..core.plan.nft_table import TABLE, Json, Listing
from ..core.plan.objects import NftTable
from ..core.plan.quic_rules import is_quic
from ..errors import KernelRefused, Refused
from .packed.nftables import table_flags

if TYPE_CHECKING:
    from nftables import Nftables

_NAME: Json = {"family": "inet", "name": TABLE}


def libnftables() -> Nftables:
    """The library, ready to speak JSON; Refused with the package's name where it is missing."""
    try:
        import nftables

        nft = nftables.Nftables()
    except (ImportError, OSError) as error:
        raise Refused(
            f"libnftables cannot be used by this Python ({error}): "
            "install the package python3-nftables"
        ) from error
    nft.set_json_output(True)
    # Or it depends on the node's /etc/protocols what our rules look like.
    nft.set_numeric_proto_output(True)
    # Elements of maps are the agent's, and many.
    nft.set_terse_output(True)
    return nft


def _run(commands: Listing, what: str) -> Listing:
    code, output, error = libnftables().json_cmd({"nftables": commands})
    _check(code, error, what)
    return output["nftables"] if isinstance(output, dict) else []


def _check(code: int, error: str, what: str) -> None:
    if code:
        # libnftables tells the errno only in words.
        number = errno.EPERM if "not permitted" in error else errno.EINVAL
        raise KernelRefused(number, f"{what} ({' '.join(error.split())[:200]})")


def version() -> tuple[int, ...]:
    """The library's version, such as (1, 0, 6)."""
    what = "asking libnftables for its version"
    for item in _run([{"list": {"flowtables": {}}}], what):  # the shortest list
        about = item.get("metainfo")
        if isinstance(about, dict):
            return tuple(map(int, re.findall(r"\d+", str(about.get("version")))))
    raise KernelRefused(errno.EPROTO, what)


def read_table() -> NftTable | None:
    """Everything in our table as libnftables lists it; None if there is no table.

    The flags are asked of the kernel: libnftables 1.0.6 reads freed memory and may abort when it
    lists a table with flags as JSON, ours (dormant) or somebody else's (firewalld sets ``owner``).
    """
    flags = table_flags()
    if flags is None:
        return None
    if flags:
        return NftTable([{"table": {"family": "inet", "name": TABLE, "flags": flags}}])
    with _without_warnings():
        return NftTable(_run([{"list": {"table": _NAME}}], f"reading nft table inet {TABLE}"))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """libnftables 1.0.6 writes to standard error, at each look, that it lists a map's statement as
    text.  What fails is told in another way (`_run`)."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def replace_table(table: NftTable) -> None:
    """Make the table anew, in one transaction: packets see the old or the new one.

    What follows connections that move is added by another: without it they only are not followed.
    """
    commands: Listing = [{"add": {"table": _NAME}}, {"delete": {"table": _NAME}}]
    commands += [{"add": dict(item)} for item in table.objects if not is_quic(item)]
    what = f"writing nft table inet {TABLE}"
    _run(commands, what)
    if table.text:
        code, _output, error = libnftables().cmd(table.text)
        _check(code, error, what)
