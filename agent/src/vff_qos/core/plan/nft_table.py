"""Our nft table as data: chains, rules and maps as libnftables' JSON has them.

See libnftables-json(5).  ``post`` gives packets of a marked flow their flow's mark.  ``pre`` takes
our mark away that a packet carried through the IFB, before routing can see it.  ``early`` gives new
flows to the service ports a provisional mark if their source is known; the agent fills the maps.
``cut`` ends the connections of users whose marks are in the set of that name; what is still sent to
them ends in ``post``.  ``flood`` paces new flows to the service ports from addresses that the agent
has put into its sets.
``static`` gives new flows to services and from networks (core/identities.py) their mark, and
``static_back`` those whose first packet comes from here, because somebody has emptied conntrack's
table.  An established flow costs one look at its state, whatever the maps hold.
``quic`` follows connections that move to another port (quic_rules.py).  ``hop`` redirects ranges of
UDP ports to the one where the engine listens.
"""

from __future__ import annotations

from ..htb import PROVISIONAL
from ..settings import Hop, Settings
from ..sole_users import MAX_ADDRESSES
from .quic_rules import is_quic, quic_rules

TABLE = "vff_qos"
#: Maps from a client's address to the provisional mark of its next connections.
EARLY4, EARLY6 = "early4", "early6"
#: Elements go by themselves if the agent does not renew them (it does so three times as often):
#: without it nobody corrects what they do.
EARLY_TIMEOUT_S = 300
#: Sets of addresses that flood the node with new connections; their elements bear limits.
FLOOD4, FLOOD6 = "flood4", "flood6"
#: Set of the marks of users who are cut off.
CUT = "cut"
MAX_CUT = 65_536
#: Counts the packets that `flood` has dropped.
FLOOD_COUNTER = "flood_dropped"
FLOOD_TIMEOUT_S = 300
MAX_FLOODERS = 4_096
#: New connections a second that one flooding address may have, and how many at once.
FLOOD_PER_S, FLOOD_BURST = 5, 10
#: Maps of the static identities: ports by protocol, ends (address, protocol, port) and prefixes by
#: family.
TCP_PORTS, UDP_PORTS = "tcp_ports", "udp_ports"
ENDS4, ENDS6, NETWORKS4, NETWORKS6 = "ends4", "ends6", "networks4", "networks6"
STATIC_MAPS = (TCP_PORTS, UDP_PORTS, ENDS4, ENDS6, NETWORKS4, NETWORKS6)
#: From this libnftables on JSON has the statements of a set; earlier ones leave them out.
SETS_WITH_LIMITS = (1, 0, 6)

#: Of the chain that gives packets their class; what looks at our mark comes later.
POST_PRIORITY = 300

Json = str | int | bool | None | list["Json"] | dict[str, "Json"]
#: What libnftables lists: one object an item, ``{"chain": {...}}``.
Listing = list[dict[str, Json]]

#: What is not ours to say, of a chain, map or counter.
_VARIES = ("handle", "elem", "count", "packets", "bytes")
_CT_MARK: Json = {"ct": {"key": "mark"}}
_SOURCE4: Json = {"payload": {"protocol": "ip", "field": "saddr"}}
_SOURCE6: Json = {
    "&": [{"payload": {"protocol": "ip6", "field": "saddr"}}, "ffff:ffff:ffff:ffff::"]
}


