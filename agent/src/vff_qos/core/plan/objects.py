"""What a node has and needs in the kernel, as data.

*Objects* are what we make, change and remove: an `Ifb`, the `NftTable`, a `Tree` with its
`SharedClass`, `SharedLeaf` and filter, the `Clsact`, `Filter` and `Sysctl`.  The ``key`` of an
object says which one it is, all else how it should be.  `Observed` is what the kernel shows, ours
or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..htb import CEIL_MINOR, UNCLASSIFIED_MINOR, HtbClass
from ..layout import mq_handle
from ..old_role import OldRole
from ..units import format_rate
from .handles import (
    ALIAS,
    EGRESS,
    INGRESS,
    INGRESS_PARENT,
    ROOT,
    ROOT_PARENT,
    Interface,
    Qdisc,
    leads,
    leads_away,
)
from .nft_table import SETS_WITH_LIMITS, TABLE, Listing

#: Depth of the IFB's ring in packets; its default of 32 stops the queue on short bursts.
IFB_TXQLEN = 1000

_TRANSPORTS = {6: "tcp", 17: "udp"}

Key = tuple[str | int, ...]


# --- what a filter matches and does ---


class FwMark(NamedTuple):
    """cls_fw: the packet's mark below ``mask`` equals the handle.  Without a mask the mark itself
    is the classid."""

    mask: int | None = None


class Flower(NamedTuple):
    """cls_flower: IP protocol and closed range of destination ports; protocol 0: every packet."""

    protocol: int = 0
    low: int = 0
    high: int = 0


class OtherMatch(NamedTuple):
    """What we never write: ``kind`` of the classifier, and what is known of it."""

    kind: str
    what: str = ""


class CopyMark(NamedTuple):
    """act_ctinfo: the connection's mark below ``mask`` to the packet, then to ``chain``."""

    mask: int
    chain: int


class SetMark(NamedTuple):
    """act_skbedit: this mark to the packet."""

    value: int


class SetQueue(NamedTuple):
    """act_skbedit at egress: the packet goes to this transmit queue, from 0; other filters go on.

    The kernel obeys from 5.19 on (netdev_xmit_skip_txqueue).
    """

    queue: int


class SpreadQueues(NamedTuple):
    """act_skbedit at egress: the packet goes to one of the first ``queues`` transmit queues, by the
    hash of its flow; other filters go on.  From kernel 5.19 on."""

    queues: int


class Redirect(NamedTuple):
    """act_mirred: the packet goes to interface ``dev``."""

    dev: str


class OtherAction(NamedTuple):
    """An action that we never write."""

    kind: str


Match = FwMark | Flower | OtherMatch
Action = CopyMark | SetMark | SetQueue | SpreadQueues | Redirect | OtherAction


class Place(NamedTuple):
    """Where a filter is; ``hook`` is INGRESS, EGRESS or ROOT (of tree number ``tree``),
    ``protocol`` such as ``ipv6``."""

    dev: str
    hook: str
    chain: int
    pref: int
    protocol: str
    handle: int
    tree: int = 0


# --- objects of ours ---


@dataclass(frozen=True)
class Ifb:
    """The device that uploads pass."""

    dev: str
    alias: str = ALIAS
    up: bool = True
    txqlen: int = IFB_TXQLEN
    queues: int = 1

    @property
    def key(self) -> Key:
        return "ifb", self.dev

    def __str__(self) -> str:
        return f"ifb device {self.dev}" + (f" with {self.queues} queues" * (self.queues > 1))


@dataclass(frozen=True)
class NftTable:
    """A table, as `nft_table.normal_table` lists it; another ``name`` is the old role's.

    ``text`` makes what cannot be said as JSON; the listing shows it, too."""

    objects: Listing
    name: str = TABLE
    text: str = field(default="", compare=False)

    @property
    def key(self) -> Key:
        return "nft", self.name

    def __str__(self) -> str:
        return f"nft table inet {self.name}"


@dataclass(frozen=True)
class Mq:
    """The root of a device that has a tree for each of its first ``trees`` queues; ``major`` of the
    first of them."""

    dev: str
    major: int
    trees: int

    @property
    def key(self) -> Key:
        return "mq", self.dev

    def __str__(self) -> str:
        return f"root qdisc mq {mq_handle(self.major) >> 16:x}: of {self.dev}, {self.trees} trees"


@dataclass(frozen=True)
class Tree:
    """An HTB at the root of a device; below a TBF that splits packets of more than
    ``split_bytes`` into frames, if that is not 0.  ``default`` None: the TBF has lost its HTB.
    Where there are several, ``queue`` says which one's it is, from 0."""

    dev: str
    major: int
    default: int | None = UNCLASSIFIED_MINOR
    split_bytes: int = 0
    queue: int | None = None

    @property
    def key(self) -> Key:
        return ("tree", self.dev) if self.queue is None else ("tree", self.dev, self.queue)

    @property
    def is_complete(self) -> bool:
        """Whether there is an HTB as we make them."""
        return self.default == UNCLASSIFIED_MINOR

    def can_become(self, other: Tree) -> bool:
        """Whether this one is the other but for the size above which it splits."""
        return (self.major, self.default, self.split_bytes > 0, self.queue) == (
            other.major,
            other.default,
            other.split_bytes > 0,
            other.queue,
        )

    def __str__(self) -> str:
        if self.queue is not None:
            return f"qdisc htb {self.major:x}: of {self.dev}, queue {self.queue}"
        what = f"root qdisc htb {self.major:x}: of {self.dev}"
        if self.split_bytes:
            what += f", below a tbf that splits packets above {self.split_bytes} bytes"
        return what


