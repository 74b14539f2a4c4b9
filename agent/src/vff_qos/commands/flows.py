"""Live flows for people: whose each is, since when, how much passed, and why it is nobody's."""

from __future__ import annotations

import ipaddress
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from ..core.claims.trust import address_key
from ..core.flow import Flow, end_text
from ..core.flows.ends import ServiceEnds, unmapped
from ..core.health.findings import OK
from ..core.health.rules import judge
from ..core.htb import (
    MINOR_MASK,
    PROVISIONAL,
)
from ..core.owners import ACTIVE, DEVICE, RESTRICTED_KEY, Owner
from ..core.settings import Settings
from ..core.units import format_duration
from ..errors import Refused
from ..host_facts import ports_text
from ..kernel.packed.addresses import local_addresses
from ..kernel.packed.conntrack import Conntrack, Detail, decode_tuple
from ..kernel.packed.netlink import Netlink
from ..render import display_name, place_name
from .facts import Seen, look
from .node import Node
from .said import as_json, look_up, why_restricted
from .said import describe as describe_word

#: Findings that say why flows are nobody's.
_CAUSES = (
    "disabled", "suspended", "follower", "source_missing", "masked", "source_silent", "no_flow",
    "no_port", "not_set_up", "lag",
)  # fmt: skip


class SeenFrom(NamedTuple):
    """Where somebody comes from: a packed address, and a port or None for all."""

    address: bytes
    port: int | None


#: What is meant as an address: numbers with three dots or more, brackets, hex with colons.
_LIKE_A_PLACE = re.compile(
    r"\d+(\.\d+){3,}([:/].*)?|\[[\da-f:.]*(%[^]]*)?\]?(:.*)?|[\da-f]*:[\da-f]*:[\da-f:.]*([%/].*)?",
    re.ASCII | re.IGNORECASE,
)


def parse_place(text: str) -> SeenFrom | None:
    """``IP``, ``IP:PORT``, ``[IP]`` or ``[IP]:PORT``; None if it is none of them."""
    host, port = text, None
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or rest[:1] not in ("", ":"):
            return None
        port = rest[1:] if rest else None
    elif text.count(":") == 1:
        host, port = text.split(":")
    try:
        address = ipaddress.ip_address(host).packed
    except ValueError:
        return None
    if port is None:
        return SeenFrom(unmapped(address), None)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        return None
    return SeenFrom(unmapped(address), int(port))


def meant_place(node: Node, text: str) -> SeenFrom | None:
    """The place that a person means; None if they mean a user.

    Raises Refused for what looks like an address, is none, and is nobody's name: ``999.1.1.1``.
    """
    place, name = parse_place(text), node.name_of(text)
    if place is None and not _LIKE_A_PLACE.fullmatch(text):
        return None
    # A name that is somebody's is a name, whatever it looks like.
    if name in (owner.key for owner in node.state.owners()):
        return None
    if place is None and name not in node.policy_in_force.users:
        what = "say EMAIL, IP, IP:PORT or [IP]:PORT"
        raise Refused(f"{text!r} is no address, and no user has that name; {what}")
    return place


def read_place(node: Node, place: SeenFrom, deep: bool = True) -> dict[str, Any]:
    """Everybody seen from a place, as JSON; ``deep`` as for `said.look_up`.

    Raises KernelRefused, Refused.
    """
    seen = look(node)
    settings = seen.settings
    if settings is None:
        raise Refused(seen.facts.settings_problem)
    route = Netlink(0)
    ends = ServiceEnds(settings.service_ports, local_addresses(route))
    route.close()
    by_minor = {owner.minor: owner for owner in seen.owners}
    causes = [f.sentence for f in judge(seen.facts) if f.level != OK and f.kind in _CAUSES]
    flows, clients = [], []
    for entry in _dump(0, 0):
        flow = decode_tuple(entry.tuple_raw)
        if flow is None:
            continue
        client = _client(flow, ends)
        if not _is_from(client, place):
            continue
        owner = by_minor.get(entry.mark & MINOR_MASK) if _is_ours(entry.mark, seen) else None
        shown = describe(flow, entry, seen.facts.now_s)
        shown["user"] = display_name(owner.key) if owner else None
        shown["why"] = "" if owner else _why(flow, entry.mark, ends, seen, causes)
        shown["restricted"] = owner is not None and owner.key.startswith(RESTRICTED_KEY)
        shown["device"] = owner is not None and _is_device(owner)
        flows.append(shown)
        clients.append(pack(*client))
    _add_words(settings, flows, clients, deep)
    static = {display_name(o.key) for o in seen.owners if o.minor in seen.static}
    for shown in flows:
        if shown["user"] in static:
            shown["unsaid"] = ""
        elif shown["restricted"]:
            shown["why"] = restricted_why(shown)
        elif shown["user"] is None and shown["said"] and not shown["said"][-1]["email"]:
            shown["why"] = describe_word(shown["said"][-1])
    key = address_key(place.address)
    return {
        "place": end_text(place.address, place.port) if place.port else _text(place.address),
        "users": sorted({f["user"] for f in flows if f["user"] and not f["user"].startswith("(")}),
        "restricted": [o.minor for o in _restricted_of(seen.owners, [key])],
        "flows": flows,
    }


