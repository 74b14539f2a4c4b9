"""The parser of the webhook's HTTP: any cut, any garbage."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.webhook_samples import THEN, post
from vff_qos.core.claims.webhook_event import read_event
from vff_qos.core.http import MAX_BODY_BYTES, MAX_HEAD_BYTES, BadRequest, Parser, Request

# -- HTTP ---------------------------------------------------------------------------------------


def _feed(data: bytes, cuts: list[int], authorization: bytes = b"") -> tuple[list[Request], int]:
    """The requests and the status of the refusal (0: none)."""
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    parser, requests, start = Parser(authorization), [], 0
    for end in edges:
        while start < end:
            piece = data[start : min(end, start + parser.room)]
            assert piece, "a parser that takes nothing would hang"
            start += len(piece)
            try:
                requests += parser.feed(piece)
            except BadRequest as error:
                return requests, error.status
            assert parser.room > 0
    return requests, 0


_LINE = b"POST / HTTP/1.1\r\n"


@given(bodies=st.lists(st.binary(max_size=200), max_size=4),
       cuts=st.lists(st.integers(0, 1500), max_size=12))  # fmt: skip
def test_requests_survive_any_cut(bodies: list[bytes], cuts: list[int]) -> None:
    data = b"".join(post(body, "Authorization: Bearer x") for body in bodies)
    for authorization in (b"", b"Bearer x"):
        requests, status = _feed(data, cuts, authorization)
        assert [request.body for request in requests] == bodies
        assert status == 0
    assert _feed(data, cuts, b"Bearer y") == ([], 403 if bodies else 0)


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=5),
       prefix=st.sampled_from([b"", _LINE, _LINE + b"Content-Length: "]))  # fmt: skip
def test_random_bytes_end_in_a_refusal_or_in_waiting(
    data: bytes, cuts: list[int], prefix: bytes
) -> None:
    requests, _status = _feed(prefix + data, cuts)
    for request in requests:
        with pytest.raises(ValueError, match=r"\w"):
            read_event(request.body, THEN)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 405),
        (b"POST / HTTP/1.1\r\n\r\n", 411),
        (b"POST / HTTP/2.0\r\nContent-Length: 1\r\n\r\n", 400),
        (b"POST /\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\nContent-Length: 0\n\n\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1,1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length : 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n folded: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", 417),
        (f"POST / HTTP/1.1\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode(), 413),
        (b"POST / HTTP/1.1\r\nX: " + b"y" * MAX_HEAD_BYTES, 431),
        (b"POST / HTTP/1.1\r\nX: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (b"y" * (MAX_HEAD_BYTES + 1), 431),
    ],
)
def test_what_is_not_a_bounded_post_is_refused(data: bytes, status: int) -> None:
    assert _feed(data, []) == ([], status)
    assert _feed(data, list(range(0, len(data), 7)))[1] == status


def test_hostile_heads_cost_no_time() -> None:
    spaces = b"POST / HTTP/1.1\r\nX:" + b" " * 8_000 + b"\x00\r\n\r\n"
    before = time.thread_time()
    assert _feed(spaces, []) == ([], 400)
    assert time.thread_time() - before < 0.1


def test_a_parser_never_holds_more_than_one_request() -> None:
    parser = Parser()
    parser.feed(post(b"x" * MAX_BODY_BYTES)[:-1])
    assert 0 < parser.room < MAX_HEAD_BYTES + MAX_BODY_BYTES
    while parser.room > 1 and not parser.feed(b"x"):
        pass
    assert parser.idle or parser.room > MAX_HEAD_BYTES