def table(settings: Settings) -> Listing:
    """Everything in our table, in the order of creation, without handles."""
    layout = settings.layout
    tag = layout.tag
    objects: Listing = [
        {"table": {"family": "inet", "name": TABLE}},
        _chain("pre", "prerouting", -300),
        # The last word before the device: what else marks packets there (mangle, -150) must not
        # hide the class, and NAT (100) must not take our mark for one of its own.
        _chain("post", "postrouting", POST_PRIORITY),
        _mangle("pre", [_tagged("meta", layout.tag_mask, tag)], "meta", 0),
        *_cut(),
    ]
    objects += [*_static(settings), *_flood_guard(settings), *_hop(settings)]
    objects += quic_rules(settings, TABLE)[0]
    if not settings.early_shaping:
        return [*objects, _mangle("post", [_tagged("ct", layout.tag_mask, tag)], "meta", _CT_MARK)]
    new = [
        _match({"ct": {"key": "state"}}, "new", "in"),
        _match(_CT_MARK, 0),
        *_service_ports(settings),
    ]
    final: Json = {"&": [_CT_MARK, 0xFFFFFFFF & ~PROVISIONAL]}
    return [
        *objects,
        # After conntrack (-200), before DNAT (-100): the ports are those that clients use.
        _chain("early", "prerouting", -150),
        _early_map(EARLY4, "ipv4_addr"),
        _early_map(EARLY6, "ipv6_addr"),
        _mangle("post", [_tagged("ct", layout.mask, tag)], "meta", final),
        _mangle("early", new, "ct", {"map": {"key": _SOURCE4, "data": f"@{EARLY4}"}}),
        _mangle("early", new, "ct", {"map": {"key": _SOURCE6, "data": f"@{EARLY6}"}}),
    ]


def table_text(settings: Settings) -> str:
    """What must be told to libnftables as text, after all else."""
    return quic_rules(settings, TABLE)[1]


def _hop(settings: Settings) -> Listing:
    """Port ranges of which the engine has one port.  What is not for this host is another's."""
    if not any(hop.port for hop in settings.hops):
        return []
    local: Json = {"fib": {"result": "type", "flags": ["daddr"]}}
    return [
        {"chain": {**_chain("hop", "prerouting", -100)["chain"], "type": "nat"}},  # type: ignore[dict-item]
        *(
            _rule(
                "hop",
                [
                    _match(local, "local"),
                    _match({"payload": {"protocol": "udp", "field": "dport"}}, _range(hop)),
                    {"redirect": {"port": hop.port}},
                ],
            )
            for hop in settings.hops
            if hop.port
        ),
    ]


def _range(hop: Hop) -> Json:
    return hop.low if hop.low == hop.high else {"range": [hop.low, hop.high]}


def _cut() -> Listing:
    """What ends the connections of marks in the set.  Others pay one look-up in each direction.

    ``cut`` stands where both directions of what goes to a container pass, and all that clients
    send.  What programs of this host send (datagrams: TCP has no socket any more) ends in ``post``,
    and the program is told (EPERM): so a QUIC server ends the connection on its side, too.  Resets
    pass everywhere; in ``post`` without the mark, so that they wait in no class's queue.
    """
    body: dict[str, Json] = {"family": "inet", "table": TABLE, "name": CUT}
    reset: list[Json] = [
        _match({"payload": {"protocol": "tcp", "field": "flags"}}, "rst", "in"),
        {"accept": None},
    ]
    tcp: list[Json] = [_match({"meta": {"key": "l4proto"}}, 6), {"reject": {"type": "tcp reset"}}]
    is_cut = _match(_CT_MARK, f"@{CUT}")
    return [
        # After conntrack (-200), which knows the mark.
        _chain("cut", "prerouting", -150),
        _jump_chain("cut_off"),
        _jump_chain("cut_out"),
        {"set": {**body, "type": "mark", "size": MAX_CUT}},
        _rule("cut", [is_cut, {"goto": {"target": "cut_off"}}]),
        _rule("cut_off", reset),
        _rule("cut_off", tcp),
        _rule("cut_off", [{"drop": None}]),
        _rule("post", [is_cut, {"goto": {"target": "cut_out"}}]),
        _rule("cut_out", reset),
        _rule("cut_out", [{"drop": None}]),
    ]