#: Why a flow is in a class that no user has, where its lines are not to be found.
_RESTRICTED_WHY = (
    "its claim cannot be trusted (text of a stranger, two users, or a line that does not parse)"
)
#: Why there is no line for a flow.
_UNSAID = "none names them in what was read of the source, from its end backwards"
_DEVICE_WHY = "restricted until another of the user's devices is silent: a device too many"
#: When that ends.
RESTRICTED_UNTIL = "until a line that can be trusted names it, or it ends"


def restricted_why(flow: dict[str, Any]) -> str:
    """Why a flow is restricted, and until when."""
    if flow.get("device"):
        return _DEVICE_WHY
    why = why_restricted(flow["said"]) or _RESTRICTED_WHY
    return f"restricted {RESTRICTED_UNTIL}: {why}"


def pack(address: bytes, port: int) -> bytes:
    """A client's end as claims name it."""
    return address + port.to_bytes(2, "big")


def _add_words(
    settings: Settings, flows: list[dict[str, Any]], clients: list[bytes], deep: bool
) -> None:
    """What the source of claims said of each flow; ``unsaid``: why nothing can be found."""
    said = look_up(settings, clients, deep)
    for flow, client in zip(flows, clients, strict=True):
        flow["said"] = as_json(said.words.get(client, []))
        flow["unsaid"] = "" if flow["said"] else said.problem or _UNSAID


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))


def _client(flow: Flow, ends: ServiceEnds) -> tuple[bytes, int]:
    """Address and port of the flow's far end: who opened it, unless it goes to a service port."""
    oriented = _oriented(flow, ends)
    if oriented is None:
        return unmapped(flow.src), flow.sport
    client = oriented[0]
    return client[:-2], int.from_bytes(client[-2:], "big")


def _oriented(flow: Flow, ends: ServiceEnds) -> tuple[bytes, bytes] | None:
    """The client's end and ours, packed; None if the flow goes to no service port."""
    return ends.orient(
        flow.proto, flow.src, flow.sport.to_bytes(2, "big"), flow.dst, flow.dport.to_bytes(2, "big")
    )


def _is_from(client: tuple[bytes, int], place: SeenFrom) -> bool:
    if place.port is not None:
        return client == (place.address, place.port)
    # What one customer has in IPv6 is a /64.
    return address_key(client[0]) == address_key(place.address)


def _is_ours(mark: int, seen: Seen) -> bool:
    assert seen.settings is not None
    return seen.settings.layout.is_ours(mark)


def _why(flow: Flow, mark: int, ends: ServiceEnds, seen: Seen, causes: list[str]) -> str:
    """Why a flow is nobody's."""
    assert seen.settings is not None
    if mark and not _is_ours(mark, seen):
        return f"bears the mark {mark:#x} of other software, which is left as it is"
    oriented = _oriented(flow, ends)
    if oriented is None:
        return (
            f"port {flow.dport} is none of the service ports ({ports_text(seen.settings)}), or the "
            "address is none of this node's"
        )
    if mark:
        return f"bears our mark {mark:#x}, whose class is no user's any more"
    if causes:
        return causes[0]
    return (
        "no claim has named it: the engine tells of a connection when it is used first, and of "
        "users without an email never"
    )


def describe(flow: Flow, entry: Detail, now_s: float) -> dict[str, Any]:
    """A flow as JSON; bytes and age are None where the kernel does not count them."""
    return {
        "flow": str(flow),
        "place": place_name(address_key(unmapped(flow.src))),
        "mark": f"{entry.mark:#x}",
        "provisional": bool(entry.mark & PROVISIONAL),
        "up_bytes": entry.orig_bytes,
        "down_bytes": entry.reply_bytes,
        "age_s": round(now_s - entry.started_ns / 1e9) if entry.started_ns else None,
    }


def _dump(mark: int, mask: int) -> list[Detail]:
    conntrack = Conntrack()
    try:
        return conntrack.dump_details(mark, mask)
    finally:
        conntrack.close()


