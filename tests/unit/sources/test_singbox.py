"""sing-box's stream as a source: real sockets, and engines that are away, hang or lie.

The real engine is in the tests of tests/netns.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unit.singbox_samples import STATUS, event, frames, message
from vff_qos.core.claims.accesslog import Claim
from vff_qos.core.claims.event_stream import PING, frame
from vff_qos.core.claims.stamp import written
from vff_qos.sources import singbox
from vff_qos.sources.singbox import SingboxSource


def eventually(check: Callable[[], object], within_s: float = 5.0) -> None:
    """Wait until ``check`` is true."""
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


class Engine:
    """What listens in the place of sing-box's service, and the source that asks it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.folder = tempfile.TemporaryDirectory()
        secret = Path(self.folder.name) / "secret"
        secret.write_text("a-s3cret")
        secret.chmod(0o600)
        self.secret_file = str(secret)
        self.source = SingboxSource(self.address, self.secret_file)

    def accept(self) -> socket.socket:
        """The source's connection, once it has asked."""
        self.listener.settimeout(5)
        peer = self.listener.accept()[0]
        peer.settimeout(5)
        asked = b""
        while b"Bearer a-s3cret" not in asked:
            self.source.read()
            peer.setblocking(False)
            try:
                asked += peer.recv(65_536)
            except BlockingIOError:
                time.sleep(0.002)
        peer.settimeout(5)
        return peer

    def claims(self, count: int) -> list[Claim]:
        found: list[Claim] = []

        def read() -> bool:
            found.extend(self.source.read())
            return len(found) >= count

        eventually(read)
        return found

    def close(self) -> None:
        self.source.close()
        self.listener.close()
        self.folder.cleanup()


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


def streams(engine: Engine) -> int:
    """How many have begun."""
    count: int = vars(engine.source.counters)["streams"]
    return count


def now_ms() -> int:
    return int(time.time() * 1_000)


def test_it_is_told_of_all_and_then_of_each(engine: Engine) -> None:
    peer = engine.accept()
    peer.sendall(frames(message(event(user=b"alice", created=now_ms()))))
    assert [claim.email for claim in engine.claims(1)] == [b"alice"]
    peer.sendall(
        frames(message(event(1), event(user=b"", created=now_ms()), event(created=now_ms())))
    )
    assert [claim.email for claim in engine.claims(1)] == [b"bob"]
    counters = engine.source.counters
    assert (counters.lines, counters.claims, counters.harmless) == (3, 2, 1)
    assert streams(engine) == 1
    assert engine.source.tick() is None and not engine.source.waiting


def test_its_descriptor_says_when_there_is_something(engine: Engine) -> None:
    peer = engine.accept()
    poll = select.poll()
    poll.register(engine.source.descriptors()[0], select.POLLIN)
    engine.source.read()
    assert poll.poll(0) == []
    peer.sendall(frames(message(event(created=now_ms()))))
    assert poll.poll(5_000)


def test_when_each_began_is_known_however_long_ago(engine: Engine) -> None:
    """Hours apart in one message; the clock's own quarter of an hour says nothing then."""
    up_s = time.monotonic()  # nothing began before the machine did
    agos = [age for age in (0.0, 1.0, 299.0, 1_000.0, 1_900.0, 9_000.0) if age < up_s - 1]
    peer = engine.accept()
    began = [now_ms() - int(ago * 1_000) for ago in agos]
    peer.sendall(frames(message(*(event(created=at) for at in began))))
    found: list[tuple[float, float]] = []
    for _ in range(200):
        for claim in engine.source.read():
            window, offset_s = engine.source.window, engine.source.epoch_offset_s
            found.append(written(claim.time, *window, offset_s))
        if len(found) == len(agos):
            break
        time.sleep(0.005)
    offset_s = time.time() - time.monotonic()
    for (since_s, until_s), at in zip(found, sorted(began), strict=True):
        assert since_s <= at / 1e3 - offset_s <= until_s + 0.002
        assert until_s - since_s < 0.1


@pytest.mark.parametrize("later_ms", [None, 3_600_000, -(10**12)])
def test_a_time_that_cannot_be_says_nothing(engine: Engine, later_ms: int | None) -> None:
    peer = engine.accept()
    created = 1 if later_ms is None else now_ms() + later_ms
    peer.sendall(frames(message(event(created=created))))
    engine.claims(1)
    assert engine.source.window[0] == float("-inf")
    assert engine.source.epoch_offset_s is None