def _static(settings: Settings) -> Listing:
    """Static identities: services here come first, then networks, to the service ports alone or
    through this node.  Nothing else of a network is touched: SSH from there has no limit."""
    if not settings.has_static:
        return []
    fresh = [_match({"ct": {"key": "state"}}, "new", "in"), _match(_CT_MARK, 0)]
    local: Json = {"fib": {"result": "type", "flags": ["daddr"]}}
    objects: Listing = [
        # After conntrack (-200), before early shaping (-150): what is certain comes first.
        _chain("static", "prerouting", -160),
        _chain("static_back", "output", -160),
        *map(_jump_chain, _STATIC_CHAINS),
        _map(TCP_PORTS, "inet_service", ["interval"]),
        _map(UDP_PORTS, "inet_service", ["interval"]),
        _map(ENDS4, ["ipv4_addr", "inet_proto", "inet_service"]),
        _map(ENDS6, ["ipv6_addr", "inet_proto", "inet_service"]),
        _map(NETWORKS4, "ipv4_addr", ["interval"]),
        _map(NETWORKS6, "ipv6_addr", ["interval"]),
        _rule("static", [*fresh, {"jump": {"target": "new_flow"}}]),
        _rule("static_back", [*fresh, {"jump": {"target": "from_here"}}]),
        _rule("new_flow", [_match(local, "local"), {"goto": {"target": "to_here"}}]),
        *_look_up_network("new_flow", "saddr", []),
    ]
    for chain, ours, theirs in (("to_here", "d", "s"), ("from_here", "s", "d")):
        ports = _service_ports(settings, f"{ours}port")
        objects += [
            *_look_up_service(chain, ours),
            *_look_up_network(chain, f"{theirs}addr", [_match(_CT_MARK, 0), *ports]),
        ]
    return objects


_STATIC_CHAINS = ("new_flow", "to_here", "from_here")


def _jump_chain(name: str) -> dict[str, Json]:
    return {"chain": {"family": "inet", "table": TABLE, "name": name}}


def _look_up_service(chain: str, side: str) -> Listing:
    """By our end, which is the packet's source (``s``) or destination (``d``)."""
    port: Json = {"payload": {"protocol": "th", "field": f"{side}port"}}
    found: Listing = []
    for family, name in (("ip", ENDS4), ("ip6", ENDS6)):
        address: Json = {"payload": {"protocol": family, "field": f"{side}addr"}}
        end: Json = {"concat": [address, {"meta": {"key": "l4proto"}}, port]}
        found.append(_mark_by(chain, [], end, name))
    for protocol, name in (("tcp", TCP_PORTS), ("udp", UDP_PORTS)):
        key: Json = {"payload": {"protocol": protocol, "field": f"{side}port"}}
        found.append(_mark_by(chain, [_match(_CT_MARK, 0)], key, name))
    return found


def _look_up_network(chain: str, address: str, matches: list[Json]) -> Listing:
    return [
        _mark_by(chain, matches, {"payload": {"protocol": family, "field": address}}, name)
        for family, name in (("ip", NETWORKS4), ("ip6", NETWORKS6))
    ]


def _mark_by(chain: str, matches: list[Json], key: Json, name: str) -> dict[str, Json]:
    """A rule that gives a flow the mark that a map has for it, if any."""
    return _mangle(chain, matches, "ct", {"map": {"key": key, "data": f"@{name}"}})


def _map(name: str, kind: Json, flags: list[Json] | None = None) -> dict[str, Json]:
    body: dict[str, Json] = {
        "family": "inet", "table": TABLE, "name": name, "type": kind, "map": "mark",
    }  # fmt: skip
    return {"map": {**body, "flags": flags} if flags else body}


def _flood_guard(settings: Settings) -> Listing:
    """What paces the addresses in the sets: never those of this host, whose packets come by lo,
    never established flows, and nothing where all ports are the service's, SSH's among them."""
    if not settings.flood_guard or not settings.service_ports:
        return []
    new = [
        _match({"meta": {"key": "iifname"}}, "lo", "!="),
        _match({"ct": {"key": "state"}}, "new", "in"),
        *_service_ports(settings),
    ]
    # An element that is below its limit is not found.
    drop: list[Json] = [{"counter": FLOOD_COUNTER}, {"drop": None}]
    return [
        # After conntrack (-200), before DNAT (-100): the ports are those that clients use.
        _chain("flood", "prerouting", -150),
        {"counter": {"family": "inet", "table": TABLE, "name": FLOOD_COUNTER}},
        _flood_set(FLOOD4, "ipv4_addr"),
        _flood_set(FLOOD6, "ipv6_addr"),
        _rule("flood", [*new, _match(_SOURCE4, f"@{FLOOD4}"), *drop]),
        _rule("flood", [*new, _match(_SOURCE6, f"@{FLOOD6}"), *drop]),
    ]


