"""Filters through pyroute2, with our plug-ins for flower and ctinfo: `Filter` to message and back.

Only what is ours is decoded whole; of others' filters it is enough that they are there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from socket import htons, ntohs
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import nla
from pyroute2.netlink.rtnl import RTM_DELTFILTER, RTM_NEWTFILTER
from pyroute2.netlink.rtnl.tcmsg import common_act, plugins
from pyroute2.netlink.rtnl.tcmsg.act_mirred import MIRRED_EACTIONS
from pyroute2.netlink.rtnl.tcmsg.common import tc_actions
from pyroute2.protocols import ETH_P_ALL, ETH_P_IP, ETH_P_IPV6

from ..core.plan.handles import INGRESS, OUR_PREFS, PREF_ROOT, ROOT, leads
from ..core.plan.objects import (
    Action,
    CopyMark,
    Filter,
    Flower,
    FwMark,
    Match,
    OtherAction,
    OtherMatch,
    Place,
    Redirect,
    SetMark,
    SetQueue,
    SpreadQueues,
)
from . import act_ctinfo, act_skbedit, tc_flower
from .packed.filter_list import TcFilter, filter_parent, read_filters
from .packed.netlink import HEADER
from .route import CREATE, ChainTcmsg, request

plugins["flower"] = tc_flower
common_act.plugins["ctinfo"] = act_ctinfo
common_act.plugins["skbedit"] = act_skbedit

_PROTOCOLS = {"all": ETH_P_ALL, "ip": ETH_P_IP, "ipv6": ETH_P_IPV6}
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_GOTO_CHAIN = 2 << 28  # TC_ACT_GOTO_CHAIN, include/uapi/linux/pkt_cls.h
_CHAIN_MASK = 0x0FFFFFFF
#: What the kernel adds to a flower filter.
_FLOWER_SILENT = ("TCA_FLOWER_KEY_ETH_TYPE", "TCA_FLOWER_FLAGS", "TCA_FLOWER_IN_HW_COUNT")


# --- to messages ---


def encode(item: Filter, major: int, indices: Mapping[str, int]) -> ChainTcmsg:
    """The message that makes a filter; ``indices`` are interface numbers by name."""
    message = _head(item, major, indices)
    options = _options(item, indices)
    if options:
        message["attrs"].insert(1, ("TCA_OPTIONS", options))
    return message


def _head(item: Filter, major: int, indices: Mapping[str, int]) -> ChainTcmsg:
    place = item.place
    attrs: list[tuple[str, Any]] = [("TCA_KIND", item.classifier)]
    if place.chain:
        attrs.append(("TCA_CHAIN", place.chain))
    message = ChainTcmsg()
    message.update(
        index=indices[place.dev],
        handle=place.handle,
        parent=filter_parent(place.hook, major + place.tree),
        info=place.pref << 16 | htons(_PROTOCOLS[place.protocol]),
        attrs=attrs,
    )
    return message


def _options(item: Filter, indices: Mapping[str, int]) -> dict[str, Any] | None:
    match = item.match
    wanted: dict[str, Any] = {"action": [_action(action, indices) for action in item.actions]}
    if isinstance(match, FwMark):
        if match.mask is None:
            return None  # without any option cls_fw takes the mark itself as classid
        options: dict[str, Any] = plugins["fw"].get_parameters({**wanted, "mask": match.mask})
        return options
    if isinstance(match, OtherMatch):
        raise TypeError(f"we write no {match.kind} filters")
    # No card can offload act_ctinfo.
    wanted |= {
        "protocol": _PROTOCOLS[item.place.protocol],
        "flags": tc_flower.TCA_CLS_FLAGS_SKIP_HW,
    }
    if match.protocol:
        wanted["ip_proto"] = match.protocol
        one = match.low == match.high
        wanted["dst_port"] = match.low if one else (match.low, match.high)
    return tc_flower.get_parameters(wanted)


def _action(action: Action, indices: Mapping[str, int]) -> dict[str, Any]:
    if isinstance(action, CopyMark):
        return {"kind": "ctinfo", "cpmark": action.mask, "action": _GOTO_CHAIN | action.chain}
    if isinstance(action, SetMark):
        return {"kind": "skbedit", "mark": action.value}
    if isinstance(action, SetQueue):
        # Others' filters at egress still have their say.
        return {"kind": "skbedit", "queue": action.queue, "action": tc_actions["unspec"]}
    if isinstance(action, SpreadQueues):
        last = action.queues - 1
        return {"kind": "skbedit", "queue": 0, "last": last, "action": tc_actions["unspec"]}
    if isinstance(action, Redirect):
        index = indices[action.dev]
        return {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": index}
    raise TypeError(f"we write no {action.kind} actions")


def add_filter(ipr: IPRoute, item: Filter, major: int, indices: Mapping[str, int]) -> None:
    """Make a filter."""
    message = encode(item, major, indices)
    request(ipr, message, RTM_NEWTFILTER, CREATE, f"adding {item}")


def delete_filter(ipr: IPRoute, item: Filter, major: int, indices: Mapping[str, int]) -> None:
    """Delete one filter, or with handle 0 all of its preference."""
    request(ipr, _head(item, major, indices), RTM_DELTFILTER, 0, f"removing {item}")


# --- from messages ---


def read(
    index: int,
    hook: str,
    major: int,
    chains: Collection[int],
    names: Mapping[int, str],
    tree: int = 0,
) -> Iterator[Filter]:
    """The filters at one hook of a device (ROOT: of the HTB with this major, which is tree number
    ``tree``); ``chains`` are ours."""
    for found in read_filters(index, hook, major):
        yield decode(found, names[index], hook, chains, names, tree)


def decode(
    found: TcFilter,
    dev: str,
    hook: str,
    chains: Collection[int],
    names: Mapping[int, str],
    tree: int = 0,
) -> Filter:
    """A filter as the kernel shows it."""
    number = ntohs(found.protocol)
    protocol = _PROTOCOL_NAMES.get(number, f"0x{number:04x}")
    place = Place(dev, hook, found.chain, found.pref, protocol, found.handle, tree)
    ours = hook == ROOT and found.pref == PREF_ROOT
    ours |= hook == INGRESS and (found.chain in chains or found.pref in OUR_PREFS)
    ours |= leads(hook, found.chain, found.pref, found.kind)
    if not ours or found.kind not in ("fw", "flower"):
        return Filter(place, OtherMatch(found.kind))
    message = ChainTcmsg(HEADER.pack(HEADER.size + len(found.payload), 0, 0, 0, 0) + found.payload)
    message.decode()
    options = message.get_attr("TCA_OPTIONS")
    attrs: dict[str, Any] = dict(options["attrs"]) if options else {}
    if found.kind == "fw":
        actions = attrs.pop("TCA_FW_ACT", None)
        mask = attrs.pop("TCA_FW_MASK", None)
        match: Match = FwMark(mask if actions else None)
    else:
        actions = attrs.pop("TCA_FLOWER_ACT", None)
        match = _flower(attrs)
    if attrs:
        match = OtherMatch(found.kind, " ".join(sorted(attrs)))
    acts = [act for _prio, act in actions["attrs"]] if actions else []
    return Filter(place, match, tuple(_decode_action(act, names) for act in acts))


def _flower(attrs: dict[str, Any]) -> Flower:
    """What it matches; what is not understood stays in ``attrs``."""
    for name in _FLOWER_SILENT:
        attrs.pop(name, None)
    if "TCA_FLOWER_KEY_IP_PROTO" not in attrs:
        return Flower()
    protocol = attrs.pop("TCA_FLOWER_KEY_IP_PROTO")
    name = {6: "TCA_FLOWER_KEY_TCP_DST", 17: "TCA_FLOWER_KEY_UDP_DST"}.get(protocol, "")
    if attrs.get(f"{name}_MASK") == 0xFFFF:
        attrs.pop(f"{name}_MASK")
        port = attrs.pop(name)
        return Flower(protocol, port, port)
    low = attrs.pop("TCA_FLOWER_KEY_PORT_DST_MIN", 0)
    return Flower(protocol, low, attrs.pop("TCA_FLOWER_KEY_PORT_DST_MAX", 0))


def _decode_action(act: nla, names: Mapping[int, str]) -> Action:
    kind, options = act.get_attr("TCA_ACT_KIND"), act.get_attr("TCA_ACT_OPTIONS")
    if kind == "ctinfo":
        mask = options.get_attr("TCA_CTINFO_PARMS_CPMARK_MASK")
        verdict = options.get_attr("TCA_CTINFO_ACT")["action"]
        if mask is not None and verdict & ~_CHAIN_MASK == _GOTO_CHAIN:
            return CopyMark(mask, verdict & _CHAIN_MASK)
    elif kind == "skbedit":
        mark = options.get_attr("TCA_SKBEDIT_MARK")
        queue = options.get_attr("TCA_SKBEDIT_QUEUE_MAPPING")
        verdict = options.get_attr("TCA_SKBEDIT_PARMS")["action"]
        if mark is not None and verdict == tc_actions["pipe"]:
            return SetMark(mark)
        if queue is not None and mark is None and verdict == tc_actions["unspec"]:
            last = options.get_attr("TCA_SKBEDIT_QUEUE_MAPPING_MAX")
            return SetQueue(queue) if last is None else SpreadQueues(last + 1)
    elif kind == "mirred":
        parms = options.get_attr("TCA_MIRRED_PARMS")
        if parms["eaction"] == MIRRED_EACTIONS["egress", "redirect"]:
            return Redirect(names.get(parms["ifindex"], f"#{parms['ifindex']}"))
    return OtherAction(kind)
