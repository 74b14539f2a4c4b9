"""The socket for flows as a source: paths, answers, what is counted."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.sources.told_flows import FlowsSource

ALICE = {"user": "alice@x", "source": "192.0.2.5:1234", "protocol": "udp"}


@pytest.fixture
def source(tmp_path: Path) -> Iterator[FlowsSource]:
    made = FlowsSource(f"unix:{tmp_path / 'flows'}")
    made.read()
    yield made
    made.close()


def post(
    source: FlowsSource, data: object, path: str = "/v1/flows"
) -> tuple[int, str, list[bytes | None]]:
    """Status and body of the answer, and whose claims came of it."""
    client = http.client.HTTPConnection("localhost", timeout=5)
    client.sock = socket.socket(socket.AF_UNIX)
    client.sock.settimeout(5)
    client.sock.connect(source._listen.removeprefix("unix:"))
    client.request("POST", path, json.dumps(data))
    found: list[tuple[int, str]] = []

    def receive() -> None:
        response = client.getresponse()
        found.append((response.status, response.read().decode()))

    waiter = threading.Thread(target=receive)
    waiter.start()
    claims = []
    while waiter.is_alive():
        claims += source.read()
        source.settled()
        waiter.join(0.01)
    client.close()
    return *found[0], [claim.email for claim in claims]


def test_what_is_right_is_taken_and_answered_without_a_body(source: FlowsSource) -> None:
    assert post(source, [ALICE, {**ALICE, "user": "bob"}]) == (204, "", [b"alice@x", b"bob"])
    counters = vars(source.counters)
    assert (counters["lines"], counters["claims"], counters["connections"]) == (1, 2, 1)


def test_what_is_wrong_is_said_and_nothing_of_it_is_taken(source: FlowsSource) -> None:
    status, text, claims = post(source, [ALICE, {**ALICE, "protocol": "x"}])
    assert (status, claims) == (400, [])
    assert json.loads(text) == {"error": "[1]protocol: 'x' is neither 'tcp' nor 'udp'"}
    assert post(source, ALICE, "/v2/flows")[::2] == (404, [])
    assert vars(source.counters)["refused"] == {"event": 1, "path": 1}
    assert "refused a request" in (source.tick() or "")