def test_one_event_that_is_none_harms_no_other(engine: Engine) -> None:
    peer = engine.accept()
    bad = event(user=b"\xff", created=now_ms())
    peer.sendall(frames(message(bad, event(created=now_ms()))))
    assert [claim.email for claim in engine.claims(1)] == [b"bob"]
    assert engine.source.counters.unparsed == 1


def due(engine: Engine) -> str | None:
    """What a tick says, all waiting times being over."""
    engine.source._retry_at = 0.0
    return engine.source.tick()


def test_an_engine_that_is_away_is_waited_for_and_said_once() -> None:
    engine = Engine()
    port = engine.listener.getsockname()[1]
    peer = engine.accept()
    peer.sendall(frames(message()))
    eventually(lambda: engine.source.read() or streams(engine) == 1)
    peer.close()
    engine.listener.close()
    eventually(lambda: engine.source.read() or engine.source._sock is None)
    assert not engine.source.waiting  # it may be restarting
    said: list[str] = []

    def is_said() -> bool:
        if sentence := due(engine):
            said.append(sentence)
        engine.source.read()
        return bool(said)

    eventually(is_said)
    assert "is not there; waiting for it" in said[0] and '"type": "api"' in said[0]
    assert engine.source.waiting == said[0]
    for _ in range(3):
        assert due(engine) is None
        engine.source.read()
    engine.listener = socket.create_server(("127.0.0.1", port))
    due(engine)
    engine.accept().sendall(frames(message(event(created=now_ms()))))
    engine.claims(1)
    assert not engine.source.waiting
    engine.close()


def test_it_waits_ever_longer_but_not_long(engine: Engine) -> None:
    engine.accept().close()
    engine.listener.close()
    waits = []
    for _ in range(8):
        eventually(lambda: engine.source.read() or engine.source._sock is None)
        waits.append(round(engine.source._retry_at - time.monotonic()))
        due(engine)
    assert waits == sorted(waits) and waits[0] <= 2 and waits[-1] == 30


@pytest.mark.parametrize(
    "text,words",
    [
        (frame(1, 5, 1, STATUS + b"\x0216"), "refuses the secret"),
        (frame(1, 5, 1, STATUS + b"\x0213"), "a name that is no text"),
        (frame(1, 5, 1, STATUS + b"\x0212"), "sing-box has it since 1.14"),
        (frame(7, 0, 0, bytes(8)), "has ended the stream"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no stream of sing-box: a frame of 4740180 bytes"),
        (b"\0" * 9_000 + b"\xff" * 9, "no stream of sing-box"),
    ],
)
def test_why_there_is_no_stream_is_said(engine: Engine, text: bytes, words: str) -> None:
    engine.accept().sendall(text)
    eventually(lambda: engine.source.read() or engine.source._sock is None)
    sentence = engine.source.tick()
    assert sentence is not None and words in sentence
    assert engine.address in sentence and "s3cret" not in sentence


def test_an_engine_that_hangs_is_left(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singbox, "_SILENT_S", 0.0)
    peer = engine.accept()
    peer.sendall(frames(message()))
    eventually(lambda: engine.source.read() or streams(engine) == 1)
    assert engine.source.tick() is None
    assert PING in peer.recv(65_536)
    peer.sendall(frame(6, 1, 0, b"vff-qos?"))
    eventually(lambda: engine.source.read() or engine.source._deadline is None)
    engine.source.tick()
    engine.source._deadline = 0.0
    engine.source.tick()
    assert engine.source._sock is None


def test_one_that_says_nothing_at_all_is_left(engine: Engine) -> None:
    engine.accept()
    engine.source._deadline = 0.0
    sentence = engine.source.tick()
    assert sentence is not None and "has said nothing for 10 s" in sentence


def test_who_never_reads_does_not_hold_it_up(engine: Engine) -> None:
    """Each ping is answered; a peer that reads nothing makes answers wait, which are bounded."""
    peer = engine.accept()
    peer.sendall(frames(message()))
    for _ in range(50):
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            peer.send(frame(6, 0, 0, b"12345678") * 4_000)
        engine.source.read()
        if engine.source._sock is None:
            break
    assert len(engine.source._out) <= singbox._MAX_OUT


def test_without_a_descriptor_it_waits(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """As every other failure: nothing of it ends the agent."""

    def refuse(*_args: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("socket.socket", refuse)
        source = SingboxSource("127.0.0.1:9", engine.secret_file)
    assert "cannot be asked: Too many open files" in (source.tick() or "")
    assert source.read() == []
    source._retry_at = 0.0
    source.tick()
    eventually(lambda: source.read() or "is not there" in source.waiting)
    source.close()
