"""The access log as a file: rotation, restarts, and since when its lines were written."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vff_qos.core.claims.accesslog import MESSAGE_BYTES, NAME_BYTES, Claim, Stranger
from vff_qos.core.claims.lines import MAX_CARRY_BYTES
from vff_qos.core.claims.stamp import written
from vff_qos.errors import SourceError
from vff_qos.sources import clock as clock_module
from vff_qos.sources import file as file_module
from vff_qos.sources.clock import Clock
from vff_qos.sources.file import FileSource

EPOCH = 1_795_000_000.0


@dataclass
class Watch:
    """A clock that stands still until somebody moves it."""

    up: float = 1_000.0
    offset: float = EPOCH

    def clock(self) -> Clock:
        return Clock(lambda: self.up + self.offset, lambda: self.up)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


def line(number: int, stamp: bytes = b"2026/11/20 15:48:00.448421") -> bytes:
    return stamp + b" from 1.2.3.4:%d accepted tcp:a:1 [i -> o] email: a\n" % number


RAW = (
    b"2026/11/20 15:48:00.448421 from 9.9.9.9:9 rejected  proxy/trojan: failed to read address and "
    b"port > common/protocol: invalid domain name: a\n"
)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def port(claim: Claim) -> int:
    return int(claim.source.rpartition(b":")[2])


def read_all(source: FileSource) -> list[Claim]:
    claims = source.read()
    while source.more:
        claims += source.read()
    return claims


def ports(source: FileSource) -> list[int]:
    return [port(claim) for claim in read_all(source)]


def restarted(source: FileSource, log: Path, watch: Watch | None = None) -> FileSource:
    place = json.loads(json.dumps(source.checkpoint()))
    source.close()
    return FileSource(str(log), place, clock=watch.clock() if watch else None)


# -- which lines --------------------------------------------------------------------------------


def test_several_rotations_while_the_agent_is_down_lose_no_line(log: Path) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log))
    assert ports(source) == [1]
    place = source.checkpoint()
    source.close()
    append(log, line(2))
    log.rename(log.with_name("access.log.1"))
    log.write_bytes(line(3))
    assert ports(FileSource(str(log), place)) == [2, 3]


def test_a_missing_log_is_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "later" / "access.log"
    source = FileSource(str(log))
    assert source.read() == []
    assert source.missing
    log.parent.mkdir()
    log.write_bytes(line(1))
    assert source.tick() is None
    assert ports(source) == [1]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceError, match="not a regular file"):
        FileSource(str(tmp_path / "fifo"))
    (tmp_path / "plain").touch()
    with pytest.raises(SourceError, match="Not a directory"):
        FileSource(str(tmp_path / "plain" / "access.log"))


@pytest.mark.parametrize("hours", [0, 1, 30])
def test_a_restart_loses_no_line_however_long_nobody_ran(
    log: Path, watch: Watch, hours: int
) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log), clock=watch.clock())
    assert ports(source) == [1]
    append(log, line(2, b"1999/01/01 00:00:00"))
    watch.up += hours * 3_600
    source = restarted(source, log, watch)
    assert source.replaying
    assert ports(source) == [2]
    assert not source.replaying


def test_a_restart_reads_no_more_than_64_mib(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "REPLAY_BYTES", 1_000)
    log.write_bytes(line(1))
    source = FileSource(str(log))
    assert ports(source) == [1]
    append(log, b"".join(map(line, range(100, 900))))
    claims = read_all(restarted(source, log))
    assert port(claims[-1]) == 899
    assert sum(len(line(port(claim))) for claim in claims) <= 1_000
    assert claims[0].tainted


def test_a_truncated_log_is_read_from_its_start(log: Path) -> None:
    log.write_bytes(line(1) + line(2)[:20])
    source = FileSource(str(log))
    assert ports(source) == [1]
    log.write_bytes(line(3))
    assert ports(source) == [3]
    # It may be longer again before anybody looks.
    log.write_bytes(b"".join(line(n, b"2026/11/20 15:49:00") for n in (4, 5, 6)))
    assert ports(source) == [4, 5, 6]
    assert source.counters.unparsed == source.counters.torn == 0
    source = restarted(source, log)
    log.write_bytes(line(7))
    assert ports(source) == [7]
    place = source.checkpoint()
    source.close()
    log.write_bytes(line(8, b"2026/11/20 15:50:00") * 2)
    assert ports(FileSource(str(log), place)) == [8, 8]


def test_a_log_that_changed_between_opening_and_reading_is_read_once(log: Path) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log))
    log.write_bytes(line(2, b"2026/11/20 15:49:00"))
    assert ports(source) == [2]
    append(log, line(3))
    assert ports(source) == [3]


def test_a_step_of_the_clock_closes_no_old_log(log: Path, watch: Watch) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log), clock=watch.clock())
    assert ports(source) == [1]
    old = log.with_name("access.log.1")
    log.rename(old)
    log.write_bytes(line(2))
    assert ports(source) == [2]
    watch.offset += 3_600
    source.tick()
    append(old, line(3))
    assert ports(source) == [3]


# -- two writes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 20, 26, 27, 60, len(line(2)) - 1])
@pytest.mark.parametrize("restart", [False, True])
def test_a_line_in_two_writes_is_whole_whatever_happens_between(
    log: Path, watch: Watch, cut: int, restart: bool
) -> None:
    log.write_bytes(line(1) + line(2)[:cut])
    source = FileSource(str(log), clock=watch.clock())
    assert ports(source) == [1]
    for _ in range(3):
        watch.up += 700
        source.tick()
        assert ports(source) == []
    if restart:
        source = restarted(source, log, watch)
        assert ports(source) == []
    append(log, line(2)[cut:] + line(3))
    assert ports(source) == [2, 3]
    assert source.counters.torn == source.counters.unparsed == 0


@given(cuts=st.lists(st.integers(0, MAX_CARRY_BYTES + 30_000), max_size=4))
@settings(max_examples=30, deadline=None)
def test_an_endless_line_is_given_up_over_restarts_too(cuts: list[int]) -> None:
    """A restart within it must not take its rest for a line."""
    path = Path(f"/dev/shm/vff-qos-test-{os.getpid()}.log")
    rest = line(666)
    data = b"x" * (MAX_CARRY_BYTES + 10_000) + rest[:-1] + rest + line(2)
    edges = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    path.write_bytes(b"")
    source = FileSource(str(path))
    got, start = [], 0
    try:
        for end in edges:
            append(path, data[start:end])
            start = end
            got += read_all(source)
            source = restarted(source, path)
        assert [claim for claim in got if not claim.tainted and claim.email] == []
        assert [port(claim) for claim in got][-1] == 2
        assert len(got) == 1 or edges[0] > MAX_CARRY_BYTES
    finally:
        source.close()
        path.unlink()


# -- distrust -----------------------------------------------------------------------------------


def test_distrust_outlives_a_restart(log: Path) -> None:
    log.write_bytes(RAW)
    source = FileSource(str(log))
    read_all(source)
    append(log, line(1))
    source = restarted(source, log)
    assert [claim.tainted for claim in read_all(source)] == [True]
    append(log, b"".join(line(1) for _ in range(NAME_BYTES // len(line(1)) + 1)))
    assert not read_all(restarted(source, log))[-1].tainted


@pytest.mark.parametrize("restart", [False, True])
def test_distrust_goes_over_into_the_next_file(log: Path, restart: bool) -> None:
    """A logger that splits at lines may have split a stranger's text."""
    log.write_bytes(line(1))
    source = FileSource(str(log))
    read_all(source)
    append(log, RAW * 1_500)  # more than one block
    log.rename(log.with_name("access.log.1"))
    log.write_bytes(line(2) * 5)
    if restart:
        source = restarted(source, log)
    else:
        source.tick()
    claims = read_all(source)
    assert [claim.tainted for claim in claims] == [True, True, True, True, False]
    log.rename(log.with_name("access.log.2"))
    log.write_bytes(line(3))
    assert [claim.tainted for claim in read_all(source)] == [False]


