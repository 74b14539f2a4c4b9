"""The command ``vff-qos``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from . import __version__
from .config import Paths, load_policy, load_settings
from .core.settings import Settings
from .errors import ConfigError, QosError, Refused
from .journal import INFO, Journal
from .lock import Lock
from .state import State


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--settings", default=Paths().settings, metavar="FILE")
    common.add_argument("--policy", default=Paths().policy, metavar="FILE")
    common.add_argument("--policy-dir", metavar="DIR", help="default: policy.d beside the policy")
    common.add_argument("--state-dir", default=Paths().state_dir, metavar="DIR")
    common.add_argument("--run-dir", default=Paths().run_dir, metavar="DIR")
    parser = argparse.ArgumentParser(
        prog="vff-qos", description="Per-user speed limits in the Linux kernel."
    )
    parser.add_argument("--version", action="version", version=f"vff-qos {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    bootstrap = command(
        "bootstrap", "make the kernel objects as the settings say; ends a suspension"
    )
    bootstrap.add_argument("--plan", action="store_true", help="only print what would change")
    bootstrap.add_argument("--repair", action="store_true", help="do not end a suspension")
    command("follow", "follow the access log and mark flows (the agent)")
    gc = command("gc", "collect users who have been idle")
    gc.add_argument("--dry-run", action="store_true", help="only print what would be done")
    status = command("status", "show who is limited to what")
    status.add_argument("--json", action="store_true", help="for programs")
    command("check-config", "check settings and policy; changes nothing")
    explain = command("explain", "why a user has these limits, and whether they hold")
    explain.add_argument("email", metavar="EMAIL")
    explain.add_argument("--json", action="store_true", help="for programs")
    _order_commands(command)
    _policy_commands(commands, common)
    command("suspend", "the kill switch: nobody is limited until bootstrap")
    remove = command("remove", "take every kernel object of ours away")
    remove.add_argument("--plan", action="store_true", help="only print what would change")
    return parser


def _order_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    orders = {
        "limit": "limit one user for a while, whatever the policy says",
        "unlimit": "lift one user's limits for a while; 'reset' goes back to the policy",
        "block": "block one user for a while: nothing is dropped, nothing gets through in time",
        "reset": "end a limit, unlimit or block: the policy decides again",
    }
    for name, text in orders.items():
        order = command(name, text)
        order.add_argument("email", metavar="EMAIL")
        order.add_argument("--reason", default="", metavar="TEXT", help="for status and journal")
        if name != "reset":
            order.add_argument("--for", dest="for_time", metavar="TIME", help="such as 2h or 1d")
        if name == "limit":
            order.add_argument("--download", metavar="RATE", help="such as 5mbit")
            order.add_argument("--upload", metavar="RATE")
            order.add_argument("--plan", metavar="NAME", help="a plan of the policy")


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


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 (failed) or 2 (refused, nothing was changed)."""
    args = _parser().parse_args(argv)
    args.policy_dir = args.policy_dir or os.path.join(os.path.dirname(args.policy), "policy.d")
    try:
        return _run(args)
    except QosError as error:
        print(f"vff-qos {args.command}: {error}", file=sys.stderr)
        return error.exit_code


def _run(args: argparse.Namespace) -> int:
    if args.command == "suspend" and os.geteuid() == 0:
        # The kill switch must not wait for its turn on a node that is busy.
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    paths = Paths(args.settings, args.policy, args.policy_dir, args.state_dir, args.run_dir)
    settings = load_settings(paths.settings)
    if args.command == "check-config":
        policy = load_policy(paths.policy, paths.policy_dir)
        print(f"ok: {len(policy.users)} users have limits of their own")
        return 0
    if args.command == "follow":
        from .follower.loop import follow

        return follow(paths, Journal())
    state = State(paths.state_dir)
    if args.command == "status":
        from .commands.status import read_status, render

        status = read_status(settings, state, paths)
        print(json.dumps(status, indent=1) if args.json else render(status))
        return 1 if status.get("trouble") else 0
    if args.command == "explain":
        from .commands.explain import read_explanation
        from .commands.explain import render as render_explanation

        found = read_explanation(settings, state, paths, args.email)
        print(json.dumps(found, indent=1) if args.json else render_explanation(found))
        return 0
    lock, journal = Lock(paths.run_dir), Journal(by_hand=True)
    if args.command in ("limit", "unlimit", "block", "reset"):
        print(_order(args, settings, paths, state, lock, journal))
        return 0
    if args.command == "policy":
        from .commands.policy import apply, diff

        if args.action == "diff":
            _print(diff(settings, paths, state, lock, args.file))
        else:
            print(apply(settings, paths, state, lock, journal, args.file))
        return 0
    if args.command == "gc":
        from .commands.gc import Collector

        lines = Collector(settings, state, lock).run(args.dry_run)
        _print(lines)
        if lines and not args.dry_run:
            journal.event("collected", f"collected: {len(lines)} actions", INFO, actions=len(lines))
        return 0
    if args.command == "suspend":
        from .commands.killswitch import suspend

        count = suspend(settings, state, lock, journal)
        print("no change" if count is None else f"suspended: {count} flows are unlimited now")
        return 0
    return _reconcile(args, settings, state, lock, journal)


def _order(
    args: argparse.Namespace,
    settings: Settings,
    paths: Paths,
    state: State,
    lock: Lock,
    journal: Journal,
) -> str:
    from .commands.overrides import give_order
    from .core.units import parse_duration

    entry: dict[str, Any] | None = {"unlimit": {"unlimited": True}, "block": {"blocked": True}}.get(
        args.command
    )
    if args.command == "limit":
        given = {key: getattr(args, key) for key in ("plan", "upload", "download")}
        entry = {key: value for key, value in given.items() if value is not None}
        if not entry:
            raise Refused("say what: --download RATE, --upload RATE or --plan NAME")
    for_time = getattr(args, "for_time", None)
    try:
        for_s = None if for_time is None else parse_duration(for_time)
    except ValueError as error:
        raise Refused(f"--for: {error}") from error
    policy = load_policy(paths.policy, paths.policy_dir)
    return give_order(settings, policy, state, lock, journal, args.email, entry, for_s, args.reason)


def _reconcile(
    args: argparse.Namespace, settings: Settings, state: State, lock: Lock, journal: Journal
) -> int:
    from .commands.bootstrap import reconcile, remove, repair
    from .commands.killswitch import resume, suspend
    from .follower.kept_policy import kept_policy

    if args.command == "bootstrap":
        # The follower's own repairs must not end what a person has ordered.
        if args.repair:
            _print(repair(settings, state, args.plan))
            return 0
        try:
            load_policy(args.policy, args.policy_dir)
        except ConfigError as error:
            kept_policy(error, state, journal)
        _print(reconcile(settings, state, args.plan))
        if not args.plan:
            count = resume(state, lock, journal)
            if count is not None:
                print(f"resumed: {count} flows are limited again")
        return 0
    if not args.plan:
        suspend(settings, state, lock, journal)
    _print(remove(settings, state, args.plan))
    return 0


def _print(lines: list[str]) -> None:
    print("\n".join(lines) if lines else "no change")
