"""The command ``vff-qos``: which function each of its commands calls."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from .arguments import parser
from .commands.node import Node
from .config import Paths, load_identities, load_policy, load_settings, read_file
from .core import events
from .core.names import is_hash
from .core.settings import parse_settings
from .errors import ConfigError, QosError, Refused
from .journal import Journal

_RETRY_S = 10.0
#: So many things that a collection did are written down one by one.
_MAX_LINES = 200


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 (failed) or 2 (refused, nothing was changed)."""
    words = sys.argv[1:] if argv is None else argv
    args = parser(words[0] if words else "").parse_args(words)
    args.policy_dir = args.policy_dir or os.path.join(os.path.dirname(args.policy), "policy.d")
    try:
        return _run(args)
    except QosError as error:
        print(f"vff-qos {args.command}: {error}", file=sys.stderr, flush=True)
        if args.command == "follow" and isinstance(error, ConfigError):
            _wait_before_another_start()
        return error.exit_code


def _wait_before_another_start() -> None:
    """systemd starts the agent again at once and for ever: a mistake that stays costs no core."""
    if "NOTIFY_SOCKET" in os.environ:
        time.sleep(_RETRY_S)


def _run(args: argparse.Namespace) -> int:
    if args.command in ("suspend", "disable") and os.geteuid() == 0:
        # The kill switch must not wait for its turn on a node that is busy.
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    paths = Paths(args.settings, args.policy, args.policy_dir, args.state_dir, args.run_dir)
    if args.command == "follow":
        from .follower.loop import follow

        return follow(paths, Journal())
    with Node(paths) as node:
        return _COMMANDS[args.command](node, args)


def _check_config(node: Node, args: argparse.Namespace) -> int:
    if args.new:
        settings = parse_settings(read_file(node.paths.settings), node.paths.settings)
        policy = load_policy(node.paths, node.paths.policy)
    else:
        settings = load_settings(node.paths)
        policy = load_policy(node.paths)
    found = load_identities(node.paths, settings, args.identities, args.new)
    static = f", {len(found.keys)} services and networks" if found.has_static else ""
    joined = len(set(found.people.values()))
    people = f", {joined} people with several identities" if joined else ""
    print(f"ok: {len(policy.users)} users have limits of their own{static}{people}")
    return 0


def _status(node: Node, args: argparse.Namespace) -> int:
    from .commands.status import exit_code, read_status, render

    patterns = [node.pattern_of(pattern) for pattern in args.patterns]
    status = read_status(node, patterns, args.engine)
    if args.json:
        print(json.dumps(status, indent=1))
    else:
        print(render(status, args.all, args.sort, bool(args.patterns)))
    return exit_code(status)


def _top(node: Node, args: argparse.Namespace) -> int:
    if not 0.2 <= args.interval <= 60:
        raise Refused(f"--interval: {args.interval:g} is not between 0.2 and 60 seconds")
    patterns = [node.pattern_of(pattern) for pattern in args.patterns]
    if args.once or args.json:
        from .commands.top import once

        print(once(node.paths, patterns, args.sort, args.interval, args.json))
    else:
        from .commands.top import run

        run(node.paths, patterns, args.sort, args.interval)
    return 0


def _explain(node: Node, args: argparse.Namespace) -> int:
    from .commands.flows import meant_place, read_place, render_place

    place = meant_place(node, args.who)
    if place is not None:
        shown = read_place(node, place)
        print(json.dumps(shown, indent=1) if args.json else render_place(shown))
        return 0
    from .commands.explain import read_explanation, render

    found = read_explanation(node, args.who)
    print(json.dumps(found, indent=1) if args.json else render(found))
    return 0


def _name(node: Node, args: argparse.Namespace) -> int:
    _print([node.name_of(email) for email in args.emails])
    return 0


def _doctor(node: Node, args: argparse.Namespace) -> int:
    from .commands.doctor import exit_code, keep, read_diagnosis, render

    found = read_diagnosis(node, args.canary)
    if args.keep:
        keep(node, found)
    print(json.dumps(found, indent=1) if args.json else render(found))
    return exit_code(found)


def _usage(node: Node, args: argparse.Namespace) -> int:
    from .commands.usage_table import read_usage, render, to_csv

    found = read_usage(node, args.patterns, args.since, args.until, args.by)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print(to_csv(found) if args.csv else render(found), end="" if args.csv else "\n")
    return 0


def _report(node: Node, args: argparse.Namespace) -> int:
    from .commands.usage_report import report

    print(report(node, args.now))
    return 0


def _web(node: Node, _args: argparse.Namespace) -> int:
    from .web.lean import leave_out_openssl

    leave_out_openssl()
    from .web.server import serve

    serve(node)
    return 0


