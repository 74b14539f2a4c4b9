"""Conntrack's messages as we read them, against pyroute2's decoder."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from unit.ends import ENDS, TCP, THEM4, THEM6, UDP, US4, US6, port
from vff_qos.core.flows.ends import FlowSeen, ServiceEnds
from vff_qos.kernel.packed.flow_events import FlowDecoder
from vff_qos.kernel.packed.netlink import HEADER, attr, nest


def tuple_attr(kind: int, proto: int, src: bytes, sport: int, dst: bytes, dport: int) -> bytes:
    """CTA_TUPLE_ORIG or CTA_TUPLE_REPLY."""
    first = 1 if len(src) == 4 else 3
    ports = attr(2, port(sport)), attr(3, port(dport))
    if proto == socket.IPPROTO_ICMP:
        ports = attr(4, port(sport)), attr(5, b"\x08")
    return nest(
        kind,
        nest(1, attr(first, src), attr(first + 1, dst)),
        nest(2, attr(1, bytes((proto,))), *ports),
    )


def message(family: int, attributes: bytes, kind: int = 0, cause: int = 0) -> bytes:
    """A whole message of conntrack: ``kind`` is 0 (NEW) or 2 (DELETE)."""
    body = bytes((family, 0, 0, 0)) + attributes
    return HEADER.pack(HEADER.size + len(body), 1 << 8 | kind, 0x600, 0, cause) + body


def by_pyroute2(data: bytes) -> FlowSeen | None:
    """The same flow, as another decoder reads it."""
    decoded = nfct_msg(data)
    decoded.decode()

    def value(*path: str) -> Any:
        found: Any = decoded
        for name in path:
            found = found.get_attr(name) if found is not None else None
        return found

    if value("CTA_ZONE"):
        return None
    family = decoded["nfgen_family"]
    name = "CTA_IP_V4" if family == socket.AF_INET else "CTA_IP_V6"
    proto = value("CTA_TUPLE_ORIG", "CTA_TUPLE_PROTO", "CTA_PROTO_NUM")
    if proto not in (TCP, UDP):
        return None
    ends = []
    for side in "SRC", "DST":
        address = value("CTA_TUPLE_ORIG", "CTA_TUPLE_IP", f"{name}_{side}")
        number = value("CTA_TUPLE_ORIG", "CTA_TUPLE_PROTO", f"CTA_PROTO_{side}_PORT")
        ends.append((socket.inet_pton(family, address), number))
    ours = [a in (US4, US6) and (p == 443 or 20000 <= p <= 20100) for a, p in ends]
    if not any(ours):
        return None
    (client, client_port), (us, our_port) = ends if ours[1] else reversed(ends)
    return FlowSeen(
        client + port(client_port),
        bytes((proto,)) + us + port(our_port),
        value("CTA_MARK") or 0,
        value("CTA_PROTOINFO", "CTA_PROTOINFO_TCP", "CTA_PROTOINFO_TCP_STATE") or 0,
        value("CTA_TIMESTAMP", "CTA_TIMESTAMP_START") or 0,
        decoded["header"]["type"] & 0xFF == 2 and decoded["header"]["pid"] != 0,
    )


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Messages with any of the kernel's attributes, in any order."""
    v6 = draw(st.booleans())
    us, them = (US6, THEM6) if v6 else (US4, THEM4)
    proto = draw(st.sampled_from([TCP, UDP, socket.IPPROTO_ICMP, socket.IPPROTO_SCTP]))
    numbers = st.sampled_from([443, 444, 20000, 20100, 20101, 40000, 65535])
    src, dst = draw(st.sampled_from([(them, us), (us, them), (us, us), (them, them)]))
    sport, dport = draw(numbers), draw(numbers)
    word = st.binary(min_size=4, max_size=4)
    long = st.binary(min_size=8, max_size=8)
    tcp = [attr(1, bytes((draw(st.integers(0, 10)),))), attr(2, b"\x07"), attr(4, b"\x23\x00")]
    more = {
        "status": attr(3, draw(word)),
        "timeout": attr(7, draw(word)),
        "mark": attr(8, draw(word)),
        "use": attr(11, draw(word)),
        "id": attr(12, draw(word)),
        "counters": nest(9, attr(1, draw(long)), attr(2, draw(long))),
        "labels": attr(22, draw(long) + draw(long)),
        "stamp": nest(20, attr(1, b"\0" + draw(long)[1:]), attr(2, draw(long))),
        "tcp": nest(4, nest(1, *draw(st.permutations(tcp)))),
        "zone": attr(18, draw(st.sampled_from([b"\0\x07", b"\x01\0"]))),
        "helper": nest(5, attr(1, draw(st.sampled_from([b"ftp\0", b"pptp\0"])))),
    }
    names = draw(st.lists(st.sampled_from(sorted(more)), unique=True))
    parts = [
        tuple_attr(1, proto, src, sport, dst, dport),
        tuple_attr(2, proto, dst, dport, src, sport),
        *(more[name] for name in names),
    ]
    family = socket.AF_INET6 if v6 else socket.AF_INET
    cause = draw(st.sampled_from([0, 1, 0x80000000]))
    return message(family, b"".join(parts), draw(st.sampled_from([0, 2])), cause)


