"""
ctinfo
++++++

Restores a connection's mark to its packets (see tc-ctinfo(8), kernel >= 5.3), as a plug-in for
pyroute2's `common_act.plugins`.  Parameters:

- cpmark: mask of the bits of the conntrack mark that become the packet's mark
- dscp: mask of the bits of the conntrack mark that hold a DSCP, which becomes the packet's
- dscp_state: mask of the bit that says whether a DSCP is stored
- zone: conntrack zone
- action: what follows, as a number (tc_actions['pipe'] and others); default pipe

Source: include/uapi/linux/tc_act/tc_ctinfo.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.rtnl.tcmsg.common import tc_actions


class options(nla):  # type: ignore[misc]
    """TCA_ACT_OPTIONS of the action; the kernel refuses them without the flag (EINVAL)."""

    nla_flags = NLA_F_NESTED
    nla_map = (
        ("TCA_CTINFO_UNSPEC", "none"),
        ("TCA_CTINFO_PAD", "hex"),
        ("TCA_CTINFO_TM", "hex"),
        ("TCA_CTINFO_ACT", "tca_parse_parms"),
        ("TCA_CTINFO_ZONE", "uint16"),
        ("TCA_CTINFO_PARMS_DSCP_MASK", "uint32"),
        ("TCA_CTINFO_PARMS_DSCP_STATEMASK", "uint32"),
        ("TCA_CTINFO_PARMS_CPMARK_MASK", "uint32"),
        ("TCA_CTINFO_STATS_DSCP_SET", "uint64"),
        ("TCA_CTINFO_STATS_DSCP_ERROR", "uint64"),
        ("TCA_CTINFO_STATS_CPMARK_SET", "uint64"),
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
    attrs_map = (
        ("zone", "TCA_CTINFO_ZONE"),
        ("dscp", "TCA_CTINFO_PARMS_DSCP_MASK"),
        ("dscp_state", "TCA_CTINFO_PARMS_DSCP_STATEMASK"),
        ("cpmark", "TCA_CTINFO_PARMS_CPMARK_MASK"),
    )
    attrs = [["TCA_CTINFO_ACT", {"action": kwarg.get("action", tc_actions["pipe"])}]]
    attrs += [[name, kwarg[key]] for key, name in attrs_map if kwarg.get(key) is not None]
    return {"attrs": attrs}
