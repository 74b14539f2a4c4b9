"""What is posted to /v1/flows: what is taken, and the words for what is not."""

from __future__ import annotations

import json
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.claims.accesslog import TCP, UDP, Endpoint
from vff_qos.core.claims.flow_claim import read_flows

ALICE = {"user": "alice@x", "source": "192.0.2.5:1234", "protocol": "udp"}


def body(*entries: object) -> bytes:
    return json.dumps(entries[0] if len(entries) == 1 else entries).encode()


def test_one_and_several() -> None:
    (claim,) = read_flows(body(ALICE))
    assert claim.email == b"alice@x"
    assert (claim.end, claim.local, claim.protocol) == (
        Endpoint(0, socket.inet_aton("192.0.2.5"), 1234), None, UDP,
    )  # fmt: skip
    assert not claim.tainted
    bob = {"user": "bob", "source": "[::ffff:192.0.2.6]:5", "local": "[2001:db8::1]:443",
           "protocol": "tcp"}  # fmt: skip
    _, second = read_flows(body(ALICE, bob))
    # As conntrack sees them: a mapped address is IPv4, and ours of the other family none of it.
    assert second.end == Endpoint(0, socket.inet_aton("192.0.2.6"), 5)
    assert (second.local, second.protocol) == (None, TCP)
    assert read_flows(b"[]") == []


def test_a_wildcard_of_ours_says_nothing() -> None:
    (claim,) = read_flows(body({**ALICE, "local": "0.0.0.0:443"}))
    assert claim.local is None
    (claim,) = read_flows(body({**ALICE, "local": "198.51.100.1:443"}))
    assert claim.local == Endpoint(0, socket.inet_aton("198.51.100.1"), 443)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"\xff", "the body is not JSON"),
        (b"[" * 5000, "the body is not JSON"),
        (b"5", "the body is no object with user, source, protocol"),
        (b'[{"user": "x"}]', "[0]source is missing"),
        (body({**ALICE, "sauce": 1}), "'sauce' is none of user, source, protocol, local"),
        (body({**ALICE, "protocol": "sctp"}), "protocol: 'sctp' is neither 'tcp' nor 'udp'"),
        (body({**ALICE, "protocol": ["udp"]}), "protocol: ['udp'] is neither 'tcp' nor 'udp'"),
        (body({**ALICE, "user": "a\nb"}), "user: 'a\\nb' is not 1 to"),
        (body({**ALICE, "user": ""}), "user: '' is not 1 to"),
        (body({**ALICE, "user": 7}), "user: 7 is not 1 to"),
        (body({**ALICE, "source": "192.0.2.5"}), "source: '192.0.2.5' is no address and port"),
        (body({**ALICE, "source": "192.0.2.5:0"}), "source: '192.0.2.5:0' is no address and port"),
        (body({**ALICE, "source": "udp:192.0.2.5:9"}), "source: 'udp:192.0.2.5:9' is no address"),
        (body({**ALICE, "local": "x" * 900}), "local: 'xxxx"),
        (body(ALICE, {**ALICE, "local": []}), "[1]local: [] is no address and port"),
    ],
)
def test_what_is_refused_is_named(text: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(sentence)) as refused:
        read_flows(text)
    assert len(str(refused.value)) < 250


_KEYS = st.sampled_from(["user", "source", "protocol", "local", "x"])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner),
    )
)
def test_nothing_else_ever_comes_out(data: object) -> None:
    try:
        claims = read_flows(json.dumps(data).encode())
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all(claim.email and claim.end for claim in claims)