# One for all examples: what it has learned of one message must not be applied to another.
_DECODER = FlowDecoder(ENDS)


@settings(max_examples=2000)
@given(messages())
def test_messages_are_read_as_pyroute2_reads_them(data: bytes) -> None:
    assert _DECODER.decode(data) == by_pyroute2(data)
    assert _DECODER.decode(data) == FlowDecoder(ENDS).decode(data)


def test_equal_lengths_with_other_attributes_are_told_apart() -> None:
    decoder = FlowDecoder(ENDS)
    flow = tuple_attr(1, UDP, THEM4, 5, US4, 443)
    for kind, mark in ((8, 0x01020304), (12, 0), (7, 0), (8, 0x01020304)):
        data = message(socket.AF_INET, flow + attr(kind, b"\1\2\3\4"))
        seen = decoder.decode(data)
        assert seen is not None
        assert seen.mark == mark


def test_what_a_decoder_remembers_is_bounded() -> None:
    decoder = FlowDecoder(ServiceEnds((), [US4]))
    for number in range(1, 20_000):
        filler = attr(22, bytes(number % 1000))
        data = message(socket.AF_INET, tuple_attr(1, UDP, THEM4, 5, US4, number) + filler)
        seen = decoder.decode(data)
        assert seen is not None
        assert seen.ours == b"\x11" + US4 + port(number)
    assert sum(map(len, decoder._layouts.values())) <= 64
    assert len(decoder._known) <= 4096


@pytest.mark.parametrize("cut", [4, 20, 30, 60])
def test_a_truncated_message_is_an_error(cut: int) -> None:
    data = message(socket.AF_INET, tuple_attr(1, UDP, THEM4, 5, US4, 443))
    with pytest.raises(ValueError, match="truncated"):
        FlowDecoder(ENDS).decode(data[:-cut])


def test_mapped_addresses_are_ipv4() -> None:
    def mapped(address: bytes) -> bytes:
        return bytes(10) + b"\xff\xff" + address

    decoder = FlowDecoder(ServiceEnds(((443, 443),), [mapped(US4)]))
    expected = (THEM4 + port(5), b"\x06" + US4 + port(443))
    for family, src, dst in (
        (socket.AF_INET, THEM4, US4),
        (socket.AF_INET6, mapped(THEM4), mapped(US4)),
    ):
        for _ in range(2):
            seen = decoder.decode(message(family, tuple_attr(1, TCP, src, 5, dst, 443)))
            assert seen is not None
            assert seen[:2] == expected
        back = decoder.decode(message(family, tuple_attr(1, TCP, dst, 443, src, 5)))
        assert back is not None
        assert back[:2] == expected