def test_distrust_stays_with_a_log_that_is_truncated(log: Path) -> None:
    log.write_bytes(RAW)
    source = FileSource(str(log))
    read_all(source)
    log.write_bytes(line(1))
    assert [claim.tainted for claim in read_all(source)] == [True]


def test_a_first_look_trusts_nothing_that_it_sees_no_beginning_of(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = b"".join(map(line, range(10_000, 12_000)))
    log.write_bytes(many)
    assert not any(claim.tainted for claim in read_all(FileSource(str(log))))
    monkeypatch.setattr(file_module, "FIRST_LOOK_BYTES", 64 << 10)
    claims = read_all(FileSource(str(log)))
    assert port(claims[-1]) == 11_999
    assert len(claims) < 1_400
    doubted = sum(claim.tainted for claim in claims)
    assert MESSAGE_BYTES <= doubted * len(line(10_000)) < MESSAGE_BYTES + 200
    assert claims[0].tainted


def test_a_first_look_goes_further_back_after_the_kill_switch(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_module, "FIRST_LOOK_BYTES", 1_000)
    log.write_bytes(b"".join(map(line, range(10_000, 12_000))))
    assert len(ports(FileSource(str(log), None, EPOCH))) == 2_000


def test_a_checkpoint_of_the_version_before_trusts_nothing_at_once(log: Path) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log))
    read_all(source)
    (place,) = source.checkpoint()
    old = {key: place[key] for key in ("device", "inode", "offset", "fingerprint")}
    append(log, line(2))
    again = FileSource(str(log), [old])
    assert [(port(claim), claim.tainted) for claim in again.read()] == [(2, True)]
    assert again.window[0] == -math.inf


