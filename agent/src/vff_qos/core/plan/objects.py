"""What a node has and needs in the kernel, as data.

*Objects* are what we make, change and remove: an `Ifb`, the `NftTable`, a `Tree` with its
`SharedClass`, `SharedLeaf` and filter, the `Clsact`, `Filter` and `Sysctl`.  The ``key`` of an
object says which one it is, all else how it should be.  `Interface`, `Qdisc` and `Observed` are
what the kernel shows, ours or not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from ..htb import CEIL_MINOR, UNCLASSIFIED_MINOR, HtbClass, classid
from ..old_role import OldRole
from ..units import format_rate
from .nft_table import SETS_WITH_LIMITS, TABLE, Listing

#: IFLA_IFALIAS by which we know our own IFB device.
ALIAS = "vff-qos"
#: Depth of the IFB's ring in packets; its default of 32 stops the queue on short bursts.
IFB_TXQLEN = 1000

#: Preferences of our filters in chain 0: one a protocol for ports, then one a family for "all".
PREF_PORTS = 20736
PREF_ALL = PREF_PORTS + 4
OUR_PREFS = range(PREF_PORTS, PREF_ALL + 2)
#: The fw filter of a tree has the last preference: the kernel breaks off a listing after it.
PREF_ROOT = 65535

#: Parents as rtnetlink has them (TC_H_ROOT, TC_H_INGRESS).
ROOT_PARENT = 0xFFFFFFFF
INGRESS_PARENT = 0xFFFFFFF1
#: A TBF's ``limit`` for each byte of the size above which it splits: the kernel does not tell that
#: size (TCA_TBF_BURST), and below a TBF that has a tree the limit means nothing.
SPLIT_LIMIT = 1_000

_TRANSPORTS = {6: "tcp", 17: "udp"}
#: Hooks of filters: those of clsact, and the HTB of a tree.
INGRESS, EGRESS, ROOT = "ingress", "egress", "root"

Key = tuple[str | int, ...]


# --- what the kernel shows ---


class Interface(NamedTuple):
    """A network interface; ``txqlen`` in packets, ``mtu`` in bytes."""

    ifindex: int
    kind: str
    alias: str
    up: bool
    txqlen: int
    altnames: tuple[str, ...] = ()
    mtu: int = 1500


class Qdisc(NamedTuple):
    """A qdisc; ``options`` is the raw TCA_OPTIONS, ``default`` the default minor of an HTB,
    ``limit`` that of a TBF without a rate in bytes."""

    dev: str
    kind: str
    handle: int
    parent: int
    options: bytes = b""
    default: int = 0
    limit: int = 0


def splitter(major: int) -> int:
    """Handle of the TBF above the tree with this major, where packets are split."""
    return classid(major + 1, 0)


def is_tree(qdisc: Qdisc, majors: Collection[int]) -> bool:
    """Whether this is the HTB of a tree of ours, at the root or below its splitter."""
    major = qdisc.handle >> 16
    places = (ROOT_PARENT, splitter(major) | 1)
    return qdisc.kind == "htb" and major in majors and qdisc.parent in places


def is_splitter(qdisc: Qdisc, majors: Collection[int]) -> bool:
    """Whether this is the TBF above a tree of ours."""
    return qdisc.kind == "tbf" and qdisc.limit > 0 and qdisc.handle in map(splitter, majors)


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


class Redirect(NamedTuple):
    """act_mirred: the packet goes to interface ``dev``."""

    dev: str


class OtherAction(NamedTuple):
    """An action that we never write."""

    kind: str


Match = FwMark | Flower | OtherMatch
Action = CopyMark | SetMark | Redirect | OtherAction


class Place(NamedTuple):
    """Where a filter is; ``hook`` is INGRESS, EGRESS or ROOT, ``protocol`` such as ``ipv6``."""

    dev: str
    hook: str
    chain: int
    pref: int
    protocol: str
    handle: int


# --- objects of ours ---


@dataclass(frozen=True)
class Ifb:
    """The device that uploads pass."""

    dev: str
    alias: str = ALIAS
    up: bool = True
    txqlen: int = IFB_TXQLEN

    @property
    def key(self) -> Key:
        return "ifb", self.dev

    def __str__(self) -> str:
        return f"ifb device {self.dev}"


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
class Tree:
    """An HTB at the root of a device; below a TBF that splits packets of more than
    ``split_bytes`` into frames, if that is not 0.  ``default`` None: the TBF has lost its HTB."""

    dev: str
    major: int
    default: int | None = UNCLASSIFIED_MINOR
    split_bytes: int = 0

    @property
    def key(self) -> Key:
        return "tree", self.dev

    @property
    def is_complete(self) -> bool:
        """Whether there is an HTB as we make them."""
        return self.default == UNCLASSIFIED_MINOR

    def can_become(self, other: Tree) -> bool:
        """Whether this one is the other but for the size above which it splits."""
        return (self.major, self.default, self.split_bytes > 0) == (
            other.major,
            other.default,
            other.split_bytes > 0,
        )

    def __str__(self) -> str:
        what = f"root qdisc htb {self.major:x}: of {self.dev}"
        if self.split_bytes:
            what += f", below a tbf that splits packets above {self.split_bytes} bytes"
        return what


@dataclass(frozen=True)
class SharedClass:
    """A class that all share."""

    dev: str
    major: int
    minor: int
    params: HtbClass

    @property
    def key(self) -> Key:
        return "class", self.dev, self.major, self.minor

    def __str__(self) -> str:
        role = "node ceiling" if self.minor == CEIL_MINOR else "unclassified traffic"
        rate = format_rate(self.params.ceil_bps)
        return f"class :{self.minor:x} of {self.dev}: {role}, {rate}"


@dataclass(frozen=True)
class SharedLeaf:
    """The leaf qdisc of a class that all share."""

    dev: str
    major: int
    minor: int
    kind: str

    @property
    def key(self) -> Key:
        return "leaf", self.dev, self.major, self.minor

    def __str__(self) -> str:
        return f"leaf qdisc {self.kind} of class :{self.minor:x} of {self.dev}"


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


def leads_away(chain: int, pref: int, classifier: str) -> bool:
    """Whether a filter at ingress is one of ours that lead into our chain."""
    return chain == 0 and pref in OUR_PREFS and classifier == "flower"


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
    def classifier(self) -> str:
        """The kernel's name of what matches."""
        if isinstance(self.match, OtherMatch):
            return self.match.kind
        return "flower" if isinstance(self.match, Flower) else "fw"

    def __str__(self) -> str:
        dev, hook, chain, pref, protocol, _handle = self.place
        if hook == ROOT:
            return f"filter of {dev}: class from mark"
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


KernelObject = Ifb | NftTable | Tree | SharedClass | SharedLeaf | Clsact | Filter | Sysctl


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
