"""What the command line takes: the arguments of each command, and what ``--help`` says of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from . import __version__
from .config import Paths
from .core.figures import SORTS

_EXIT_CODES = "Exit codes: 0 well, 1 degraded (limits hold in part), 2 not working."
_TIMES = "TIME: 2026-11, 2026-11-26, '2026-11-26 14:00', or 7d for so long ago."


class _Parser(argparse.ArgumentParser):
    """Of a wrong call it tells in one line: the usage fills a screen, and hides it."""

    def error(self, message: str) -> NoReturn:
        sentence = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {sentence}; '{self.prog} --help' says what is allowed\n")


def _nothing(_parser: _Parser) -> None:
    pass


class _Command(NamedTuple):
    text: str
    takes: Callable[[_Parser], None] = _nothing
    more: str = ""
    #: Else its actions take them.
    takes_files: bool = True


def parser(only: str = "") -> _Parser:
    """The whole parser; if ``only`` is a command, without the others: to make all of them takes as
    long as some commands do."""
    found = _Parser(prog="vff-qos", description="Per-user speed limits in the Linux kernel.")
    found.add_argument("--version", action="version", version=f"vff-qos {__version__}")
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in [only] if only in _COMMANDS else _COMMANDS:
        one = _COMMANDS[name]
        command = commands.add_parser(name, help=one.text, description=one.text, epilog=one.more)
        if one.takes_files:
            _files(command)
        one.takes(command)
    return found


def _files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", default=Paths().settings, metavar="FILE")
    parser.add_argument("--policy", default=Paths().policy, metavar="FILE")
    parser.add_argument("--policy-dir", metavar="DIR", help="default: policy.d beside the policy")
    parser.add_argument("--state-dir", default=Paths().state_dir, metavar="DIR")
    parser.add_argument("--run-dir", default=Paths().run_dir, metavar="DIR")


def _bootstrap(parser: _Parser) -> None:
    _plan(parser)
    parser.add_argument("--repair", action="store_true", help="do not end a suspension")


def _plan(parser: _Parser) -> None:
    parser.add_argument("--plan", action="store_true", help="only print what would change")


def _gc(parser: _Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")


def _status(parser: _Parser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs; all users")
    parser.add_argument("--all", action="store_true", help="all users and orders, not the top ten")
    parser.add_argument(
        "--sort", choices=tuple(SORTS), default="rate",
        help="what makes the top ten (default: rate)",
    )  # fmt: skip
    parser.add_argument(
        "--engine", action="store_true", help="look into the engine's configuration, too"
    )
    _patterns(parser)


def _patterns(parser: _Parser) -> None:
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="users such as '*@x'")


def _top(parser: _Parser) -> None:
    parser.add_argument("--once", action="store_true", help="the table once, as text")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    parser.add_argument(
        "--sort", choices=tuple(SORTS), default="rate", help="what comes first (default: rate)"
    )
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS",
        help="between two looks, 0.2 to 60 (default: 1); longer where one costs too much",
    )  # fmt: skip
    _patterns(parser)


def _check_config(parser: _Parser) -> None:
    parser.add_argument(
        "--new", action="store_true", help="FILEs are not in place yet: whoever may read them"
    )
    parser.add_argument("--identities", metavar="FILE", help="default: beside the settings")


def _explain(parser: _Parser) -> None:
    parser.add_argument("who", metavar="EMAIL|IP|IP:PORT")
    parser.add_argument("--json", action="store_true", help="for programs")


def _doctor(parser: _Parser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--no-canary", dest="canary", action="store_false",
        help="do not prove with a flow in a namespace of its own that limits hold (6 s)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", action="store_true", help="for the page, too: what is found, and when"
    )


def _usage(parser: _Parser) -> None:
    parser.add_argument("patterns", nargs="*", metavar="EMAIL|PATTERN", help="such as '*@x'")
    parser.add_argument("--since", metavar="TIME", help="default: the first of this month")
    parser.add_argument("--until", metavar="TIME", help="before this time; default: now")
    parser.add_argument("--by", choices=("hour", "day", "month"), help="default: one sum")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="for tables; exact bytes")
    form.add_argument("--json", action="store_true", help="for programs; exact bytes")


def _report(parser: _Parser) -> None:
    parser.add_argument("--now", action="store_true", help="also if the last try has just failed")


def _hooks(parser: _Parser) -> None:
    parser.add_argument(
        "--hash", action="store_true", help="only print a secret's hash for the users file"
    )


def _metrics(parser: _Parser) -> None:
    parser.add_argument(
        "--textfile",
        metavar="FILE",
        help="replace this file, for node_exporter's textfile collector",
    )
    parser.add_argument(
        "--users", type=int, metavar="N", help="of so many; default: metrics_users of the settings"
    )


def _name(parser: _Parser) -> None:
    parser.add_argument("emails", nargs="+", metavar="EMAIL")


def _whom(parser: _Parser) -> None:
    parser.add_argument("email", metavar="EMAIL")
    _reason(parser)


def _reason(parser: _Parser) -> None:
    parser.add_argument("--reason", default="", metavar="TEXT", help="for status and journal")


def _order(parser: _Parser) -> None:
    _whom(parser)
    parser.add_argument("--for", dest="for_time", metavar="TIME", help="such as 2h or 1d")


def _limit(parser: _Parser) -> None:
    _order(parser)
    parser.add_argument("--download", metavar="RATE", help="such as 5mbit")
    parser.add_argument("--upload", metavar="RATE")
    parser.add_argument("--plan", metavar="NAME", help="a plan of the policy")
    parser.add_argument("--connections", type=int, metavar="N", help="so many at most")
    parser.add_argument("--devices", type=int, metavar="N", help="so many at most")


def _cut(parser: _Parser) -> None:
    _order(parser)
    parser.add_argument("--address", metavar="IP", help="only what comes from there")


def _reset(parser: _Parser) -> None:
    _whom(parser)
    parser.add_argument(
        "--usage", action="store_true",
        help="instead: end a penalty; what was used counts no more for quota and fair use",
    )  # fmt: skip


def _policy(parser: _Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("diff", "what the policy, or FILE as the policy, would change; changes nothing"),
        ("apply", "have the policy in force now; FILE is installed as the policy first"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        _files(action)
        action.add_argument("file", nargs="?", metavar="FILE")
        if name == "diff":
            action.add_argument(
                "-v", "--verbose", action="store_true", help="guarantees and quanta, too"
            )
        if name == "apply":
            action.add_argument(
                "--yes", action="store_true", help="also if more than half of the users change"
            )


#: In the order of ``--help``.
_COMMANDS = {
    "bootstrap": _Command(
        "make the kernel objects as the settings say; ends a suspension", _bootstrap
    ),
    "follow": _Command("follow the access log and mark flows (the agent)"),
    "gc": _Command("collect users who have been idle", _gc),
    "status": _Command("whether all is well, and who is limited to what", _status, _EXIT_CODES),
    "top": _Command(
        "a live table of the users: rates, limits, what holds them; h shows the keys", _top
    ),
    "check-config": _Command(
        "check settings, policy and identities; changes nothing", _check_config
    ),
    "explain": _Command("why a user has these limits, or who comes from an address", _explain),
    "doctor": _Command("find what is wrong, and say what to do about it", _doctor, _EXIT_CODES),
    "usage": _Command(
        "what users have moved: for good, whatever became of their classes", _usage, _TIMES
    ),
    "report": _Command("tell usage to report_url, once (the timer's work)", _report),
    "web": _Command("serve the page, where web_bind says (the unit's work)"),
    "hooks": _Command(
        "answer engines that ask whether somebody may log in (the unit's work)", _hooks
    ),
    "metrics": _Command(
        "the figures for Prometheus: on standard output, or in a file (the timer's work)", _metrics
    ),
    "name": _Command("what users are called in state, journal and status (qos_hash_emails)", _name),
    "limit": _Command("limit one user for a while, whatever the policy says", _limit),
    "unlimit": _Command(
        "lift one user's limits for a while; 'reset' goes back to the policy", _order
    ),
    "block": _Command(
        "block one user for a while: nothing is dropped, nothing gets through in time", _order
    ),
    "cut": _Command("end one user's connections at once, and new ones, for a while", _cut),
    "reset": _Command("end a limit, unlimit, block or cut: the policy decides again", _reset),
    "policy": _Command(
        "compare the policy with what is in force, or have it in force", _policy, takes_files=False
    ),
    "suspend": _Command("lift all limits in the kernel, until bootstrap"),
    "disable": _Command("the kill switch: lift all limits, and keep them lifted", _reason),
    "enable": _Command("bring the limits back after 'disable' or 'suspend'"),
    "remove": _Command("take every kernel object of ours away", _plan),
}
