"""``vff-qos policy diff`` and ``apply``: what a policy would change, and having it in force."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

from ..config import Paths, load_policy, parse_files, policy_stamp, read_file, read_policy
from ..core import events
from ..core.htb import HtbClass
from ..core.owners import ACTIVE, Owner
from ..core.units import format_rate, format_size
from ..errors import QosError, Refused
from ..kept import keep_policy
from ..render import display_name, limit, tell_limits
from ..replacing import replacing
from ..runfile import read_report
from ..shaping import Both, Classes
from ..state import State
from .node import Node

_AGENT_S = 10.0
#: A change of more than half of the users, and of at least this many, deserves a second look.
_MANY = 10


class Difference(NamedTuple):
    """What one user has and would have, on (upload, download); ``shaped``: has a class."""

    email: str
    shaped: bool
    old: Both
    new: Both
    leaves: tuple[str, str]


def diff(node: Node, file: str | None, verbose: bool = False) -> list[str]:
    """What the policy in ``file`` would change, or the one that is installed; changes nothing.

    Guarantees and quanta, which mostly follow from the rates of all, are shown if ``verbose``.
    Users with a class are compared with the kernel, others with the installed policy.
    """
    settings = node.settings
    new = load_policy(node.paths, file).named(node.names)
    old = node.policy_in_force if file else new
    before, after = (node.classes(settings, policy) for policy in (old, new))
    with node.lock:
        owners = _load([before, after], node.state)
        found = list(_differences(before, after, owners))
    if not found:
        return []
    ceil_bps = settings.node_ceil_bps
    told = [(d.email, describe(d, ceil_bps, verbose)) for d in sorted(found)]
    lines = [f"{email}: {text}" for email, text in told if text]
    if len(lines) < len(told):
        lines.append(f"{len(told) - len(lines)} users: guarantee or quantum alone (-v shows them)")
    shaped = sum(d.shaped for d in found)
    lines.append(
        f"{shaped} of {len(owners)} users with a class would change, "
        f"and {len(found) - shaped} without one"
    )
    return lines


def _load(several: list[Classes], state: State) -> list[Owner]:
    """Load the state; returns the owners that have classes now."""
    everybody, overrides = state.owners(), state.overrides()
    owners: list[Owner] = []
    for classes in several:
        up, down = classes.kernel()
        classes.set_overrides(overrides)
        classes.load(everybody, set(up) & set(down))
        owners = [o for o in everybody if o.state == ACTIVE and classes.has(o.minor)]
    return owners


def _differences(before: Classes, after: Classes, owners: list[Owner]) -> Iterable[Difference]:
    up, down = after.kernel()
    for owner in after.outdated(owners):
        old = up[owner.minor].params, down[owner.minor].params
        leaves = after.kernel_leaf(owner), after.leaf(owner)
        yield Difference(display_name(owner.key), True, old, after.params(owner), leaves)
    shaped = {owner.key for owner in owners}
    for email in {*before.policy.users, *after.policy.users} - shaped:
        was, will = before.limits_of(email), after.limits_of(email)
        if was != will:
            both = before.params_of(was), after.params_of(will)
            yield Difference(email, False, *both, (was.leaf, will.leaf))


def describe(found: Difference, ceil_bps: int, verbose: bool = True) -> str:
    """What differs, in one phrase; ``ceil_bps`` is the node's ceiling.

    Empty if only guarantee or quantum do, and it is not ``verbose``.
    """
    parts = []
    for direction, was, will in zip(("upload", "download"), found.old, found.new, strict=True):
        parts += _describe(direction, was, will, ceil_bps, verbose)
    if found.leaves[0] != found.leaves[1]:
        parts.append("leaf {} -> {}".format(*(leaf or "default" for leaf in found.leaves)))
    return ", ".join(parts)


def _describe(
    direction: str, was: HtbClass, will: HtbClass, ceil_bps: int, verbose: bool
) -> list[str]:
    # The kernel counts whole bytes a second, and bursts by the time that they take.
    wanted_bps, whole_bps = will.ceil_bps // 8 * 8, ceil_bps // 8 * 8
    shown = [(direction, limit(was.ceil_bps, whole_bps), limit(wanted_bps, whole_bps))]
    if verbose:
        rates = format_rate(was.rate_bps), format_rate(will.rate_bps // 8 * 8)
        shown.append((f"{direction} guaranteed", *rates))
        shown.append((f"{direction} quantum", str(was.quantum_bytes), str(will.quantum_bytes)))
    if (
        was.ceil_bps == wanted_bps
        and abs(was.cburst_bytes - will.cburst_bytes) * 100 > will.cburst_bytes
    ):
        sizes = format_size(was.cburst_bytes), format_size(will.cburst_bytes)
        shown.append((f"{direction} burst", *sizes))
    return [f"{what} {a} -> {b}" for what, a, b in shown if a != b]


def apply(node: Node, file: str | None, consent: bool) -> str:
    """Have the policy in force, after installing ``file`` as it; returns what was done.

    The classes are changed here, whether the agent runs or not; if it runs, this waits until it
    uses the same policy.  Without ``consent`` a change of many users is asked about at a terminal,
    and refused elsewhere.  Raises ConfigError or Refused (nothing was changed), KernelRefused,
    QosError.
    """
    paths, state, lock = node.paths, node.state, node.lock
    text = None if file is None else read_file(file)
    files = read_policy(paths, text, file)
    names = node.names
    classes = node.classes(node.settings, parse_files(files).named(names))
    with lock:
        owners = _load([classes], state)
        changed = classes.outdated(owners)
    # Not under the lock: a person may take their time.
    if not consent and len(changed) >= _MANY and 2 * len(changed) > len(owners):
        _ask(f"this changes the limits of {len(changed)} of {len(owners)} users with a class")
    with lock:
        owners = _load([classes], state)
        if text is not None:
            install(text, paths.policy)
            files = [files[0]._replace(path=paths.policy), *files[1:]]
        changed = classes.outdated(owners)
        for error in classes.ensure(changed):
            raise error
        keep_policy(state, files, names)
    waited = _wait_for_agent(paths)
    # By now the agent has tried new patterns on those whose emails it has seen.
    names.globs.update(state.globs())
    with lock:
        if left := classes.outdated(_load([classes], state)):
            raise QosError(f"{len(left)} classes still differ from the policy")
    result = f"{len(changed)} of {len(owners)} users' classes changed"
    node.journal.tell(events.POLICY, changed=len(changed))
    tell_limits(node.journal, events.LIMITS_CHANGED, classes, changed)
    return result if waited else f"{result}; the agent does not run"


def _ask(sentence: str) -> None:
    """Have a person agree; Refused if they do not, or cannot be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Refused(f"{sentence}; look at 'vff-qos policy diff', then say --yes")
    print(
        f"{sentence[0].upper()}{sentence[1:]}. Go on? [y/N] ", end="", file=sys.stderr, flush=True
    )
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refused("nothing was changed")


