"""The access log as a file: since when its lines were written."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.core.claims.stamp import written
from vff_qos.sources import clock as clock_module
from vff_qos.sources.file import FileSource

from .access_log import EPOCH, RAW, Watch, append, line, ports, read_all, restarted

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