def _class_name(major: int, minor: int, tree: int) -> str:
    # Of the first tree, or the only one, the minor says all.
    return f"{major:x}:{minor:x}" if tree else f":{minor:x}"


@dataclass(frozen=True)
class SharedClass:
    """A class that all share, in tree number ``tree``."""

    dev: str
    major: int
    minor: int
    params: HtbClass
    tree: int = 0

    @property
    def key(self) -> Key:
        return "class", self.dev, self.major, self.minor

    def __str__(self) -> str:
        role = "node ceiling" if self.minor == CEIL_MINOR else "unclassified traffic"
        rate = format_rate(self.params.ceil_bps)
        name = _class_name(self.major, self.minor, self.tree)
        return f"class {name} of {self.dev}: {role}, {rate}"


@dataclass(frozen=True)
class SharedLeaf:
    """The leaf qdisc of a class that all share, in tree number ``tree``."""

    dev: str
    major: int
    minor: int
    kind: str
    tree: int = 0

    @property
    def key(self) -> Key:
        return "leaf", self.dev, self.major, self.minor

    def __str__(self) -> str:
        name = _class_name(self.major, self.minor, self.tree)
        return f"leaf qdisc {self.kind} of class {name} of {self.dev}"


@dataclass(frozen=True)
class Clsact:
    """The qdisc that holds filters at ingress and egress, whoever made it; of another ``kind``
    only where it is the old role's and has to go."""

    dev: str
    kind: str = "clsact"

    @property
    def key(self) -> Key:
        return "clsact", self.dev

    def __str__(self) -> str:
        return f"ingress qdisc {self.kind} of {self.dev}"


@dataclass(frozen=True)
class Filter:
    """A tc filter: where it is, what it matches, what it does."""

    place: Place
    match: Match
    actions: tuple[Action, ...] = ()

    @property
    def key(self) -> Key:
        return "filter", *self.place

    @property
    def leads_away(self) -> bool:
        """Whether it is one of ours at ingress that lead into our chain: without these, packets
        pass as if we were not there."""
        place = self.place
        return place.hook == INGRESS and leads_away(place.chain, place.pref, self.classifier)

    @property
    def leads(self) -> bool:
        """Whether it has the place of ours at egress that lead packets to queues."""
        place = self.place
        return leads(place.hook, place.chain, place.pref, self.classifier)

    @property
    def classifier(self) -> str:
        """The kernel's name of what matches."""
        if isinstance(self.match, OtherMatch):
            return self.match.kind
        return "flower" if isinstance(self.match, Flower) else "fw"

    def __str__(self) -> str:
        dev, hook, chain, pref, protocol, handle, tree = self.place
        if hook == ROOT:
            return f"filter of {dev}: class from mark" + f", queue {tree}" * (tree > 0)
        if hook == EGRESS and isinstance(self.match, Flower):
            return f"egress filter {pref} of {dev}: packets to queues that have a tree"
        if hook == EGRESS:
            return f"egress filter {pref} of {dev}: marks of tree {handle >> 16:x}: to their queue"
        match, to = self.match, getattr(self.actions[-1], "dev", "") if self.actions else ""
        if chain == 0 and isinstance(match, Flower) and match.protocol in _TRANSPORTS:
            ports = str(match.low) if match.low == match.high else f"{match.low}-{match.high}"
            what = f"{protocol} {_TRANSPORTS[match.protocol]} port {ports}"
        elif chain == 0:
            what = f"{protocol} all ports"
        elif isinstance(match, FwMark):
            what = f"packets with our mark to {to}"
        else:
            what = f"other packets, unmarked, to {to}"
        return f"ingress filter {pref} of {dev}: {what}"


@dataclass(frozen=True)
class Sysctl:
    """A kernel parameter: ``name`` as in sysctl(8)."""

    name: str
    value: str

    @property
    def key(self) -> Key:
        return "sysctl", self.name

    def __str__(self) -> str:
        return f"sysctl {self.name} = {self.value}"


KernelObject = Ifb | NftTable | Mq | Tree | SharedClass | SharedLeaf | Clsact | Filter | Sysctl


class SysctlState(NamedTuple):
    """A sysctl as it is; ``value`` None: this kernel or namespace has none."""

    value: str | None
    writable: bool


@dataclass
class Observed:
    """What the kernel has.  ``classes`` is {(dev, major): {minor: class}}."""

    links: dict[str, Interface]
    #: Device of the default route.
    default: str | None = None
    qdiscs: list[Qdisc] = field(default_factory=list)
    filters: list[Filter] = field(default_factory=list)
    classes: dict[tuple[str, int], dict[int, HtbClass]] = field(default_factory=dict)
    nft: NftTable | None = None
    #: Of libnftables.
    nft_version: tuple[int, ...] = SETS_WITH_LIMITS
    sysctls: dict[str, SysctlState] = field(default_factory=dict)
    #: Processors that work, and the kernel's version.
    processors: int = 1
    kernel: tuple[int, int] = (6, 1)
    #: What the role qos_per_user_xray was told, where its settings are on this node; then also
    #: minors of classes under roots like its own, by device, and whether its nft table is there.
    old: OldRole | None = None
    old_minors: dict[str, frozenset[int]] = field(default_factory=dict)
    has_old_table: bool = False

    def root(self, dev: str) -> Qdisc | None:
        """The root qdisc of a device; None if the kernel shows none (device down)."""
        return next((q for q in self.qdiscs if q.dev == dev and q.parent == ROOT_PARENT), None)

    def ingress(self, dev: str) -> bool:
        """Whether a device has a clsact or ingress qdisc, whoever made it."""
        return any(q.dev == dev and q.parent == INGRESS_PARENT for q in self.qdiscs)
