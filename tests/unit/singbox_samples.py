"""What sing-box sends of its connections, and what it might."""

from __future__ import annotations

from vff_qos.core.claims.event_stream import frame

#: What sing-box 1.14.4 has sent of a SOCKS5 connection.
REAL = bytes.fromhex(
    "122431356162313166612d383435372d343234622d623561322d3338323364393935383333631a80010a"
    "2431356162313166612d383435372d343234622d623561322d3338323364393935383333631202696e1a05736f"
    "636b7320042a03746370320f3132372e302e302e313a35303439343a0e3132372e302e302e313a373030305203"
    "626f6260cfe083bca1349a0106646972656374a20106646972656374aa0106646972656374"
)
#: Its answer to a wrong secret, and where it could not write a name: headers at the end.
REFUSED = bytes.fromhex("40899acac8b5254207317f8f355dc741a45076a673d86f63498f57")
STATUS = bytes.fromhex("40889acac8b21234da8f")


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(*events: bytes) -> bytes:
    """With a field that says that it is the first one."""
    body = b"".join(field(1, event) for event in events) + field(2, 1)
    return b"\0" + len(body).to_bytes(4, "big") + body


def frames(data: bytes, size: int = 16_384) -> bytes:
    return b"".join(frame(0, 0, 1, data[at : at + size]) for at in range(0, len(data), size))


def event(kind: int = 0, **values: int | bytes) -> bytes:
    numbers = {"inbound": 2, "source": 6, "target": 7, "user": 10, "created": 12, "closed": 13}
    known: dict[str, int | bytes] = {
        "inbound": b"in", "source": b"192.0.2.1:5555", "user": b"bob", "created": 1_795_690_655_823,
    }  # fmt: skip
    connection = b"".join(field(numbers[k], v) for k, v in {**known, **values}.items())
    return (field(1, kind) if kind else b"") + field(2, b"some-id") + field(3, connection)
