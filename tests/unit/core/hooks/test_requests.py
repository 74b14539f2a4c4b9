"""What engines ask and report."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.hooks.requests import (
    Login,
    Moved,
    read_goproxy,
    read_hysteria,
    read_reports,
    summed,
)


def test_hysterias_question() -> None:
    asked = {"addr": "[2001:db8::5]:4433", "auth": "x", "tx": 5}
    login, text, same = read_hysteria(json.dumps(asked).encode())
    assert (login, text, same) == (Login("[2001:db8::5]:4433", "2001:db8::5"), "x", asked)
    # An address without a port names no flow; the login is judged all the same.
    assert read_hysteria(b'{"addr": "@", "auth": ""}')[0] == Login("", "@")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"addr": 5, "auth": "x"}', b'{"auth": "x"}', b"\xff"]
)
def test_what_is_no_question_of_hysterias(body: bytes) -> None:
    with pytest.raises(ValueError, match="the body is"):
        read_hysteria(body)


def test_goproxys_question() -> None:
    query = {"client_addr": "192.0.2.5:99", "local_addr": "198.51.100.1:1080", "user": "a"}
    assert read_goproxy(query) == Login("192.0.2.5:99", "192.0.2.5", "198.51.100.1:1080")
    assert read_goproxy({"ip": "192.0.2.5"}) == Login("", "192.0.2.5")
    assert read_goproxy({}) == Login("", "")
    assert read_goproxy({"client_addr": "tcp:192.0.2.5:99"}).client == ""


def test_reports_by_query_and_in_an_array() -> None:
    reports = read_reports(
        [
            {"bytes": "100", "username": "a", "client_addr": "192.0.2.5:99", "id": "x"},
            {"bytes": 50, "username": "a"},
            {"bytes": 7, "username": ""},
            {"bytes": 7, "client_addr": "192.0.2.5:98"},
        ]
    )
    assert reports == [Moved("a", "192.0.2.5:99", "", 100), Moved("a", "", "", 50)]
    assert summed(reports) == {"a": (150, 2)}


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (5, "[0] is no object"),
        ({"bytes": "x", "username": "a"}, "[0] bytes is no whole number below 2^62"),
        ({"bytes": -1, "username": "a"}, "[0] bytes is no whole number below 2^62"),
        ({"bytes": 1 << 63, "username": "a"}, "[0] bytes is no whole number below 2^62"),
        ({"bytes": float("inf"), "username": "a"}, "[0] bytes is no whole number below 2^62"),
        ({"bytes": True, "username": "a"}, "[0] bytes is no whole number below 2^62"),
        ({"bytes": [], "username": "a"}, "[0] bytes is no whole number below 2^62"),
        ({"bytes": 1, "username": "a\nb"}, "[0] username is not printable text"),
        ({"bytes": 1, "username": ["a"]}, "[0] username is not printable text"),
    ],
)
def test_reports_that_are_none(entry: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        read_reports([entry])


_KEYS = st.sampled_from(["bytes", "username", "client_addr"])


@given(
    st.lists(
        st.recursive(
            st.none() | st.floats() | st.text() | st.integers(),
            lambda inner: st.dictionaries(_KEYS, inner),
        )
    )
)
def test_whatever_comes_ends_in_reports_or_a_sentence(entries: list[object]) -> None:
    try:
        reports = read_reports(entries)
    except ValueError:
        return
    assert all(report.user and report.size >= 0 for report in reports)
