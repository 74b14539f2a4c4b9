"""pyroute2's decoder is the judge of the bytes that we pack by hand."""

from __future__ import annotations

import errno
import json
import socket
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2.netlink import nlmsg
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from vff_qos.core.flow import Flow
from vff_qos.core.htb import HtbClass, same_class, shared_class, user_class
from vff_qos.core.plan.desired import desired
from vff_qos.core.plan.objects import Filter
from vff_qos.core.settings import Settings
from vff_qos.kernel import filters, route
from vff_qos.kernel.packed import conntrack, tc
from vff_qos.kernel.packed.filter_list import decode_filter
from vff_qos.kernel.packed.netlink import NLA_F_NESTED

V4 = Flow(6, socket.inet_aton("198.51.100.7"), 5555, socket.inet_aton("203.0.113.1"), 443)
V6 = Flow(
    17,
    socket.inet_pton(socket.AF_INET6, "2001:db8::7"),
    65535,
    socket.inet_pton(socket.AF_INET6, "2001:db8:1::1"),
    1,
)


def _conntrack(data: bytes) -> nfct_msg:
    message = nfct_msg(data)
    message.decode()
    assert message["header"]["length"] == len(data)
    return message


class _Wire:
    """A netlink socket that keeps what is sent and answers that the flows of ``gone`` are."""

    next_seq = 0x01020304

    def __init__(self, gone: set[Flow]) -> None:
        self.sent: list[bytes] = []
        self._gone = gone

    def exchange(self, buffer: bytearray, count: int) -> tuple[dict[int, int], list[bytes], bool]:
        errors, start = {}, 0
        for index in range(count):
            length = int.from_bytes(buffer[start : start + 4], "little")
            message = bytes(buffer[start : start + length])
            number = int.from_bytes(message[8:12], "little")
            if conntrack.unpack(message)[0] in self._gone:
                errors[number - self.next_seq] = errno.ENOENT
            assert number == self.next_seq + index
            self.sent.append(message)
            start += length
        assert start == len(buffer)
        return errors, [], False