def flows_of(
    owner: Owner,
    owners: Iterable[Owner],
    settings: Settings,
    deep: bool = True,
    static: Collection[int] = (),
) -> list[dict[str, Any]]:
    """A user's live flows, and the restricted ones of the addresses that they come from.

    ``deep`` as for `said.look_up`; ``static`` are the minors of services and networks.
    """
    now = time.time()
    entries = [
        (entry, flow)
        for entry in _dump(settings.layout.tag, settings.layout.mask)
        if (flow := decode_tuple(entry.tuple_raw)) is not None
    ]
    own = [(e, flow) for e, flow in entries if e.mark & MINOR_MASK == owner.minor]
    if owner.minor in static:
        # No line names them: the kernel knows them by port or address.
        return [
            {**describe(f, e, now), "restricted": False, "said": [], "unsaid": ""} for e, f in own
        ]
    keys = {address_key(unmapped(flow.src)) for _entry, flow in own}
    minors = {o.minor for o in _restricted_of(owners, keys)}
    slow = {o.minor for o in owners if o.state == ACTIVE and o.key.endswith(DEVICE + owner.key)}
    restricted = [
        (entry, flow)
        for entry, flow in entries
        if (entry.mark & MINOR_MASK in minors and address_key(unmapped(flow.src)) in keys)
        or entry.mark & MINOR_MASK in slow
    ]
    found = [{**describe(flow, entry, now), "restricted": False} for entry, flow in own]
    found += [
        {
            **describe(flow, entry, now),
            "restricted": True,
            "device": entry.mark & MINOR_MASK in slow,
        }
        for entry, flow in restricted
    ]
    clients = [pack(unmapped(flow.src), flow.sport) for _entry, flow in (*own, *restricted)]
    _add_words(settings, found, clients, deep)
    return found


def read_restricted(node: Node, deep: bool = False) -> list[dict[str, Any]]:
    """Who is restricted now, and why, each class with its connections; ``deep`` as before.

    Raises ConfigError, KernelRefused, StateError.
    """
    settings, now_s = node.settings_in_force, time.time()
    owners = [
        owner
        for owner in node.state.owners()
        if owner.state == ACTIVE and owner.key.startswith(RESTRICTED_KEY)
    ]
    of_class: dict[int, list[dict[str, Any]]] = {owner.minor: [] for owner in owners}
    slow = {owner.minor for owner in owners if _is_device(owner)}
    flows, clients = [], []
    for entry in _dump(settings.layout.tag, settings.layout.mask) if owners else []:
        flow = decode_tuple(entry.tuple_raw)
        if flow is not None and entry.mark & MINOR_MASK in of_class:
            shown = describe(flow, entry, now_s)
            shown["device"] = entry.mark & MINOR_MASK in slow
            flows.append(shown)
            clients.append(pack(unmapped(flow.src), flow.sport))
            of_class[entry.mark & MINOR_MASK].append(flows[-1])
    _add_words(settings, flows, clients, deep)
    for shown in flows:
        shown["why"] = restricted_why(shown)
    return [
        {"who": display_name(o.key), "since": o.since, "flows": of_class[o.minor]}
        for o in sorted(owners, key=lambda o: -len(of_class[o.minor]))
    ]


def _is_device(owner: Owner) -> bool:
    """Whether an owner's class is that of a device too many."""
    return owner.key.startswith(RESTRICTED_KEY) and DEVICE in owner.key


def _restricted_of(owners: Iterable[Owner], keys: Iterable[bytes]) -> list[Owner]:
    """The restricted classes of some addresses; the one of all further addresses is among them."""
    wanted = {RESTRICTED_KEY, *(f"{RESTRICTED_KEY}{key.hex()}" for key in keys)}
    return [o for o in owners if o.state == ACTIVE and o.key.partition("/")[0] in wanted]


def render_flow(flow: dict[str, Any]) -> str:
    """One flow in one line."""
    parts = [flow["flow"]]
    if flow["age_s"] is not None:
        parts.append(f"for {format_duration(flow['age_s'])}")
    if flow["up_bytes"] is not None:
        parts.append(f"{flow['up_bytes'] / 1e6:.1f} MB up, {flow['down_bytes'] / 1e6:.1f} MB down")
    if flow["provisional"]:
        parts.append("given in advance, not confirmed yet")
    if flow["said"] and not flow["restricted"]:
        parts.append(describe_word(flow["said"][-1]))
    return ", ".join(parts)


def render_unsaid(flows: list[dict[str, Any]]) -> list[str]:
    """Why no line is shown for some flows: a line for each reason."""
    counts = Counter(flow["unsaid"] for flow in flows if flow["unsaid"])
    return [f"{count} without a line: {why}" for why, count in counts.items()]


def render_place(found: dict[str, Any]) -> str:
    """Everybody seen from a place, for people."""
    flows = found["flows"]
    users = ", ".join(found["users"]) or "no user"
    lines = [f"{found['place']}: {users}, {len(flows)} connections"]
    if not flows:
        lines.append("the kernel has no connection from there at the moment")
    for flow in flows:
        lines.append(f"  {flow['user'] or 'NOBODY'}: {render_flow(flow)}")
        if flow["why"]:
            lines.append(f"    {flow['why']}")
    # Of those that are nobody's it is told already why.
    return "\n".join([*lines, *render_unsaid([flow for flow in flows if flow["user"]])])
