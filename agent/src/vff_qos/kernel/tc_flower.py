"""
flower
++++++

The classifier flower (see tc-flower(8)) by protocol and destination port, as a plug-in for
pyroute2's `tcmsg.plugins`.  Parameters:

- protocol: ETH_P_IP, ETH_P_IPV6 or ETH_P_ALL
- ip_proto: 6 (TCP) or 17 (UDP)
- dst_port: one port, or (low, high) for a closed range (kernel >= 5.1)
- classid: class of the packets
- flags: TCA_CLS_FLAGS_SKIP_HW and others
- action: as for the other classifiers

Source: include/uapi/linux/pkt_cls.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from socket import htons
from typing import Any

from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.rtnl.tcmsg.common_act import get_tca_action
from pyroute2.netlink.rtnl.tcmsg.common_act import tca_act_prio as _tca_act_prio
from pyroute2.protocols import ETH_P_ALL

TCA_CLS_FLAGS_SKIP_HW = 1

_PORT_KEYS = {6: "TCA_FLOWER_KEY_TCP_DST", 17: "TCA_FLOWER_KEY_UDP_DST"}


class options(nla):  # type: ignore[misc]
    """TCA_OPTIONS of the classifier."""

    nla_flags = NLA_F_NESTED
    nla_map = (
        (1, "TCA_FLOWER_CLASSID", "uint32"),
        (3, "TCA_FLOWER_ACT", "tca_act_prio"),
        (8, "TCA_FLOWER_KEY_ETH_TYPE", "be16"),
        (9, "TCA_FLOWER_KEY_IP_PROTO", "uint8"),
        (10, "TCA_FLOWER_KEY_IPV4_SRC", "ip4addr"),
        (11, "TCA_FLOWER_KEY_IPV4_SRC_MASK", "ip4addr"),
        (12, "TCA_FLOWER_KEY_IPV4_DST", "ip4addr"),
        (13, "TCA_FLOWER_KEY_IPV4_DST_MASK", "ip4addr"),
        (14, "TCA_FLOWER_KEY_IPV6_SRC", "ip6addr"),
        (15, "TCA_FLOWER_KEY_IPV6_SRC_MASK", "ip6addr"),
        (16, "TCA_FLOWER_KEY_IPV6_DST", "ip6addr"),
        (17, "TCA_FLOWER_KEY_IPV6_DST_MASK", "ip6addr"),
        (18, "TCA_FLOWER_KEY_TCP_SRC", "be16"),
        (19, "TCA_FLOWER_KEY_TCP_DST", "be16"),
        (20, "TCA_FLOWER_KEY_UDP_SRC", "be16"),
        (21, "TCA_FLOWER_KEY_UDP_DST", "be16"),
        (22, "TCA_FLOWER_FLAGS", "uint32"),
        (35, "TCA_FLOWER_KEY_TCP_SRC_MASK", "be16"),
        (36, "TCA_FLOWER_KEY_TCP_DST_MASK", "be16"),
        (37, "TCA_FLOWER_KEY_UDP_SRC_MASK", "be16"),
        (38, "TCA_FLOWER_KEY_UDP_DST_MASK", "be16"),
        (86, "TCA_FLOWER_IN_HW_COUNT", "uint32"),
        (87, "TCA_FLOWER_KEY_PORT_SRC_MIN", "be16"),
        (88, "TCA_FLOWER_KEY_PORT_SRC_MAX", "be16"),
        (89, "TCA_FLOWER_KEY_PORT_DST_MIN", "be16"),
        (90, "TCA_FLOWER_KEY_PORT_DST_MAX", "be16"),
    )

    tca_act_prio = _tca_act_prio


def fix_request(request: dict[str, Any]) -> None:
    """Preference and protocol into tcm_info, as for the other classifiers."""
    protocol = htons(request.get("protocol", ETH_P_ALL))
    request["info"] = request.get("prio", 0) << 16 | protocol


def get_parameters(kwarg: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes from the parameters above."""
    attrs: list[list[Any]] = []
    if kwarg.get("classid") is not None:
        attrs.append(["TCA_FLOWER_CLASSID", kwarg["classid"]])
    if kwarg.get("flags") is not None:
        attrs.append(["TCA_FLOWER_FLAGS", kwarg["flags"]])
    if kwarg.get("protocol", ETH_P_ALL) != ETH_P_ALL:
        attrs.append(["TCA_FLOWER_KEY_ETH_TYPE", kwarg["protocol"]])
    if kwarg.get("ip_proto") is not None:
        attrs.append(["TCA_FLOWER_KEY_IP_PROTO", kwarg["ip_proto"]])
    port = kwarg.get("dst_port")
    if isinstance(port, int):
        name = _PORT_KEYS[kwarg["ip_proto"]]
        attrs += [[name, port], [f"{name}_MASK", 0xFFFF]]
    elif port is not None:
        low, high = port
        attrs.append(["TCA_FLOWER_KEY_PORT_DST_MIN", low])
        attrs.append(["TCA_FLOWER_KEY_PORT_DST_MAX", high])
    if kwarg.get("action"):
        attrs.append(["TCA_FLOWER_ACT", get_tca_action(kwarg)])
    return {"attrs": attrs}
