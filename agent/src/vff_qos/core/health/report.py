"""What the follower tells others of itself, as data.  `vff_qos.runfile` writes and reads it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

#: Kinds of trust of a source's words: text can be forged by whoever has some of theirs written
#: into it, what the engine tells cannot.
TEXT, TOLD = "text", "told"


@dataclass(frozen=True)
class SourceHealth:
    """One place where identities come from.

    Times in seconds since the epoch, None: not since the start.
    """

    kind: str = ""
    #: What the settings call it.
    name: str = ""
    #: What it reads, for people.
    origin: str = ""
    #: `TEXT` or `TOLD`.
    trust: str = TEXT
    #: What is missing, and what to do; empty while nothing is.
    waiting: str = ""
    last_line_s: float | None = None
    last_claim_s: float | None = None
    #: Over the last minute.
    lines_per_s: float = 0.0
    #: For how long there has been more to read than was read; in seconds.
    lag_s: float = 0.0
    #: New flows to the service ports since the last claim.
    flows_since_claim: int = 0
    #: Of several sources, once one has said nothing for a while: how many of these live, go to its
    #: own ports and are nobody's.
    nobodys_since_claim: int = 0
    #: Its lines by what they were, and when each of these counters grew last.
    log: dict[str, Any] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RepairHealth:
    """The last repair.  Times in seconds since the epoch."""

    #: When the kernel's objects were changed last, and how.
    healed_s: float | None = None
    changes: list[str] = field(default_factory=list)
    #: Why the last repair failed; empty if it did not.
    failed: str = ""
    #: Who else changed our nft table last, as the kernel says: name and number of a process.
    culprit: str = ""
    culprit_pid: int = 0


@dataclass(frozen=True)
class TrafficHealth:
    """What passed the users' classes between two looks, while marks were set."""

    since_s: float
    until_s: float
    marked: int
    up_bytes: int
    down_bytes: int


@dataclass(frozen=True)
class Report:
    """What a follower does.  Times in seconds since the epoch."""

    pid: int
    written: float
    #: `config.policy_stamp` of the policy in force; empty if that is the last good one.
    policy: list[list[object]]
    #: How often the kernel's objects were repaired.
    repairs: int
    #: What became of the claims, by name.
    counts: dict[str, int | str]
    #: Lines of all sources by what they were.
    log: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    started: float = 0.0
    sources: list[SourceHealth] = field(default_factory=list)
    repair: RepairHealth = field(default_factory=RepairHealth)
    traffic: TrafficHealth | None = None
    #: How much each counter grew within the last ``recent_s`` seconds, those that did; the
    #: sources' begin with ``log.``.
    recent: dict[str, int] = field(default_factory=dict)
    recent_s: float = 0.0
    #: When each of them grew last.
    last: dict[str, float] = field(default_factory=dict)
    #: Ends of clients whose claims named no flow to a service port, the latest last.
    not_found: list[str] = field(default_factory=list)
    #: Temporary orders that the policy does not allow, a sentence each.
    void_orders: list[str] = field(default_factory=list)
    #: Why the policy, or the settings, on disk are not in force; empty if they are.
    policy_refused: str = ""
    settings_refused: str = ""
    #: The same of services and networks; and `config.identities_stamp` of those in force.
    identities_refused: str = ""
    #: Entries of the policy that count for nobody: their users are identities of people.
    joined_entries: list[str] = field(default_factory=list)
    identities: list[object] = field(default_factory=list)
    #: `config.settings_stamp` of the settings in force.
    settings: list[object] = field(default_factory=list)
    #: Why the state is not where it belongs, or was not written; empty if it is well.
    state: str = ""
    #: When somebody last set the clock, and by how many seconds; None: not since the start.
    clock_set_s: float | None = None
    clock_set_by_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The counts stand beside the rest.  For writing: what it holds is the report's own."""
        own = vars(self) | {
            "sources": list(map(vars, self.sources)),
            "repair": vars(self.repair),
            "traffic": vars(self.traffic) if self.traffic else None,
        }
        return {**own.pop("counts"), **own}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """A report as ``to_json`` gave it, also of another version of this program."""
        names = {field.name for field in fields(cls)} - {"counts"}
        own = {name: value for name, value in data.items() if name in names}
        own["sources"] = [_known(SourceHealth, source) for source in own.get("sources", [])]
        own["repair"] = _known(RepairHealth, own.get("repair") or {})
        traffic = own.get("traffic")
        own["traffic"] = _known(TrafficHealth, traffic) if traffic else None
        return cls(**own, counts={n: v for n, v in data.items() if n not in names})


def _known(kind: Any, data: dict[str, Any]) -> Any:
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in data.items() if name in names})
