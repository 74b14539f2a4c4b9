"""Who has disabled this node by hand: a file that outlives reboots, and that the role respects."""

from __future__ import annotations

import json
from typing import NamedTuple

from .config import Paths
from .errors import Refused
from .replacing import replacing


class Record(NamedTuple):
    """Who has disabled this node by hand; ``when`` is a local time."""

    who: str
    when: str
    why: str

    def __str__(self) -> str:
        return f"disabled by hand by {self.who} at {self.when}" + (
            f" ({self.why})" if self.why else ""
        )


def read_record(paths: Paths) -> Record | None:
    """Who has disabled this node by hand; None if nobody has."""
    try:
        with open(paths.disabled, encoding="utf-8") as file:
            data = json.load(file)
        return Record(str(data["who"]), str(data["when"]), str(data["why"]))
    except FileNotFoundError:
        return None
    except PermissionError:  # whoever may not read it is told by others
        return None
    except (OSError, ValueError, KeyError, TypeError):
        # That it is there is what counts.
        return Record("somebody", "some time", f"{paths.disabled} cannot be read")


def refuse_if_disabled(paths: Paths) -> None:
    """Raises Refused where a person has disabled this node: only a person ends that."""
    if record := read_record(paths):
        raise Refused(f"this node was {record}; 'vff-qos enable' brings the limits back")


def write_record(paths: Paths, record: Record) -> None:
    """Say who has disabled this node.  Raises OSError."""
    with replacing(paths.disabled, 0o644, durable=True) as file:
        file.write(json.dumps(record._asdict()).encode() + b"\n")
