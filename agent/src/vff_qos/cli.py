"""The command ``vff-qos``."""

from __future__ import annotations

import argparse
import json
import os
import sys

from . import __version__
from .config import Paths, load_policy, load_settings
from .core.settings import Settings
from .errors import QosError
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
    command("suspend", "the kill switch: nobody is limited until bootstrap")
    remove = command("remove", "take every kernel object of ours away")
    remove.add_argument("--plan", action="store_true", help="only print what would change")
    return parser


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
    paths = Paths(args.settings, args.policy, args.policy_dir, args.state_dir, args.run_dir)
    settings = load_settings(paths.settings)
    if args.command == "check-config":
        policy = load_policy(paths.policy, paths.policy_dir)
        print(f"ok: {len(policy.users)} users have limits of their own")
        return 0
    journal = Journal()
    if args.command == "follow":
        from .follow import follow

        return follow(paths, journal)
    state = State(paths.state_dir)
    if args.command == "status":
        from .status import read_status, render

        status = read_status(settings, state, paths)
        print(json.dumps(status, indent=1) if args.json else render(status))
        return 1 if status.get("trouble") else 0
    lock = Lock(paths.run_dir)
    if args.command == "gc":
        from .collect import Collector

        lines = Collector(settings, state, lock).run(args.dry_run)
        _print(lines)
        if lines and not args.dry_run:
            journal.event("collected", f"collected: {len(lines)} actions", INFO, actions=len(lines))
        return 0
    if args.command == "suspend":
        from .release import suspend

        count = suspend(settings, state, lock, journal)
        print("no change" if count is None else f"{count} flows are unlimited now")
        return 0
    return _reconcile(args, settings, state, lock, journal)


def _reconcile(
    args: argparse.Namespace, settings: Settings, state: State, lock: Lock, journal: Journal
) -> int:
    from .bootstrap import reconcile, remove
    from .release import resume, suspend

    if args.command == "bootstrap":
        load_policy(args.policy, args.policy_dir)
        if args.repair and state.get_value("suspended"):
            settings = settings.lifted()
        _print(reconcile(settings, state, args.plan))
        # The follower's own repairs must not end what a person has ordered.
        if not args.plan and not args.repair:
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
