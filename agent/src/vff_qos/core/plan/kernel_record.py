"""What removal must know of the time before us; kept in the state as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

#: Their classes and filters are not recorded.
_CLASSFUL = ("htb", "hfsc", "drr", "qfq", "cbq", "ets")


class SavedQdisc(NamedTuple):
    """A qdisc of somebody that ours replaced; ``options`` in hex."""

    kind: str
    handle: int
    parent: int
    options: str


class SavedRoot(NamedTuple):
    """What was at the root of a device before us, in the order of creation."""

    dev: str
    qdiscs: tuple[SavedQdisc, ...]

    def __str__(self) -> str:
        root, *below = self.qdiscs
        what = f"root qdisc {root.kind} {root.handle >> 16:x}: of {self.dev}"
        if root.kind in _CLASSFUL:
            return f"{what}, without its classes and filters"
        return f"{what}, with {len(below)} qdiscs below it" if below else what


@dataclass(frozen=True)
class DeviceRecord:
    """What removal must know of a device: its index (another one: another device), what was at its
    root, and whether its ingress qdisc is ours (None: unknown, the record was lost)."""

    index: int
    qdiscs: tuple[SavedQdisc, ...] = ()
    ingress: bool | None = None


@dataclass(frozen=True)
class KernelRecord:
    """What removal must know of the time before us; kept in the state as JSON."""

    major: int | None = None
    devices: dict[str, DeviceRecord] = field(default_factory=dict)
    #: What sysctls were that we have set.
    sysctls: dict[str, str] = field(default_factory=dict)
    #: How many trees there are, and why so many.
    trees: int = 1
    why: str = ""

    @classmethod
    def from_json(cls, data: object) -> KernelRecord:
        """What `to_json` gave; empty for None."""
        if not isinstance(data, dict):
            return cls()
        devices = {
            dev: DeviceRecord(
                entry["index"],
                tuple(SavedQdisc(**qdisc) for qdisc in entry["qdiscs"]),
                entry["ingress"],
            )
            for dev, entry in data.get("devices", {}).items()
        }
        trees, why = data.get("trees", 1), data.get("trees_why", "")
        return cls(data.get("major"), devices, dict(data.get("sysctls", {})), trees, why)

    def to_json(self) -> dict[str, object] | None:
        """For JSON; None if there is nothing to remember."""
        if self == KernelRecord():
            return None
        devices = {
            dev: {
                "index": entry.index,
                "qdiscs": [qdisc._asdict() for qdisc in entry.qdiscs],
                "ingress": entry.ingress,
            }
            for dev, entry in self.devices.items()
        }
        found: dict[str, object] = {
            "major": self.major,
            "devices": devices,
            "sysctls": self.sysctls,
        }
        if self.why or self.trees > 1:
            found |= {"trees": self.trees, "trees_why": self.why}
        return found
