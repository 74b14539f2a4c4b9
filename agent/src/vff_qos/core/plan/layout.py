"""The kernel objects that a node needs, and the steps from what is there to them.

Pure: `present` and `absent` take settings, what was observed and what was recorded, and return
a `Plan`.  An object is a key (what and where) with a spec (how it should be); an operation adds,
changes, removes or restores one object.  Keys:

    ("link", dev)  ("nft", table)  ("root", dev)  ("class", dev, minor)  ("leaf", dev, minor)
    ("ingress", dev)  ("filter", dev, hook, chain, pref, protocol, handle)

A root is (major, default minor, bytes): an HTB, below a TBF without a rate if packets of more than
so many bytes are to be split into frames (0: none are).

Objects are listed in the order in which they are made: packets are redirected last, and
removal goes the other way round, so that traffic flows at every step.

Ingress of the WAN device: chain 0 holds one flower filter for each protocol and port range
(preferences 20736 to 20741), which copies the connection's mark to the packet and goes on in our
chain (its number is the handle's).  There packets with our tag are redirected to the IFB as they
are; others lose the mark first, because a mark of other software that lies in conntrack must
not turn up in policy routing, where it was not before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...errors import Refused
from ..htb import (
    CEIL_MINOR,
    OURS_MASK,
    PROVISIONAL,
    TAG_MASK,
    UNCLASSIFIED_MINOR,
    HtbClass,
    classid,
    shared_class,
)
from ..settings import Settings
from ..sole_users import MAX_ADDRESSES
from ..units import format_rate

TABLE = "vff_qos"
#: Maps from a client's address to the provisional mark of its next connections.
EARLY4, EARLY6 = "early4", "early6"
#: Elements go by themselves if the agent does not renew them (it does so three times as often):
#: without it nobody corrects what they do.
EARLY_TIMEOUT_S = 300
#: IFLA_IFALIAS by which we know our own IFB device.
ALIAS = "vff-qos"
#: Depth of the IFB's ring in packets; its default of 32 stops the queue on short bursts.
IFB_TXQLEN = 1000

#: Preferences of our filters in chain 0: one a protocol for ports, then one a family for "all".
PREF_PORTS = 20736
PREF_ALL = PREF_PORTS + 4
#: The fw filter of a tree has the last preference: the kernel breaks off a listing behind it.
PREF_ROOT = 65535
_PREFS = range(PREF_PORTS, PREF_ALL + 2)
_FAMILIES = ("ip", "ipv6")
_TRANSPORTS = {6: "tcp", 17: "udp"}

_CLASSFUL = ("htb", "hfsc", "drr", "qfq", "cbq", "ets")
_CHANGEABLE = ("link", "class", "nft")

Key = tuple[Any, ...]


class Link(NamedTuple):
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


class Filter(NamedTuple):
    """A tc filter: classifier, what it matches, what it does.

    flower matches (protocol number, low port, high port) or (), fw (mask,) or (); an action is
    ("ctinfo", mask, chain), ("mark", value), ("redirect", device) or (its kind, "?").
    """

    kind: str
    match: tuple[Any, ...] = ()
    actions: tuple[tuple[Any, ...], ...] = ()


#: Parents as rtnetlink has them (TC_H_ROOT, TC_H_INGRESS).
ROOT_PARENT = 0xFFFFFFFF
INGRESS_PARENT = 0xFFFFFFF1
#: What a frame may have beyond the MTU: the Ethernet header, and tags.  A TBF drops what is larger
#: and cannot be split.
_FRAME_BYTES = 36
#: A TBF's ``limit`` for each byte of the size above which it splits: the kernel does not tell that
#: size (TCA_TBF_BURST), and below a TBF that has a tree the limit means nothing.
SPLIT_LIMIT = 1_000


def splitter(major: int) -> int:
    """Handle of the TBF above the tree with this major, where packets are split."""
    return classid(major + 1, 0)


def is_tree(qdisc: Qdisc, majors: Collection[int]) -> bool:
    """Whether this is the HTB of a tree of ours, at the root or below its splitter."""
    major = qdisc.handle >> 16
    places = (ROOT_PARENT, splitter(major) | 1)
    return qdisc.kind == "htb" and major in majors and qdisc.parent in places


@dataclass
class Observed:
    """What the kernel has.  ``classes`` is {(dev, major): {minor: class}}."""

    links: dict[str, Link]
    default: str | None = None
    qdiscs: list[Qdisc] = field(default_factory=list)
    filters: dict[Key, Filter] = field(default_factory=dict)
    classes: dict[tuple[str, int], dict[int, HtbClass]] = field(default_factory=dict)
    nft: list[dict[str, Any]] | None = None

    def root(self, dev: str) -> Qdisc | None:
        """The root qdisc of a device; None if the kernel shows none (device down)."""
        return next((q for q in self.qdiscs if q.dev == dev and q.parent == ROOT_PARENT), None)

    def ingress(self, dev: str) -> bool:
        """Whether a device has a clsact or ingress qdisc, whoever made it."""
        return any(q.dev == dev and q.parent == INGRESS_PARENT for q in self.qdiscs)


class Operation(NamedTuple):
    """One step: verb (add, change, remove, restore), object, and a line for people."""

    verb: str
    key: Key
    spec: Any
    text: str


class Plan(NamedTuple):
    """Steps in order, and what to record before and after them."""

    operations: list[Operation]
    before: dict[str, Any]
    after: dict[str, Any]


SameClass = Callable[[HtbClass, HtbClass], bool]


def desired(settings: Settings, wan: str, mtu: int = 1500) -> dict[Key, Any]:
    """Every object of ours, in the order of creation; ``mtu`` is that of the WAN device."""
    split_bytes = mtu + _FRAME_BYTES if settings.split else 0
    want: dict[Key, Any] = {
        ("link", settings.ifb): ("ifb", ALIAS, True, IFB_TXQLEN),
    }
    _tree(want, settings, settings.ifb, split_bytes, settings.unclassified_upload_bps)
    want["nft", TABLE] = normal_table(table(settings))
    _tree(want, settings, wan, split_bytes, settings.unclassified_download_bps)
    want["ingress", wan] = True
    chain = settings.major
    to_ifb = ("redirect", settings.ifb)
    want["filter", wan, "ingress", chain, 1, "all", classid(chain, 0)] = Filter(
        "fw", (TAG_MASK,), (to_ifb,)
    )
    want["filter", wan, "ingress", chain, 2, "all", 1] = Filter("flower", (), (("mark", 0), to_ifb))
    # A provisional mark's class is the same.
    copied = 0xFFFFFFFF & ~PROVISIONAL if settings.early_shaping else 0xFFFFFFFF
    mark = (("ctinfo", copied, chain),)
    at = ("filter", wan, "ingress", 0)
    for i, family in enumerate(_FAMILIES):
        if not settings.service_ports:
            key: Key = (*at, PREF_ALL + i, family, 1)
            want[key] = Filter("flower", (), mark)
        for j, number in enumerate(_TRANSPORTS):
            for low, high in settings.service_ports:
                key = (*at, PREF_PORTS + 2 * i + j, family, low << 16 | high)
                want[key] = Filter("flower", (number, low, high), mark)
    return want


def _tree(
    want: dict[Key, Any], settings: Settings, dev: str, split_bytes: int, unclassified_bps: int
) -> None:
    want["root", dev] = (settings.major, UNCLASSIFIED_MINOR, split_bytes)
    want["class", dev, CEIL_MINOR] = shared_class(settings.node_ceil_bps)
    want["class", dev, UNCLASSIFIED_MINOR] = shared_class(unclassified_bps)
    want["leaf", dev, UNCLASSIFIED_MINOR] = settings.leaf
    want["filter", dev, "root", 0, PREF_ROOT, "all", 0] = Filter("fw")


def table(settings: Settings) -> list[dict[str, Any]]:
    """Chains and rules of our nft table as libnftables lists them, without handles.

    ``post`` gives packets of a marked flow their flow's mark.  ``pre`` takes our mark away that a
    packet carried through the IFB, before routing can see it.  ``early`` gives new flows to the
    service ports a provisional mark if their source is known; the maps are filled by the agent.
    """
    tag = classid(settings.major, 0)
    ct_mark = {"ct": {"key": "mark"}}

    def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
        return {"match": {"op": op, "left": left, "right": right}}

    def tagged(what: str, mask: int) -> dict[str, Any]:
        return match({"&": [{what: {"key": "mark"}}, mask]}, tag)

    def chain(name: str, hook: str, prio: int) -> dict[str, Any]:
        return {
            "chain": {
                "family": "inet",
                "table": TABLE,
                "name": name,
                "type": "filter",
                "hook": hook,
                "prio": prio,
                "policy": "accept",
            }
        }

    def rule(name: str, matches: list[Any], key: str, value: Any) -> dict[str, Any]:
        mangle = {"mangle": {"key": {key: {"key": "mark"}}, "value": value}}
        return {
            "rule": {"family": "inet", "table": TABLE, "chain": name, "expr": [*matches, mangle]}
        }

    def early_map(name: str, kind: str) -> dict[str, Any]:
        return {
            "map": {
                "family": "inet",
                "table": TABLE,
                "name": name,
                "type": kind,
                "map": "mark",
                "flags": ["timeout"],
                "timeout": EARLY_TIMEOUT_S,
                "size": MAX_ADDRESSES,
            }
        }

    objects = [
        {"table": {"family": "inet", "name": TABLE}},
        chain("pre", "prerouting", -300),
        chain("post", "postrouting", -150),
        rule("pre", [tagged("meta", TAG_MASK)], "meta", 0),
    ]
    if not settings.early_shaping:
        return [*objects, rule("post", [tagged("ct", TAG_MASK)], "meta", ct_mark)]
    new = [
        match({"ct": {"key": "state"}}, "new", "in"),
        match(ct_mark, 0),
        match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}),
    ]
    if settings.service_ports:
        ports = [low if low == high else {"range": [low, high]} for low, high in
                 settings.service_ports]  # fmt: skip
        # libnftables makes a plain value of a set of one.
        port: Any = ports[0] if len(ports) == 1 else {"set": ports}
        new.append(match({"payload": {"protocol": "th", "field": "dport"}}, port))
    source4 = {"payload": {"protocol": "ip", "field": "saddr"}}
    source6 = {"&": [{"payload": {"protocol": "ip6", "field": "saddr"}}, "ffff:ffff:ffff:ffff::"]}
    final = {"&": [ct_mark, 0xFFFFFFFF & ~PROVISIONAL]}
    return [
        *objects,
        # Behind conntrack (-200), before DNAT (-100): the ports are those that clients use.
        chain("early", "prerouting", -150),
        early_map(EARLY4, "ipv4_addr"),
        early_map(EARLY6, "ipv6_addr"),
        rule("post", [tagged("ct", OURS_MASK)], "meta", final),
        rule("early", new, "ct", {"map": {"key": source4, "data": f"@{EARLY4}"}}),
        rule("early", new, "ct", {"map": {"key": source6, "data": f"@{EARLY6}"}}),
    ]


def normal_table(listing: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A listing of libnftables without what differs between runs and versions.

    Handles and elements of maps go; ``mark & 0xffff0000 == X``, which may be listed as the prefix
    ``X/16``, becomes the former; rules stay in their order, the rest is sorted.
    """
    rank = {"table": 0, "chain": 1, "rule": 3}
    items = []
    for item in listing:
        for kind, body in item.items():
            if kind != "metainfo":
                plain = {k: v for k, v in body.items() if k not in ("handle", "elem")}
                if isinstance(plain.get("flags"), str):
                    plain["flags"] = [plain["flags"]]  # so newer versions list a single one
                items.append((kind, _plain(plain)))
    items.sort(key=lambda i: (rank.get(i[0], 2), str(i[1].get("chain", i[1].get("name")))))
    return [{kind: body} for kind, body in items]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    right = value.get("right")
    if isinstance(right, dict) and "prefix" in right:
        prefix = right["prefix"]
        mask = 0xFFFFFFFF << (32 - prefix["len"]) & 0xFFFFFFFF
        return {**value, "left": {"&": [value["left"], mask]}, "right": prefix["addr"]}
    return {key: _plain(item) for key, item in value.items()}


