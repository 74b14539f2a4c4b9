"""
skbedit
+++++++

Sets a packet's mark, or the transmit queue that it goes to (see tc-skbedit(8)), as a plug-in for
pyroute2's `common_act.plugins`: its own knows no ranges of queues, and no verdict but pipe.
Parameters:

- mark: the packet's mark
- queue: transmit queue, from 0; the kernel obeys from 5.19 on, and only at egress
- last: the last of a range of queues that begins with ``queue``; the hash of the flow chooses
- action: what follows, as a number (tc_actions['pipe'] and others); default pipe

Source: include/uapi/linux/tc_act/tc_skbedit.h, net/sched/act_skbedit.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyroute2.netlink import nla
from pyroute2.netlink.rtnl.tcmsg.common import tc_actions

#: The queue is chosen by the hash of the flow (SKBEDIT_F_TXQ_SKBHASH).
_BY_HASH = 0x40


class options(nla):  # type: ignore[misc]
    """TCA_ACT_OPTIONS of the action."""

    nla_map = (
        ("TCA_SKBEDIT_UNSPEC", "none"),
        ("TCA_SKBEDIT_TM", "hex"),
        ("TCA_SKBEDIT_PARMS", "tca_parse_parms"),
        ("TCA_SKBEDIT_PRIORITY", "uint32"),
        ("TCA_SKBEDIT_QUEUE_MAPPING", "uint16"),
        ("TCA_SKBEDIT_MARK", "uint32"),
        ("TCA_SKBEDIT_PAD", "hex"),
        ("TCA_SKBEDIT_PTYPE", "uint16"),
        ("TCA_SKBEDIT_MASK", "uint32"),
        ("TCA_SKBEDIT_FLAGS", "uint64"),
        ("TCA_SKBEDIT_QUEUE_MAPPING_MAX", "uint16"),
    )

    class tca_parse_parms(nla):  # type: ignore[misc]
        """tc_gen."""

        fields = (
            ("index", "I"),
            ("capab", "I"),
            ("action", "i"),
            ("refcnt", "i"),
            ("bindcnt", "i"),
        )


def get_parameters(kwarg: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes from the parameters above."""
    attrs: list[list[Any]] = [
        ["TCA_SKBEDIT_PARMS", {"action": kwarg.get("action", tc_actions["pipe"])}]
    ]
    if "mark" in kwarg:
        attrs.append(["TCA_SKBEDIT_MARK", kwarg["mark"]])
    if "queue" in kwarg:
        attrs.append(["TCA_SKBEDIT_QUEUE_MAPPING", kwarg["queue"]])
    if "last" in kwarg:
        attrs.append(["TCA_SKBEDIT_QUEUE_MAPPING_MAX", kwarg["last"]])
        attrs.append(["TCA_SKBEDIT_FLAGS", _BY_HASH])
    return {"attrs": attrs}
