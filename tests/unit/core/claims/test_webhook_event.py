"""From the body of a POST to a claim."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.webhook_samples import EXPECTED, SAMPLES, THEN, ends, posted
from vff_qos.core.claims.accesslog import Claim, Scanner, client_ends, parse_source
from vff_qos.core.claims.webhook_event import Event, Nothing, read_event


def _claim(**fields: object) -> Claim:
    event = read_event(posted(**fields), THEN)
    assert isinstance(event, Event)
    return event.claim


# -- events -------------------------------------------------------------------------------------


def test_each_sample_gives_the_claim_of_its_connection() -> None:
    for body, expected in zip(SAMPLES, EXPECTED, strict=True):
        got = read_event(body, THEN)
        if expected is None:
            assert got is Nothing.NO_USER
            continue
        assert isinstance(got, Event)
        assert ends(got.claim) == expected
        assert not got.claim.tainted


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("192.0.2.5:1", b"192.0.2.5:1"),
        ("tcp:192.0.2.5:1", b"tcp:192.0.2.5:1"),
        ("udp:[2001:DB8::7]:65535", b"udp:[2001:db8::7]:65535"),
        ("[::ffff:192.0.2.5]:7", b"192.0.2.5:7"),
    ],
)
def test_the_end_is_that_of_a_log_line(text: str, source: bytes) -> None:
    assert _claim(source=text).end == parse_source(source)


def test_the_key_of_a_claim_tells_flows_apart() -> None:
    sources = ("192.0.2.5:1", "192.0.2.5:256", "192.0.2.1:5", "[2001:db8::7]:1",
               "[::192.0.2.5]:1")  # fmt: skip
    locals_ = (None, "198.51.100.1:443", "198.51.100.1:444", "198.51.100.2:443",
               "[2001:db8::1]:443")  # fmt: skip
    claims = {
        (claim.end, claim.local): claim.source
        for claim in (_claim(source=s, inboundLocal=own) for s in sources for own in locals_)
    }
    assert len(set(claims.values())) == len(claims) > len(sources)
    assert _claim().source == _claim(email="bob@x", source="udp:192.0.2.5:1234").source
    # Without our end it is what the assigner remembers a client's flows by.
    alone = _claim(inboundLocal=None)
    assert client_ends([alone, _claim()]) == [alone.source, alone.source]


@pytest.mark.parametrize(
    "text",
    ["192.0.2.5:0", "0.0.0.0:0", "@", "unix:/x", "example.com:5", "192.0.2.5", "1.2.3.400:5",
     "192.0.2.5:99999", "", None, "192.0.2.5:1\n", "\u0661.2.3.4:5"],
)  # fmt: skip
def test_what_is_no_socket_claims_nothing(text: str | None) -> None:
    assert read_event(posted(source=text), THEN) is Nothing.NO_FLOW


@pytest.mark.parametrize(
    "local", [None, "0.0.0.0:443", "[::]:443", "[2001:db8::1]:443", "x", "198.51.100.1:0"]
)
def test_a_local_end_that_cannot_be_the_flows_is_left_out(local: str | None) -> None:
    assert _claim(inboundLocal=local).local is None


@pytest.mark.parametrize(
    "email",
    ["", "a\nb", "a\x00", "a\x7f", "a\ufffdb", "\ud800", "a" * 321, "\u00e9" * 161,
     "\x01restricted"],
)  # fmt: skip
def test_an_email_that_no_log_could_hold_is_dropped(email: str) -> None:
    assert read_event(posted(email=email), THEN) is Nothing.BAD_EMAIL


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\ufffd"),
               max_size=330))  # fmt: skip
def test_the_webhook_and_the_log_hold_the_same_emails(email: str) -> None:
    line = f"2026/11/20 15:48:00 from 192.0.2.5:1 accepted tcp:a:1 [i >> o] email: {email}\n"
    logged = [claim.email for claim in Scanner().scan(line.encode()) if claim.email]
    event = read_event(posted(email=email), THEN)
    assert logged == ([event.claim.email] if isinstance(event, Event) else [])


@pytest.mark.parametrize("email", ["1", "a b | c: ]", "\u0438\u0432\u0430\u043d", "x" * 320])
def test_emails_of_panels_are_kept_as_they_are(email: str) -> None:
    assert _claim(email=email).email == email.encode()


def test_an_event_that_waited_for_more_than_a_minute_is_stale() -> None:
    assert read_event(posted(ts=THEN - 61), THEN) is Nothing.STALE
    event = read_event(posted(ts=THEN - 59), THEN)
    assert isinstance(event, Event)
    assert event.age_s == 59


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"null", b"1", b'{"email":"a"}', b"\xff" + posted(), b"\xef\xbb\xbf{}",
     posted(email=1), posted(source=[]), posted(inboundTag={}), posted(inboundLocal=1),
     posted(ts="now"), posted(ts=True), posted(ts=None), posted(ts=-1), b"[" * 60_000,
     b'{"email":"a","source":"1.2.3.4:5","ts":1e999}', posted()[:-1],
     b'{"email":"a","source":"1.2.3.4:5","ts":' + b"9" * 4_000 + b"}",
     posted().decode().encode("utf-16")],
)  # fmt: skip
def test_what_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_event(body, THEN)


@given(st.text(max_size=2048))
def test_no_name_that_a_customer_chose_changes_the_claim(name: str) -> None:
    plain = _claim()
    assert _claim(destination=f"{name}:443", originalTarget=f"tcp:{name}:443") == plain


@given(st.one_of(st.binary(max_size=300), st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["email", "source", "ts", "inboundTag", "x"]), inner),
    max_leaves=8).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_garbage_gives_no_claim_that_is_not_whole(body: bytes) -> None:
    try:
        got = read_event(body, THEN)
    except ValueError:
        return
    if isinstance(got, Event):
        event = json.loads(body)
        assert got.claim.email is not None
        assert got.claim.email.decode() == event["email"]
        assert got.claim.end is not None
