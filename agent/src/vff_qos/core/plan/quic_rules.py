"""The rules by which the kernel follows a QUIC connection to another port: chain ``quic``.

A connection that moves (a hop, a NAT that forgets) is a new flow to conntrack.  What clients send
with a short header (RFC 9000, 17.3.1) has the connection ID that our engine has given them, in the
clear, in the second byte and on; its first four bytes, with the client's address (IPv6: its /64),
are known with the mark of the flow that they came in.  A flow without a mark gets the one that is
known for its packet, at that packet.

Learned are the IDs of marked flows that are seen twice within ``ONCE_S``: what only looks like QUIC
(Shadowsocks, Salamander) has other bytes there in each packet.  Nothing is overwritten, and all is
forgotten when a mark may mean somebody else (`kernel.packed.nft_elements.QuicIds`).

Statements are kept as text and as what libnftables lists: up to 1.0.6 it takes neither raw bytes
as a key nor the statement of a map as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..settings import Settings

#: The chain that packets enter, and what all other names begin with.
QUIC, _PREFIX = "quic", "quic_"
#: Maps from an address and an ID to a mark.  An ID is known for so long after it was last seen:
#: longer than conntrack knows a UDP flow that is silent (120 s, nf_conntrack_udp_timeout_stream).
MARKS4, MARKS6 = "quic_marks4", "quic_marks6"
MARKS_S = 180
#: Sets of what is in the maps and need not be looked at before this time is over.
KNOWN4, KNOWN6 = "quic_known4", "quic_known6"
KNOWN_S = 60
#: Sets of what was seen once.
ONCE4, ONCE6 = "quic_once4", "quic_once6"
ONCE_S = 2
MAX_IDS = 65_535
#: How many IDs of one mark are noted and learned in a second, and how many at once.  quic-go takes
#: another ID after 5,000 to 10,000 packets.
ONCE_RATE, LEARN_RATE = "quic_once_rate", "quic_learn_rate"
ONCE_PER_S, LEARN_PER_S, BURST = 20, 2, 20
#: The sets that hold IDs.
ID_SETS = (MARKS4, MARKS6, KNOWN4, KNOWN6, ONCE4, ONCE6)

Json = str | int | bool | None | list["Json"] | dict[str, "Json"]


class _Part(NamedTuple):
    """A statement, a match or a key, in both languages."""

    text: str
    json: Json


_CT_MARK: Json = {"ct": {"key": "mark"}}
_ID: Json = {"payload": {"base": "th", "offset": 72, "len": 32}}
_KEY4 = _Part(
    "ip saddr . @th,72,32",
    {"concat": [{"payload": {"protocol": "ip", "field": "saddr"}}, _ID]},
)
# Bytes and not ``ip6 saddr``: nft 1.0.6 aborts on a map's key of more than 16 bytes.
_KEY6 = _Part(
    "@nh,64,64 . @th,72,32",
    {"concat": [{"payload": {"base": "nh", "offset": 64, "len": 64}}, _ID]},
)
_IPV6 = _Part(
    "meta nfproto ipv6",
    {"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv6"}},
)
_UNMARKED = _Part("ct mark 0", {"match": {"op": "==", "left": _CT_MARK, "right": 0}})
_RETURN = _Part("return", {"return": None})
#: (key, map of marks, known, once) of each family.
_FAMILIES = ((_KEY4, MARKS4, KNOWN4, ONCE4), (_KEY6, MARKS6, KNOWN6, ONCE6))


def quic_rules(settings: Settings, table: str) -> tuple[list[dict[str, Json]], str]:
    """What libnftables lists of the chains, sets and rules, and the text that makes them."""
    if not settings.follow_quic:
        return [], ""
    where: dict[str, Json] = {"family": "inet", "table": table}
    objects: list[dict[str, Json]] = []
    lines: list[str] = []
    for key, marks, known, once in _FAMILIES:
        for name, kind, timeout_s in ((marks, "map", MARKS_S), (known, "set", KNOWN_S),
                                      (once, "set", ONCE_S)):  # fmt: skip
            _add_set(objects, lines, where, kind, name, key.text, timeout_s)
    _add_set(objects, lines, where, "set", ONCE_RATE, "ct mark", 10)
    _add_set(objects, lines, where, "set", LEARN_RATE, "ct mark", 60)
    # After conntrack (-200) and what is certain (-160), before all that goes by the mark (-150).
    base: dict[str, Json] = {
        "type": "filter",
        "hook": "prerouting",
        "prio": -155,
        "policy": "accept",
    }
    chains = _chains(settings)
    for name, rules in chains.items():
        is_base = name == QUIC
        objects.append({"chain": {**where, "name": name} | (base if is_base else {})})
        head = "  type filter hook prerouting priority -155; policy accept;\n" if is_base else ""
        body = "".join(f"  {' '.join(part.text for part in rule)}\n" for rule in rules)
        lines.append(f" chain {name} {{\n{head}{body} }}\n")
    for name, rules in chains.items():
        objects += [
            {"rule": {**where, "chain": name, "expr": [part.json for part in rule]}}
            for rule in rules
        ]
    # A chain must be there before another one names it.
    declared = "".join(f" chain {name} {{ }}\n" for name in chains if name != QUIC)
    return objects, f"table inet {table} {{\n{declared}{''.join(lines)}}}\n"


def is_quic(item: Mapping[str, Json]) -> bool:
    """Whether a listed object is one of these."""
    for body in item.values():
        if isinstance(body, dict):
            name = str(body.get("chain", body.get("name")))
            return name == QUIC or name.startswith(_PREFIX)
    return False


def _add_set(
    objects: list[dict[str, Json]],
    lines: list[str],
    where: dict[str, Json],
    kind: str,
    name: str,
    key: str,
    timeout_s: int,
) -> None:
    body: dict[str, Json] = {**where, "name": name, "flags": ["timeout"]}
    objects.append({kind: {**body, "timeout": timeout_s, "size": MAX_IDS}})
    data = " : ct mark" if kind == "map" else ""
    lines.append(
        f" {kind} {name} {{ typeof {key}{data}; flags dynamic,timeout; "
        f"timeout {timeout_s}s; size {MAX_IDS}; }}\n"
    )


def _chains(settings: Settings) -> dict[str, list[list[_Part]]]:
    """The rules of each chain; ``quic_first`` and ``quic_again`` see an ID for the first and for
    the second time."""
    tag, mask = settings.layout.tag, settings.layout.tag_mask
    others = _Part(
        f"ct mark & {mask:#x} != {tag:#x}",
        {"match": {"op": "!=", "left": {"&": [_CT_MARK, mask]}, "right": tag}},
    )
    key4, marks4, *_ = _FAMILIES[0]
    key6, marks6, *_ = _FAMILIES[1]
    chains: dict[str, list[list[_Part]]] = {
        QUIC: [[*_from_clients(settings), _goto("quic_id")]],
        "quic_id": [
            [_UNMARKED, _mark_by(key4, marks4)],
            [_IPV6, _UNMARKED, _mark_by(key6, marks6)],
            # A mark that was given in advance (`htb.PROVISIONAL`) teaches nothing.
            [others, _RETURN],
            [_IPV6, _goto("quic_first6")],
            [_goto("quic_first4")],
        ],
    }
    for number, (key, marks, known, once) in zip("46", _FAMILIES, strict=True):
        chains[f"quic_first{number}"] = [
            [_is_in(key, known), _RETURN],
            [_is_in(key, once), _goto(f"quic_again{number}")],
            [_below(ONCE_RATE, ONCE_PER_S), _update(once, key)],
        ]
        chains[f"quic_again{number}"] = [
            [_below(LEARN_RATE, LEARN_PER_S), _update(known, key), _learn(marks, key)],
        ]
    return chains


def _from_clients(settings: Settings) -> list[_Part]:
    """What clients send to the service ports by UDP with a short header: 01 in the upper bits."""
    ports: list[Json] = [
        low if low == high else {"range": [low, high]} for low, high in settings.service_ports
    ]
    if ports:
        names = [str(a) if a == b else f"{a}-{b}" for a, b in settings.service_ports]
        one = len(ports) == 1
        found = _Part(
            f"udp dport {names[0] if one else '{ ' + ', '.join(names) + ' }'}",
            _match({"payload": {"protocol": "udp", "field": "dport"}},
                   ports[0] if one else {"set": ports}),
        )  # fmt: skip
    else:
        found = _Part("meta l4proto 17", _match({"meta": {"key": "l4proto"}}, 17))
    first: Json = {"payload": {"base": "th", "offset": 64, "len": 8}}
    return [
        found,
        _Part("@th,64,8 64-127", _match(first, {"range": [64, 127]})),
        _Part("ct direction original", _match({"ct": {"key": "direction"}}, "original")),
    ]


def _match(left: Json, right: Json) -> Json:
    return {"match": {"op": "==", "left": left, "right": right}}


def _goto(chain: str) -> _Part:
    return _Part(f"goto {chain}", {"goto": {"target": chain}})


def _is_in(key: _Part, name: str) -> _Part:
    return _Part(f"{key.text} @{name}", _match(key.json, f"@{name}"))


def _mark_by(key: _Part, name: str) -> _Part:
    value: Json = {"map": {"key": key.json, "data": f"@{name}"}}
    return _Part(
        f"ct mark set {key.text} map @{name}",
        {"mangle": {"key": _CT_MARK, "value": value}},
    )


def _below(name: str, per_s: int) -> _Part:
    """The rule goes on as long as its flow's mark is not above the limit."""
    limit: Json = {"limit": {"rate": per_s, "burst": BURST, "per": "second"}}
    return _Part(
        f"update @{name} {{ ct mark limit rate {per_s}/second burst {BURST} packets }}",
        {"set": {"op": "update", "elem": _CT_MARK, "set": f"@{name}", "stmt": [limit]}},
    )


def _update(name: str, key: _Part) -> _Part:
    return _Part(
        f"update @{name} {{ {key.text} }}",
        {"set": {"op": "update", "elem": key.json, "set": f"@{name}"}},
    )


def _learn(name: str, key: _Part) -> _Part:
    """The key has this mark.  ``normal_table`` makes of it what all versions can be told by."""
    return _Part(f"update @{name} {{ {key.text} : ct mark }}", {"update": f"@{name}"})