def _flood_set(name: str, kind: str) -> dict[str, Json]:
    return {
        "set": {
            "family": "inet",
            "table": TABLE,
            "name": name,
            "type": kind,
            "flags": ["timeout"],
            "timeout": FLOOD_TIMEOUT_S,
            "size": MAX_FLOODERS,
            # Elements bear it, too; without it here nobody could load a saved ruleset again.
            "stmt": [
                {
                    "limit": {
                        "rate": FLOOD_PER_S,
                        "burst": FLOOD_BURST,
                        "per": "second",
                        "inv": True,
                    }
                }
            ],
        }
    }


def _service_ports(settings: Settings, side: str = "dport") -> list[Json]:
    """What matches a packet to the service ports (``sport``: from them), of TCP (6) or UDP (17)."""
    found = [_match({"meta": {"key": "l4proto"}}, {"set": [6, 17]})]
    if settings.service_ports:
        ports: list[Json] = [
            low if low == high else {"range": [low, high]} for low, high in settings.service_ports
        ]
        # libnftables makes a plain value of a set of one.
        port: Json = ports[0] if len(ports) == 1 else {"set": ports}
        found.append(_match({"payload": {"protocol": "th", "field": side}}, port))
    return found


def _match(left: Json, right: Json, op: str = "==") -> Json:
    return {"match": {"op": op, "left": left, "right": right}}


def _tagged(what: str, mask: int, tag: int) -> Json:
    return _match({"&": [{what: {"key": "mark"}}, mask]}, tag)


def _chain(name: str, hook: str, prio: int) -> dict[str, Json]:
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


def _rule(chain: str, statements: list[Json]) -> dict[str, Json]:
    return {"rule": {"family": "inet", "table": TABLE, "chain": chain, "expr": statements}}


def _mangle(chain: str, matches: list[Json], what: str, value: Json) -> dict[str, Json]:
    """A rule that sets the mark of the packet (``meta``) or of its connection (``ct``)."""
    mangle: Json = {"mangle": {"key": {what: {"key": "mark"}}, "value": value}}
    return _rule(chain, [*matches, mangle])


def _early_map(name: str, kind: str) -> dict[str, Json]:
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


def normal_table(listing: Listing) -> Listing:
    """A listing of libnftables without what differs between runs and versions.

    Handles, elements and counts go; ``mark & 0xffff0000 == X``, which may be listed as the prefix
    ``X/16``, becomes the former; rules stay in their order, the rest is sorted.
    """
    items: list[tuple[str, dict[str, Json]]] = []
    for item in listing:
        for kind, body in item.items():
            if kind == "metainfo" or not isinstance(body, dict):
                continue
            plain = {k: _plain(v) for k, v in body.items() if k not in _VARIES}
            if isinstance(flags := plain.get("flags"), str):
                plain["flags"] = [flags]  # so newer versions list a single one
            elif isinstance(flags, list):
                plain["flags"] = [flag for flag in flags if flag != "dynamic"]  # newer ones tell
            if kind in ("set", "map") and is_quic(item):
                # Raw bytes have no name that is the same in all versions.
                plain.pop("type", None)
                plain.pop("map", None)
            items.append((kind, plain))
    rank = {"table": 0, "chain": 1, "rule": 3}
    items.sort(key=lambda i: (rank.get(i[0], 2), str(i[1].get("chain", i[1].get("name")))))
    return [{kind: body} for kind, body in items]


def _plain(value: Json) -> Json:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str) and value.startswith("update @"):
        # So 1.0.6 lists the statement of a map.
        return {"update": value.split()[1]}
    if not isinstance(value, dict):
        return value
    learned = value.get("map")
    if isinstance(learned, dict) and "op" in learned:
        return {"update": learned["map"]}
    right = value.get("right")
    prefix = right.get("prefix") if isinstance(right, dict) else None
    if isinstance(prefix, dict) and isinstance(length := prefix.get("len"), int):
        mask = 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF
        return {**value, "left": {"&": [value["left"], mask]}, "right": prefix["addr"]}
    return {key: _plain(item) for key, item in value.items()}
