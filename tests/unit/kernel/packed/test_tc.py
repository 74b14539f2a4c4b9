"""pyroute2's decoder is the judge of the classes that we pack by hand."""

from __future__ import annotations

import pytest
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from vff_qos.core.htb import HtbClass, same_class, shared_class, user_class
from vff_qos.kernel.packed import tc

KEY = tc.ClassKey(7, 0x5100, 0x2A)


def _tc(data: bytes) -> tcmsg:
    message = tcmsg(data)
    message.decode()
    assert message["header"]["length"] == len(data)
    return message


@pytest.mark.parametrize(
    "params",
    [user_class(1_000), user_class(50_000_000), user_class(2_500_000_000), shared_class(10**11)],
)
def test_class_requests(params: HtbClass) -> None:
    message = _tc(tc.encode_class(5, KEY, 1, params, tc.ADD))
    assert (message["index"], message["handle"], message["parent"]) == (7, 0x5100002A, 0x51000001)
    assert message.get_attr("TCA_KIND") == "htb"
    assert message["header"]["flags"] == 0x1 | 0x400 | 0x200
    options = message.get_attr("TCA_OPTIONS")
    parms = options.get_attr("TCA_HTB_PARMS")
    assert parms["quantum"] == params.quantum_bytes
    assert parms["prio"] == params.prio
    assert parms["rate"] == min(params.rate_bps // 8, 0xFFFFFFFF)
    assert parms["ceil"] == min(params.ceil_bps // 8, 0xFFFFFFFF)
    assert options.get_attr("TCA_HTB_CEIL64") == (
        params.ceil_bps // 8 if params.ceil_bps // 8 > 0xFFFFFFFF else None
    )
    ifindex, classid, _info, state = tc.decode_class(tc.encode_class(5, KEY, 1, params)[16:]) or (
        0, 0, 0, None,
    )  # fmt: skip
    assert (ifindex, classid) == (7, 0x5100002A)
    assert state is not None
    assert same_class(state.params, params)
    assert not same_class(state.params, params._replace(prio=7))


def test_leaf_requests() -> None:
    message = _tc(tc.encode_leaf(5, KEY, "fq_codel", 24_224, tc.ADD))
    assert (message["handle"], message["parent"]) == (0x2A0000, 0x5100002A)
    options = message.get_attr("TCA_OPTIONS")
    assert options.get_attr("TCA_FQ_CODEL_FLOWS") == 64
    assert options.get_attr("TCA_FQ_CODEL_TARGET") == 24_224


def test_other_kinds_of_class_are_not_ours() -> None:
    other = tc.encode_class(5, KEY, 1, user_class(10**6)).replace(b"htb\0", b"hfs\0")
    assert tc.decode_class(other[16:]) is None