def test_strangers_are_told_of_once(log: Path) -> None:
    log.write_bytes(RAW)
    source = FileSource(str(log))
    source.read()
    assert source.strangers == [Stranger(b"9.9.9.9:9", False)]
    source.read()
    assert source.strangers == []


def test_no_two_files_share_positions(log: Path) -> None:
    """What follows free text is known by its position."""
    log.write_bytes(line(1))
    source = FileSource(str(log))
    first = read_all(source)
    log.rename(log.with_name("access.log.1"))
    log.write_bytes(line(2))
    assert abs(read_all(source)[0].position - first[0].position) > 1 << 40


# -- since when ---------------------------------------------------------------------------------


def test_lines_were_written_after_the_end_was_seen_last(log: Path, watch: Watch) -> None:
    log.touch()
    source = FileSource(str(log), clock=watch.clock())
    source.read()
    watch.up += 5
    source.read()
    watch.up += 7
    append(log, line(1))
    watch.up += 1
    assert ports(source) == [1]
    assert source.window == (1_005.0, 1_013.0)
    assert source.epoch_offset_s == EPOCH
    assert written(b"2026/11/20 15:47:00", *source.window, None) == source.window


def test_while_nothing_is_written_the_window_stays_short(log: Path, watch: Watch) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log), clock=watch.clock())
    assert ports(source) == [1]
    for _ in range(5_000):
        watch.up += 1
        source.tick()
    append(log, line(2))
    watch.up += 1
    assert ports(source) == [2]
    assert source.window == (6_000.0, 6_001.0)


def test_a_line_in_two_writes_began_before_the_first(log: Path, watch: Watch) -> None:
    log.touch()
    source = FileSource(str(log), clock=watch.clock())
    source.read()
    watch.up += 1
    append(log, line(1)[:50])
    for _ in range(4):
        watch.up += 10
        source.tick()
        assert ports(source) == []
    append(log, line(1)[50:] + line(2)[:50])
    watch.up += 10
    assert ports(source) == [1]
    assert source.window == (1_000.0, 1_051.0)
    append(log, line(2)[50:])
    watch.up += 10
    assert ports(source) == [2]
    assert source.window == (1_041.0, 1_061.0)
    append(log, line(3))
    assert ports(source) == [3]
    assert source.window == (1_061.0, 1_061.0)


def test_what_waits_after_a_full_block_is_as_old_as_the_block(log: Path, watch: Watch) -> None:
    log.touch()
    source = FileSource(str(log), clock=watch.clock())
    source.read()
    append(log, b"".join(map(line, range(10_000, 15_000))))
    while True:
        watch.up += 1
        assert source.read()
        assert source.window == (1_000.0, watch.up)
        if not source.more:
            break
    append(log, line(1))
    assert ports(source) == [1]
    assert source.window[0] == watch.up


def test_the_first_look_does_not_know_since_when(log: Path, watch: Watch) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log), clock=watch.clock())
    assert ports(source) == [1]
    assert source.window == (-math.inf, 1_000.0)
    assert source.epoch_offset_s is None


def test_a_new_file_was_written_after_the_last_look_at_the_path(log: Path, watch: Watch) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log), clock=watch.clock())
    read_all(source)
    watch.up += 5
    source.tick()
    log.rename(log.with_name("access.log.1"))
    log.write_bytes(line(2))
    watch.up += 2
    assert ports(source) == [2]
    assert source.window == (1_005.0, 1_007.0)


