"""What the page asks of others: commands of ours and the journal, each a process that ends.

What they need of memory goes with them, and their answers are those that a person would get.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import IO, Any

from ..config import Paths
from ..core.events import DEBUG, EVENTS, INFO
from ..errors import QosError, Refused

#: So many of them at once, each for so long.
_AT_ONCE = threading.Semaphore(2)
_PATIENCE_S = 30.0
#: What is shown unasked: what befell the node, not what thousands of users do all day.
NOTABLE = tuple(n for n, e in EVENTS.items() if e.priority not in (DEBUG, INFO))
_PREFIX = "VFF_QOS_"


class Unanswered(QosError):
    """Whoever was asked did not answer; the message says why."""


def explain(paths: Paths, email: str) -> dict[str, Any]:
    """As ``vff-qos explain EMAIL --json``.  Raises Refused, Unanswered."""
    return dict(json.loads(_ask([*_command(paths, "explain", "--json"), "--", email])))


def write_metrics(paths: Paths, file: IO[bytes]) -> None:
    """As ``vff-qos metrics`` prints them, into a file.  Raises Refused, Unanswered."""
    _ask(_command(paths, "metrics"), file)


def _command(paths: Paths, *words: str) -> list[str]:
    places = (
        ("--settings", paths.settings), ("--policy", paths.policy),
        ("--policy-dir", paths.policy_dir), ("--state-dir", paths.state_dir),
        ("--run-dir", paths.run_dir),
    )  # fmt: skip
    options = [f"{name}={place}" for name, place in places]
    return [sys.executable, "-m", "vff_qos", *words, *options]


def read_events(kinds: tuple[str, ...], limit: int) -> list[dict[str, Any]]:
    """The latest entries of some kinds in the journal, the latest first.  Raises Unanswered."""
    command = ["journalctl", "--quiet", "--output=json", "--reverse", f"--lines={limit}"]
    command += [f"MESSAGE_ID={EVENTS[kind].message_id}" for kind in kinds]
    return [_entry(json.loads(line)) for line in _ask(command).splitlines()]


def _entry(fields: dict[str, Any]) -> dict[str, Any]:
    """An entry as JSON; journald gives what is no UTF-8 as numbers, and what stands twice as a
    list (systemd.journal-export-formats)."""
    kind = _text(fields.get(f"{_PREFIX}EVENT"))
    event = EVENTS.get(kind)
    names = (name for name in fields if name.startswith(_PREFIX))
    return {
        "time": int(fields["__REALTIME_TIMESTAMP"]) / 1e6,
        "kind": kind,
        "priority": int(_text(fields.get("PRIORITY")) or INFO),
        "title": event.title.replace("{email}", _text(fields.get(f"{_PREFIX}EMAIL")))
        if event
        else kind,
        "message": _text(fields.get("MESSAGE")),
        "remedy": event.remedy if event else "",
        "fields": {name.removeprefix(_PREFIX).lower(): _text(fields[name]) for name in names},
    }


def _text(value: Any) -> str:
    if isinstance(value, list):
        if value and all(isinstance(part, int) for part in value):
            return bytes(value).decode(errors="replace")
        return " and ".join(_text(part) for part in value)
    return "" if value is None else str(value)


def _ask(command: list[str], output: IO[bytes] | None = None) -> str:
    """What a command prints; nothing where it goes into a file."""
    name = " ".join(command[2:4]) if command[0] == sys.executable else command[0]
    if not _AT_ONCE.acquire(timeout=_PATIENCE_S):
        raise Unanswered(f"{name}: others are being asked; try again")
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output or subprocess.PIPE,
            stderr=subprocess.PIPE, check=False, timeout=_PATIENCE_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Unanswered(f"{name}: no answer within {_PATIENCE_S:.0f} s") from error
    except OSError as error:
        raise Unanswered(f"{name}: {error.strerror}") from error
    finally:
        _AT_ONCE.release()
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        sentence = said[-1] if said else f"{name} ended with {done.returncode}"
        if done.returncode == 2:
            raise Refused(sentence)
        raise Unanswered(sentence)
    return "" if output else str(done.stdout.decode(errors="replace"))