def install(text: bytes, path: str) -> None:
    """Replace ``path`` by ``text`` at once; owner, group and mode stay."""
    directory = os.path.dirname(os.path.abspath(path))
    try:
        old = os.stat(path)
        mode, gid, uid = old.st_mode & 0o7777, old.st_gid, old.st_uid
    except FileNotFoundError:
        mode, gid, uid = 0o640, os.stat(directory).st_gid, os.geteuid()
    try:
        with replacing(path, mode, uid, gid, durable=True) as file:
            file.write(text)
    except OSError as error:
        raise QosError(f"{path}: {os.strerror(error.errno or 0)}") from error


def _wait_for_agent(paths: Paths) -> bool:
    """Have the agent read the policy and wait until it has; False if it does not run."""
    want = policy_stamp(paths)
    deadline = time.monotonic() + _AGENT_S
    told = False
    while follower := read_report(paths.run_dir):
        if follower.policy == want:
            return True
        if not told:
            try:
                os.kill(follower.pid, signal.SIGHUP)
            except ProcessLookupError:
                return False
            except PermissionError as error:
                raise QosError(f"the agent (pid {follower.pid}) belongs to another user; "
                               "run this as root") from error  # fmt: skip
            told = True
        if time.monotonic() > deadline:
            raise QosError(
                f"the agent (pid {follower.pid}) did not take the policy over within "
                f"{_AGENT_S:.0f} s; see journalctl -u vff-qos-follow"
            )
        time.sleep(0.02)
    return False