@pytest.mark.parametrize("flow", [V4, V6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("what", ["set", "get"])
def test_conntrack_requests(flow: Flow, what: str) -> None:
    wire = _Wire(set())
    table = object.__new__(conntrack.Conntrack)
    table.netlink = wire  # type: ignore[assignment]
    if what == "set":
        assert table.set_marks([conntrack.prepare(flow, 0x5100002A)]) == {}
        message = _conntrack(wire.sent[0])
        assert message.get_attr("CTA_MARK") == 0x5100002A
        assert message.get_attr("CTA_MARK_MASK") == 0xFFFFFFFF
    else:
        assert table.get_marks([conntrack.prepare(flow)]) == [None]
        message = _conntrack(wire.sent[0])
    assert message["header"]["sequence_number"] == wire.next_seq
    assert message["header"]["type"] == 1 << 8 | (what == "get")
    v6 = len(flow.src) == 16
    assert message["nfgen_family"] == (socket.AF_INET6 if v6 else socket.AF_INET)
    tuple_ = message.get_attr("CTA_TUPLE_ORIG")
    ip, proto = tuple_.get_attr("CTA_TUPLE_IP"), tuple_.get_attr("CTA_TUPLE_PROTO")
    family = socket.AF_INET6 if v6 else socket.AF_INET
    name = "CTA_IP_V6" if v6 else "CTA_IP_V4"
    assert ip.get_attr(f"{name}_SRC") == socket.inet_ntop(family, flow.src)
    assert ip.get_attr(f"{name}_DST") == socket.inet_ntop(family, flow.dst)
    assert proto.get_attr("CTA_PROTO_NUM") == flow.proto
    assert proto.get_attr("CTA_PROTO_SRC_PORT") == flow.sport
    assert proto.get_attr("CTA_PROTO_DST_PORT") == flow.dport


@pytest.mark.parametrize("flow", [V4, V6], ids=["ipv4", "ipv6"])
def test_a_dumped_entry_is_asked_for_and_set_by_its_own_tuple(flow: Flow) -> None:
    asked = conntrack.encode_set(1, flow, 9)
    entry = conntrack.decode(asked[16:])
    assert conntrack.decode_tuple(entry.tuple_raw) == flow
    assert conntrack.decode_mark(asked[16:]) == entry.mark == 9
    again = _conntrack(conntrack.encode_set_raw(2, entry._replace(zone=7), 10))
    assert again.get_attr("CTA_ZONE") == 7
    assert again.get_attr("CTA_MARK") == 10
    assert again.get_attr("CTA_TUPLE_ORIG") == _conntrack(asked).get_attr("CTA_TUPLE_ORIG")


@pytest.mark.parametrize("count", [1, 2, 256, 257, 700])
def test_prepared_requests_of_both_families_are_numbered_and_their_errors_found(
    count: int,
) -> None:
    flows = [(V6 if n % 3 == 1 else V4)._replace(sport=n + 1) for n in range(count)]
    gone = set(flows[::5])
    wire = _Wire(gone)
    table = object.__new__(conntrack.Conntrack)
    table.netlink = wire  # type: ignore[assignment]
    errors = table.set_marks([conntrack.prepare(flow, 9) for flow in flows])
    assert {flows[index] for index in errors} == gone
    expected = {conntrack.encode_set(0, flow, 9) for flow in flows}
    assert {message[:8] + bytes(4) + message[12:] for message in wire.sent} == expected
    assert len(wire.sent) == count


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


# --- what goes through pyroute2: held to bytes that were tried on real kernels ---

MESSAGES: dict[str, str] = json.loads(
    (Path(__file__).parent / "golden" / "tc_messages.json").read_text()
)
INDICES = {"wan0": 7, "vffqos0": 9}
NAMES = {index: name for name, index in INDICES.items()}
PORTS = Settings(wan="wan0", service_ports=((443, 443), (20000, 20100)))
VARIANTS = {
    "ports": PORTS,
    "all": replace(PORTS, service_ports=()),
    "early": replace(PORTS, service_ports=((443, 443),), early_shaping=True),
}
FILTERS = {
    f"{name}: {verb} {item}": (verb, item)
    for name, settings in VARIANTS.items()
    for item in desired(settings, "wan0")
    if isinstance(item, Filter)
    for verb in ("add", "remove")
    if f"{name}: {verb} {item}" in MESSAGES
}


#: Nested attributes that pyroute2 packs without NLA_F_NESTED and the kernel takes so, because their
#: parsers are older than the flag (nla_parse_nested_deprecated): all actions of a filter, one of
#: them, skbedit's options, fw's.
_UNFLAGGED = ("fw", "fw/4", "fw/4/*", "flower/3", "flower/3/*", "flower/3/*/skbedit")


def _tree(data: bytes, path: str = "") -> str:
    """Attributes by number, as the kernel takes them (nla_parse): their order does not count, nor
    does the flag NLA_F_NESTED where it must not be there."""
    found = []
    at, kind = 0, ""
    while at < len(data):
        length, number = struct.unpack_from("=HH", data, at)
        body = data[at + 4 : at + length]
        nested = bool(number & NLA_F_NESTED)
        number &= ~NLA_F_NESTED
        where = f"{path}/{number}"
        if number == 1 and body.endswith(b"\0") and body[:-1].isalnum() and not kind:
            kind = body[:-1].decode()  # TCA_KIND, TCA_ACT_KIND
        elif kind and number == 2:
            where = f"{path}/{kind}"
        elif "/" in path and path.rsplit("/", 1)[1] in "34":
            where = f"{path}/*"
        where = where.lstrip("/")
        if nested or where in _UNFLAGGED:
            flag = "" if where in _UNFLAGGED else "nested "
            found.append((number, f"{flag}{_tree(body, where)}"))
        else:
            found.append((number, body.hex()))
        at += (length + 3) & ~3
    return "{" + ", ".join(f"{number}: {text}" for number, text in sorted(found)) + "}"


def _same(payload: bytes, golden: str) -> None:
    want = bytes.fromhex(golden)
    assert payload[:20] == want[:20]  # struct tcmsg
    assert _tree(payload[20:]) == _tree(want[20:])


class _RouteWire:
    """An IPRoute that keeps type, flags and payload of what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int, bytes]] = []

    def nlm_request_batch(self, messages: list[nlmsg]) -> list[nlmsg]:
        for message in messages:
            message.encode()
            header = message["header"]
            self.sent.append((header["type"], header["flags"], bytes(message.data[16:])))
        return []


def test_every_filter_has_bytes_to_be_held_to() -> None:
    assert len(FILTERS) == sum(" filter " in name for name in MESSAGES) == 32


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_those_that_were_tried_on_real_kernels(name: str) -> None:
    verb, item = FILTERS[name]
    act = filters.add_filter if verb == "add" else filters.delete_filter
    wire = _RouteWire()
    act(wire, item, 0x5100, INDICES)
    assert wire.sent[0][:2] == ((44, 0x605) if verb == "add" else (45, 0x5))
    _same(wire.sent[0][2], MESSAGES[name])


@pytest.mark.parametrize("name", [name for name in FILTERS if "add ingress" in name])
def test_a_filter_that_the_kernel_shows_is_the_one_that_was_made(name: str) -> None:
    item = FILTERS[name][1]
    found = decode_filter(bytes.fromhex(MESSAGES[name]))
    assert filters.decode(found, "wan0", "ingress", (0x5100,), NAMES) == item
    other = filters.decode(found, "wan0", "ingress", (0x5100,), {9: "up9"})
    assert (other == item) == ("20" in name)  # those of chain 0 name no device


@pytest.mark.parametrize("name", ["splitter", "tree below a splitter", "tree", "clsact"])
def test_qdiscs_are_those_that_were_tried_on_real_kernels(name: str) -> None:
    wire = _RouteWire()
    if name == "clsact":
        route.add_clsact(wire, 7)
    elif name == "splitter":
        route.put_splitter(wire, 7, 0x5100, 1536)
    else:
        route.put_tree(wire, 7, 0x5100, 0xFFFE, 1536 if "below" in name else 0)
    assert wire.sent[0][:2] == (36, 0x605 if name == "clsact" else 0x505)
    _same(wire.sent[0][2], MESSAGES[name])