def test_the_earliest_file_counts(log: Path, watch: Watch) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log), clock=watch.clock())
    read_all(source)
    log.rename(log.with_name("access.log.1"))
    log.touch()
    source.tick()
    append(log.with_name("access.log.1"), line(2)[:40])
    assert ports(source) == []
    for _ in range(3):
        watch.up += 10
        source.tick()
    append(log.with_name("access.log.1"), line(2)[40:])
    append(log, line(3))
    assert ports(source) == [2, 3]
    assert source.window == (1_000.0, 1_030.0)


def test_a_restart_knows_since_when(log: Path, watch: Watch) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log), clock=watch.clock())
    read_all(source)
    watch.up += 3
    append(log, line(2))
    source = restarted(source, log, watch)
    assert ports(source) == [2]
    assert source.window == (1_000.0, 1_003.0)
    assert source.epoch_offset_s == EPOCH


def test_a_clock_that_is_set_while_nobody_runs_moves_nothing(log: Path, watch: Watch) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log), clock=watch.clock())
    read_all(source)
    watch.up += 3
    watch.offset -= 3_600
    append(log, line(2))
    source = restarted(source, log, watch)
    assert ports(source) == [2]
    assert source.window == (1_000.0, 1_003.0)
    assert source.epoch_offset_s is None
    watch.up += 1
    append(log, line(3))
    assert ports(source) == [3]
    assert source.epoch_offset_s == EPOCH - 3_600


def test_lines_from_before_a_reboot_are_older_than_the_reboot(
    log: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log), clock=watch.clock())
    read_all(source)
    append(log, line(2))
    place = source.checkpoint()
    source.close()
    monkeypatch.setattr(clock_module, "boot_id", lambda: "another")
    # The clock of this machine begins in 1970 until it is set.
    for offset in (EPOCH + 1_500, 0.0):
        watch.up, watch.offset = 20.0, offset
        source = FileSource(str(log), place, clock=watch.clock())
        assert ports(source) == [2]
        assert source.window[0] <= 0.0
        assert source.epoch_offset_s is None


def test_a_step_of_the_clock_is_seen_where_it_falls_into_the_window(
    log: Path, watch: Watch
) -> None:
    log.touch()
    source = FileSource(str(log), clock=watch.clock())
    source.read()
    for step in (3_600.0, -3_600.0, 0.2):
        append(log, line(1))
        watch.up += 1
        watch.offset += step
        assert ports(source) == [1]
        assert source.epoch_offset_s is None
        append(log, line(2))
        watch.up += 1
        assert ports(source) == [2]
        assert source.epoch_offset_s == watch.offset
    # Between two looks that gave nothing, and in a line that took longer.
    append(log, line(3)[:30])
    assert ports(source) == []
    watch.offset += 60
    for _ in range(3):
        watch.up += 1
        source.tick()
    append(log, line(3)[30:])
    assert ports(source) == [3]
    assert source.epoch_offset_s is None


def test_an_idle_log_is_saved_once_a_minute_and_a_busy_one_each_time(
    log: Path, watch: Watch
) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log), clock=watch.clock())
    read_all(source)
    saved = set()
    for _ in range(600):
        watch.up += 1
        source.tick()
        saved.add(json.dumps(source.checkpoint()))
    assert 9 <= len(saved) <= 11
    append(log, line(2))
    read_all(source)
    assert source.checkpoint()[0]["read_at"] == watch.up + EPOCH


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_no_strangers_last_line_moves_what_counts_as_old(
    log: Path, watch: Watch, zone: None
) -> None:
    """The zone was once inferred from the last line of the log, which anybody may have written."""
    log.touch()
    source = FileSource(str(log), clock=watch.clock())
    source.read()
    for shift in (0, 3_600, -5 * 3_600, 45 * 60):
        watch.up += 1
        at = watch.up + watch.offset
        stamp = time.strftime("%Y/%m/%d %H:%M:%S", time.gmtime(at + shift)).encode()
        append(log, line(1, stamp) + RAW + line(2, b"2026/11/20 12:21:00"))
        watch.up += 1
        honest, forged = read_all(source)
        since, until = written(honest.time, *source.window, source.epoch_offset_s)
        assert since <= at - EPOCH <= until
        assert until - since < 1.1
        assert source.window[0] <= written(forged.time, *source.window, source.epoch_offset_s)[0]