def _majors(settings: Settings, recorded: dict[str, Any]) -> tuple[int, ...]:
    return settings.major, int(recorded.get("major", settings.major))


def observed_objects(
    settings: Settings, observed: Observed, recorded: dict[str, Any]
) -> dict[Key, Any]:
    """The observed objects that are ours, in the form of `desired`.

    Classes, leaf and filters of a tree count only if its root is what it should be: otherwise the
    root is made anew and they go with it.  An ingress qdisc is listed whoever made it.
    """
    majors = _majors(settings, recorded)
    have: dict[Key, Any] = {}
    for dev, link in observed.links.items():
        if _our_link(dev, link, settings):
            have["link", dev] = (link.kind, link.alias, link.up, link.txqlen)
    for qdisc in observed.qdiscs:
        dev, major = qdisc.dev, qdisc.handle >> 16
        if qdisc.parent == INGRESS_PARENT:
            have["ingress", dev] = True
        if qdisc.parent == ROOT_PARENT and _is_splitter(qdisc, majors):
            have.setdefault(("root", dev), (major - 1, None, qdisc.limit // SPLIT_LIMIT))
        if not is_tree(qdisc, majors):
            continue
        above = observed.root(dev)
        split_bytes = above.limit // SPLIT_LIMIT if above else 0
        have["root", dev] = (major, qdisc.default, split_bytes)
        kept = (settings.major, UNCLASSIFIED_MINOR, int(settings.split))
        if not _same_tree(have["root", dev], kept):
            continue
        for minor, params in observed.classes.get((dev, major), {}).items():
            if minor in (CEIL_MINOR, UNCLASSIFIED_MINOR):
                have["class", dev, minor] = params
        parent = classid(major, UNCLASSIFIED_MINOR)
        for leaf in observed.qdiscs:
            if leaf.dev == dev and leaf.parent == parent:
                have["leaf", dev, UNCLASSIFIED_MINOR] = leaf.kind
        tree = [key for key in observed.filters if key[1:5] == (dev, "root", 0, PREF_ROOT)]
        if tree:
            # With a handle beside it cls_fw no longer takes the mark itself for the classid.
            key: Key = (*tree[0][:6], 0)
            have[key] = Filter("fw", () if len(tree) == 1 else ("handles",))
    if observed.nft is not None:
        have["nft", TABLE] = normal_table(observed.nft)
    for key, spec in observed.filters.items():
        if key[2] == "ingress" and _our_filter(key, spec, majors):
            have[key] = spec
    return have


def _is_splitter(qdisc: Qdisc, majors: Collection[int]) -> bool:
    return qdisc.kind == "tbf" and qdisc.limit > 0 and qdisc.handle in map(splitter, majors)


def _same_tree(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two roots differ at most in the size above which packets are split."""
    return (*one[:2], one[2] > 0) == (*other[:2], other[2] > 0)


def _our_link(dev: str, link: Link, settings: Settings) -> bool:
    # An IFB of our name that is down and has no alias is what a creation that was cut short leaves.
    fresh = dev == settings.ifb and not link.alias and not link.up
    return link.kind == "ifb" and (link.alias == ALIAS or fresh)


def _our_filter(key: Key, spec: Filter, majors: tuple[int, ...]) -> bool:
    return key[3] in majors or leads_away(key, spec)


def leads_away(key: Key, spec: Filter) -> bool:
    """Whether a filter at ingress is one of ours that lead into our chain: without these, packets
    pass as if we were not there."""
    _, _dev, _hook, chain, pref, _protocol, _handle = key
    return chain == 0 and pref in _PREFS and spec.kind == "flower"


def find_wan(settings: Settings, observed: Observed) -> str:
    """The name of the WAN device; Refused with one sentence if there is none."""
    names = sorted(n for n, link in observed.links.items() if n != "lo" and link.kind != "ifb")
    there = ", ".join(names[:20]) or "none"
    if settings.wan == "auto":
        if observed.default is None:
            raise Refused(f"wan: auto finds no default route; set wan to one of: {there}")
        return observed.default
    for name, link in observed.links.items():
        if settings.wan == name or settings.wan in link.altnames:
            return name
    raise Refused(f"wan: interface {settings.wan} does not exist; there are: {there}")


def refusals(
    settings: Settings, observed: Observed, recorded: dict[str, Any], wan: str
) -> list[str]:
    """What forbids us to act on this host, one sentence each; empty if nothing does."""
    found = []
    link = observed.links.get(settings.ifb)
    if settings.ifb == wan:
        found.append(f"ifb: {settings.ifb} is the WAN device; choose another name")
    elif link and not _our_link(settings.ifb, link, settings):
        found.append(
            f"ifb: interface {settings.ifb} exists and is not ours "
            f"(kind {link.kind or 'device'}); remove it or choose another name"
        )
    root = observed.root(wan)
    if root and _foreign_root(root, _majors(settings, recorded)) and not settings.take_foreign_root:
        found.append(
            f"the root qdisc of {wan} is {root.kind} {root.handle >> 16:x}:, which somebody set; "
            f"delete it (tc qdisc del dev {wan} root) or allow take_foreign_root"
        )
    for key, spec in observed.filters.items():
        _, dev, hook, chain, pref, _protocol, _handle = key
        if (dev, hook, chain) == (wan, "ingress", 0) and pref in _PREFS and (spec.kind != "flower"):
            found.append(
                f"the ingress filter {spec.kind} of {wan} holds preference {pref}, "
                f"which we need; move it"
            )
    return found


def _foreign_root(root: Qdisc, majors: tuple[int, ...]) -> bool:
    # The kernel gives its defaults no handle; whatever has one was set by somebody.
    return root.handle != 0 and not _our_root(root, majors)


def _our_root(root: Qdisc, majors: tuple[int, ...]) -> bool:
    return is_tree(root, majors) or _is_splitter(root, majors)


def present(
    settings: Settings, observed: Observed, recorded: dict[str, Any], same_class: SameClass
) -> Plan:
    """The steps to `desired`; Refused, with every reason, if we must not act."""
    wan = find_wan(settings, observed)
    if reasons := refusals(settings, observed, recorded, wan):
        raise Refused("; ".join(reasons))
    devices = recorded.get("devices", {})
    entry = _remember(settings, observed, recorded, wan)
    want = desired(settings, wan, observed.links[wan].mtu)
    have = observed_objects(settings, observed, recorded)
    before = {"major": recorded.get("major", settings.major), "devices": {**devices, wan: entry}}
    after = {"major": settings.major, "devices": {wan: entry}}
    operations = _diff(want, have, observed, devices, same_class)
    return Plan(operations, before if operations else after, after)


def absent(settings: Settings, observed: Observed, recorded: dict[str, Any]) -> Plan:
    """The steps that take every object of ours away, wherever it is."""
    have = observed_objects(settings, observed, recorded)
    operations = _diff({}, have, observed, recorded.get("devices", {}), lambda a, b: a == b)
    return Plan(operations, recorded, {})


def _remember(
    settings: Settings, observed: Observed, recorded: dict[str, Any], wan: str
) -> dict[str, Any]:
    """What `absent` must know of the WAN device: the qdiscs of somebody that ours replaces, and
    whether the ingress qdisc is ours (None: unknown, the record was lost)."""
    index = observed.links[wan].ifindex
    majors = _majors(settings, recorded)
    entry = recorded.get("devices", {}).get(wan)
    if entry and entry["index"] != index:
        entry = None
    root = observed.root(wan)
    ours = root is not None and _our_root(root, majors)
    traces = ours or any(
        key[1:3] == (wan, "ingress") and _our_filter(key, spec, majors)
        for key, spec in observed.filters.items()
    )
    if ours:
        qdiscs = entry["qdiscs"] if entry else []
    elif root and _foreign_root(root, majors):
        qdiscs = [
            {"kind": q.kind, "handle": q.handle, "parent": q.parent, "options": q.options.hex()}
            for q in observed.qdiscs
            if q.dev == wan and q.handle and q.parent != INGRESS_PARENT
        ]
    else:
        qdiscs = []
    if not observed.ingress(wan):
        ingress: bool | None = True
    elif traces:
        ingress = entry["ingress"] if entry else None
    else:
        ingress = False
    return {"index": index, "qdiscs": qdiscs, "ingress": ingress}


_RANK = {"link": 0, "nft": 1, "root": 2, "class": 3, "leaf": 4, "ingress": 5, "filter": 6}


def _removal_order(key: Key) -> tuple[int, bool, int]:
    chain_0 = key[0] == "filter" and key[3] == 0
    return _RANK[key[0]], chain_0, key[2] if key[0] == "class" else 0


def _diff(
    want: dict[Key, Any],
    have: dict[Key, Any],
    observed: Observed,
    devices: dict[str, Any],
    same_class: SameClass,
) -> list[Operation]:
    operations = []

    def step(verb: str, key: Key, spec: Any) -> None:
        operations.append(Operation(verb, key, spec, f"{verb} {_describe(key, spec)}"))

    for key, spec in want.items():
        if key not in have:
            step("add", key, spec)
            continue
        now = have[key]
        if now == spec or (key[0] == "class" and same_class(now, spec)):
            continue
        if key[0] in _CHANGEABLE or (key[0] == "root" and _same_tree(now, spec)):
            step("change", key, spec)
            continue
        # The kernel replaces no qdisc by one of another kind under the same handle.
        if key[0] != "root" or abs(now[0] - spec[0]) < 2:
            step("remove", key, now)
        step("add", key, spec)
    surplus = [key for key in have if key not in want]
    for key in sorted(surplus, key=_removal_order, reverse=True):
        kind, dev = key[0], key[1]
        if kind == "ingress":
            if _ingress_removable(dev, have, observed, devices):
                step("remove", key, have[key])
            continue
        if kind != "link" and ("link", dev) in surplus:
            continue  # goes with the device
        if ("root", dev) in surplus and (
            kind in ("class", "leaf") or (kind == "filter" and key[2] == "root")
        ):
            continue  # goes with the root
        if kind == "root" and have[key][1] not in (UNCLASSIFIED_MINOR, None):
            continue  # bears our number, but is not of our making
        step("remove", key, have[key])
        if kind == "root" and (qdiscs := devices.get(dev, {}).get("qdiscs")):
            step("restore", key, qdiscs)
    return operations


def _ingress_removable(
    dev: str, have: dict[Key, Any], observed: Observed, devices: dict[str, Any]
) -> bool:
    mine = [key for key in have if key[0] == "filter" and key[1:3] == (dev, "ingress")]
    others = any(
        key[1] == dev and key[2] in ("ingress", "egress") and key not in have
        for key in observed.filters
    )
    made = devices[dev]["ingress"] if dev in devices else None
    known = dev in devices or bool(mine) or ("root", dev) in have
    return known and made is not False and not others


def _describe(key: Key, spec: Any) -> str:
    kind, name = key[0], key[1]
    if kind == "link":
        return f"ifb device {name}"
    if kind == "nft":
        return f"nft table inet {name}"
    if kind == "root" and isinstance(spec, list):
        root = spec[0]
        partly = ", without its classes and filters" if root["kind"] in _CLASSFUL else ""
        return f"root qdisc {root['kind']} {root['handle'] >> 16:x}: of {name}{partly}"
    if kind == "root":
        split = f", below a tbf that splits packets above {spec[2]} bytes" if spec[2] else ""
        return f"root qdisc htb {spec[0]:x}: of {name}{split}"
    if kind == "class":
        role = "node ceiling" if key[2] == CEIL_MINOR else "unclassified traffic"
        return f"class :{key[2]:x} of {name}: {role}, {format_rate(spec.ceil_bps)}"
    if kind == "leaf":
        return f"leaf qdisc {spec} of class :{key[2]:x} of {name}"
    if kind == "ingress":
        return f"ingress qdisc clsact of {name}"
    return _describe_filter(key, spec)


def _describe_filter(key: Key, spec: Filter) -> str:
    _, dev, hook, chain, pref, protocol, _handle = key
    if hook == "root":
        return f"filter of {dev}: class from mark"
    if chain == 0 and spec.match and spec.match[0] in _TRANSPORTS:
        number, low, high = spec.match
        ports = str(low) if low == high else f"{low}-{high}"
        what = f"{protocol} {_TRANSPORTS[number]} port {ports}"
    elif chain == 0:
        what = f"{protocol} all ports"
    elif spec.kind == "fw":
        what = f"packets with our mark to {spec.actions[-1][-1]}"
    else:
        what = f"other packets, unmarked, to {spec.actions[-1][-1]}"
    return f"ingress filter {pref} of {dev}: {what}"
