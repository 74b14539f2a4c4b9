"""The command ``vff-qos``.

Longer than 400 lines: what each command takes, and whom it calls.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from . import __version__
from .commands.node import Node
from .config import Paths, load_identities, load_policy, load_settings, read_file
from .core import events
from .core.figures import SORTS
from .core.names import is_hash
from .core.settings import parse_settings
from .errors import ConfigError, QosError, Refused
from .journal import Journal

_RETRY_S = 10.0
#: So many things that a collection did are written down one by one.
_MAX_LINES = 200
_EXIT_CODES = "Exit codes: 0 well, 1 degraded (limits hold in part), 2 not working."


class _Parser(argparse.ArgumentParser):
    """Of a wrong call it tells in one line: the usage fills a screen, and hides it."""

    def error(self, message: str) -> NoReturn:
        sentence = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {sentence}; '{self.prog} --help' says what is allowed\n")


def parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--settings", default=Paths().settings, metavar="FILE")
    common.add_argument("--policy", default=Paths().policy, metavar="FILE")
    common.add_argument("--policy-dir", metavar="DIR", help="default: policy.d beside the policy")
    common.add_argument("--state-dir", default=Paths().state_dir, metavar="DIR")
    common.add_argument("--run-dir", default=Paths().run_dir, metavar="DIR")
    parser = _Parser(prog="vff-qos", description="Per-user speed limits in the Linux kernel.")
    parser.add_argument("--version", action="version", version=f"vff-qos {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common], epilog=more)

    bootstrap = command(
        "bootstrap", "make the kernel objects as the settings say; ends a suspension"
    )
    bootstrap.add_argument("--plan", action="store_true", help="only print what would change")
    bootstrap.add_argument("--repair", action="store_true", help="do not end a suspension")
    command("follow", "follow the access log and mark flows (the agent)")
    gc = command("gc", "collect users who have been idle")
    gc.add_argument("--dry-run", action="store_true", help="only print what would be done")
    status = command("status", "whether all is well, and who is limited to what", _EXIT_CODES)
    status.add_argument("--json", action="store_true", help="for programs; all users")
    status.add_argument("--all", action="store_true", help="all users and orders, not the top ten")
    status.add_argument(
        "--sort", choices=tuple(SORTS), default="rate",
        help="what makes the top ten (default: rate)",
    )  # fmt: skip
    status.add_argument(
        "--engine", action="store_true", help="look into the engine's configuration, too"
    )
    status.add_argument("patterns", nargs="*", metavar="PATTERN", help="users such as '*@x'")
    top = command(
        "top", "a live table of the users: rates, limits, what holds them; h shows the keys"
    )
    top.add_argument("--once", action="store_true", help="the table once, as text")
    top.add_argument("--json", action="store_true", help="the same for programs")
    top.add_argument(
        "--sort", choices=tuple(SORTS), default="rate", help="what comes first (default: rate)"
    )
    top.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS",
        help="between two looks, 0.2 to 60 (default: 1); longer where one costs too much",
    )  # fmt: skip
    top.add_argument("patterns", nargs="*", metavar="PATTERN", help="users such as '*@x'")
    check = command("check-config", "check settings, policy and identities; changes nothing")
    check.add_argument(
        "--new", action="store_true", help="FILEs are not in place yet: whoever may read them"
    )
    check.add_argument("--identities", metavar="FILE", help="default: beside the settings")
    explain = command("explain", "why a user has these limits, or who comes from an address")
    explain.add_argument("who", metavar="EMAIL|IP|IP:PORT")
    explain.add_argument("--json", action="store_true", help="for programs")
    doctor = command("doctor", "find what is wrong, and say what to do about it", _EXIT_CODES)
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.add_argument(
        "--no-canary", dest="canary", action="store_false",
        help="do not prove with a flow in a namespace of its own that limits hold (6 s)",
    )  # fmt: skip
    doctor.add_argument(
        "--keep", action="store_true", help="for the page, too: what is found, and when"
    )
    _usage_command(command)
    report = command("report", "tell usage to report_url, once (the timer's work)")
    report.add_argument("--now", action="store_true", help="also if the last try has just failed")
    command("web", "serve the page, where web_bind says (the unit's work)")
    hooks = command(
        "hooks", "answer engines that ask whether somebody may log in (the unit's work)"
    )
    hooks.add_argument(
        "--hash", action="store_true", help="only print a secret's hash for the users file"
    )
    metrics = command(
        "metrics", "the figures for Prometheus: on standard output, or in a file (the timer's work)"
    )
    metrics.add_argument(
        "--textfile",
        metavar="FILE",
        help="replace this file, for node_exporter's textfile collector",
    )
    metrics.add_argument(
        "--users", type=int, metavar="N", help="of so many; default: metrics_users of the settings"
    )
    name = command("name", "what users are called in state, journal and status (qos_hash_emails)")
    name.add_argument("emails", nargs="+", metavar="EMAIL")
    _order_commands(command)
    _policy_commands(commands, common)
    command("suspend", "lift all limits in the kernel, until bootstrap")
    disable = command("disable", "the kill switch: lift all limits, and keep them lifted")
    disable.add_argument("--reason", default="", metavar="TEXT", help="for status and journal")
    command("enable", "bring the limits back after 'disable' or 'suspend'")
    remove = command("remove", "take every kernel object of ours away")
    remove.add_argument("--plan", action="store_true", help="only print what would change")
    return parser


def _usage_command(command: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    usage = command(
        "usage", "what users have moved: for good, whatever became of their classes",
        "TIME: 2026-11, 2026-11-26, '2026-11-26 14:00', or 7d for so long ago.",
    )  # fmt: skip
    usage.add_argument("patterns", nargs="*", metavar="EMAIL|PATTERN", help="such as '*@x'")
    usage.add_argument("--since", metavar="TIME", help="default: the first of this month")
    usage.add_argument("--until", metavar="TIME", help="before this time; default: now")
    usage.add_argument("--by", choices=("hour", "day", "month"), help="default: one sum")
    form = usage.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="for tables; exact bytes")
    form.add_argument("--json", action="store_true", help="for programs; exact bytes")


def _order_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    orders = {
        "limit": "limit one user for a while, whatever the policy says",
        "unlimit": "lift one user's limits for a while; 'reset' goes back to the policy",
        "block": "block one user for a while: nothing is dropped, nothing gets through in time",
        "cut": "end one user's connections at once, and new ones, for a while",
        "reset": "end a limit, unlimit, block or cut: the policy decides again",
    }
    for name, text in orders.items():
        order = command(name, text)
        order.add_argument("email", metavar="EMAIL")
        order.add_argument("--reason", default="", metavar="TEXT", help="for status and journal")
        if name == "reset":
            order.add_argument(
                "--usage", action="store_true",
                help="instead: end a penalty; what was used counts no more for quota and fair use",
            )  # fmt: skip
        else:
            order.add_argument("--for", dest="for_time", metavar="TIME", help="such as 2h or 1d")
        if name == "cut":
            order.add_argument("--address", metavar="IP", help="only what comes from there")
        if name == "limit":
            order.add_argument("--download", metavar="RATE", help="such as 5mbit")
            order.add_argument("--upload", metavar="RATE")
            order.add_argument("--plan", metavar="NAME", help="a plan of the policy")
            order.add_argument("--connections", type=int, metavar="N", help="so many at most")
            order.add_argument("--devices", type=int, metavar="N", help="so many at most")


def _policy_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    text = "compare the policy with what is in force, or have it in force"
    policy = commands.add_parser("policy", help=text, description=text)
    actions = policy.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("diff", "what the policy, or FILE as the policy, would change; changes nothing"),
        ("apply", "have the policy in force now; FILE is installed as the policy first"),
    ):
        action = actions.add_parser(name, help=text, description=text, parents=[common])
        action.add_argument("file", nargs="?", metavar="FILE")
        if name == "diff":
            action.add_argument(
                "-v", "--verbose", action="store_true", help="guarantees and quanta, too"
            )
        if name == "apply":
            action.add_argument(
                "--yes", action="store_true", help="also if more than half of the users change"
            )


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 (failed) or 2 (refused, nothing was changed)."""
    args = parser().parse_args(argv)
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