def _hooks(node: Node, args: argparse.Namespace) -> int:
    if args.hash:
        from .hooks.hashing import hash_of_input

        print(hash_of_input())
        return 0
    from .hooks.answering import serve

    serve(node)
    return 0


def _metrics(node: Node, args: argparse.Namespace) -> int:
    from .commands.metrics import print_metrics, write_textfile

    if args.users is not None and args.users < 0:
        raise Refused(f"--users: {args.users} is less than none")
    if args.textfile:
        write_textfile(node, args.textfile, args.users)
    else:
        print_metrics(node, args.users)
    return 0


def _order(node: Node, args: argparse.Namespace) -> int:
    from .commands.limit import cut_from, give_order, let_off
    from .core.policy.terms import CUT
    from .core.units import parse_duration

    if args.command == "reset" and args.usage:
        print(let_off(node, args.email, args.reason))
        return 0
    entries: dict[str, dict[str, Any]] = {
        "unlimit": {"unlimited": True},
        "block": {"blocked": True},
        "cut": {"blocked": CUT},
    }
    entry = entries.get(args.command)
    if args.command == "limit":
        keys = ("plan", "upload", "download", "connections", "devices")
        given = {key: getattr(args, key) for key in keys}
        entry = {key: value for key, value in given.items() if value is not None}
        if not entry:
            raise Refused(
                "say what: --download RATE, --upload RATE, --plan, --connections or --devices"
            )
    for_time = getattr(args, "for_time", None)
    try:
        for_s = None if for_time is None else parse_duration(for_time)
    except ValueError as error:
        raise Refused(f"--for: {error}") from error
    name = node.name_of(args.email)
    if is_hash(name) and name != args.email and args.email in sys.orig_argv:
        _begin_again(node, args.email, name)
    if getattr(args, "address", None) is not None:
        print(cut_from(node, args.email, args.address, for_s, args.reason))
        return 0
    print(give_order(node, args.email, entry, for_s, args.reason))
    return 0


def _begin_again(node: Node, email: str, name: str) -> None:
    """Run this command with the hash in the place of the email; does not return.

    journald writes down with each entry how the process was called (_CMDLINE).
    """
    globs = node.names.globs.get(name)
    if globs:
        with node.lock:
            node.state.save_globs({name: globs})
    words = [name if word == email else word for word in sys.orig_argv]
    os.execv(sys.executable, words)


def _policy(node: Node, args: argparse.Namespace) -> int:
    from .commands.policy import apply, diff

    if args.action == "diff":
        _print(diff(node, args.file, args.verbose))
    else:
        print(apply(node, args.file, args.yes))
    return 0


def _gc(node: Node, args: argparse.Namespace) -> int:
    from .commands.gc import Collector, collect

    if args.dry_run:
        lines = Collector(node.settings, node.state, node.lock).run(dry_run=True)
    else:
        lines = collect(node)
    if args.dry_run or not node.journal.is_unit:  # the journal has entries with fields
        _print(lines)
    if lines and not args.dry_run:
        changes = "\n".join(lines[:_MAX_LINES])
        node.journal.tell(events.COLLECTED, actions=len(lines), changes=changes)
    return 0


def _suspend(node: Node, _args: argparse.Namespace) -> int:
    from .commands.suspend import lift_limits

    count = lift_limits(node)
    print("no change" if count is None else f"suspended: {count} flows are unlimited now")
    return 0


def _disable(node: Node, args: argparse.Namespace) -> int:
    from .commands.disable import disable

    print(disable(node, args.reason))
    return 0


def _enable(node: Node, _args: argparse.Namespace) -> int:
    from .commands.disable import enable

    print(enable(node))
    return 0


def _bootstrap(node: Node, args: argparse.Namespace) -> int:
    from .commands.bootstrap import bring_up, heal

    (heal if args.repair else bring_up)(node, args.plan, _print)
    return 0


def _remove(node: Node, args: argparse.Namespace) -> int:
    from .commands.bootstrap import take_down

    take_down(node, args.plan, _print)
    return 0


_COMMANDS: dict[str, Callable[[Node, argparse.Namespace], int]] = {
    "bootstrap": _bootstrap,
    "gc": _gc,
    "status": _status,
    "top": _top,
    "check-config": _check_config,
    "explain": _explain,
    "doctor": _doctor,
    "usage": _usage,
    "report": _report,
    "web": _web,
    "hooks": _hooks,
    "metrics": _metrics,
    "name": _name,
    "limit": _order,
    "unlimit": _order,
    "block": _order,
    "cut": _order,
    "reset": _order,
    "policy": _policy,
    "suspend": _suspend,
    "disable": _disable,
    "enable": _enable,
    "remove": _remove,
}


def _print(lines: list[str]) -> None:
    print("\n".join(lines) if lines else "no change")
