"""pyroute2's decoder is the judge of the marks that we pack by hand."""

from __future__ import annotations

import errno
import socket

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from vff_qos.core.flow import Flow
from vff_qos.kernel.packed import conntrack

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


@pytest.mark.parametrize("flow", [V4, V6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("count", [0, 1, 256, 257, 700])
def test_marks_given_to_many_flows_of_one_end_are_what_each_alone_would_send(
    flow: Flow, count: int
) -> None:
    last = flow.src[-1]
    flows = [
        flow._replace(src=flow.src[:-1] + bytes((n * 7 + last & 0xFF,)), sport=65_535 - n)
        for n in range(count)
    ]
    marks = [0x5103_0000 + 258 * n for n in range(count)]
    gone = set(flows[::5])
    wire = _Wire(gone)
    table = object.__new__(conntrack.Conntrack)
    table.netlink = wire  # type: ignore[assignment]
    ours = bytes((flow.proto,)) + flow.dst + flow.dport.to_bytes(2, "big")
    clients = [f.src + f.sport.to_bytes(2, "big") for f in flows]
    errors = table.give_marks(conntrack.surround(ours), clients, marks)
    assert {flows[index] for index in errors} == gone
    expected = [conntrack.encode_set(0, f, m) for f, m in zip(flows, marks, strict=True)]
    assert [message[:8] + bytes(4) + message[12:] for message in wire.sent] == expected
