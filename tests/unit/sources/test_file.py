"""The access log as a file: rotation, restarts, lines in pieces, distrust."""

from __future__ import annotations

import gzip
import math
import os
import select
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vff_qos.core.claims.accesslog import MESSAGE_BYTES, NAME_BYTES, Stranger
from vff_qos.core.claims.lines import MAX_CARRY_BYTES
from vff_qos.errors import SourceError
from vff_qos.sources import file as file_module
from vff_qos.sources.file import FileSource

from .access_log import EPOCH, RAW, Watch, append, line, port, ports, read_all, restarted, stopped

# -- which lines --------------------------------------------------------------------------------


def test_several_rotations_while_the_agent_is_down_lose_no_line(log: Path) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log))
    assert ports(source) == [1]
    place = stopped(source)
    append(log, line(2))
    log.rename(log.with_name("access.log.2"))
    log.write_bytes(line(3))
    log.rename(log.with_name("access.log.1"))
    log.write_bytes(line(4))
    assert ports(FileSource(str(log), place)) == [2, 3, 4]


@pytest.mark.parametrize("generations", [1, 2, 3])
def test_copies_made_while_the_agent_is_down_lose_no_line(log: Path, generations: int) -> None:
    """logrotate's copytruncate: the log is copied, and begins anew."""
    log.write_bytes(line(1) * 4)
    source = FileSource(str(log))
    assert ports(source) == [1] * 4
    place = stopped(source)
    append(log, line(2))
    for number in range(generations):
        log.with_name(f"access.log-2026112{number}").write_bytes(log.read_bytes())
        log.write_bytes(line(3 + number))
    assert ports(FileSource(str(log), place)) == list(range(2, 3 + generations))


@pytest.mark.parametrize("name", ["access.log.{}", "access.log-2026112{}", "access-2026112{}.log"])
def test_a_log_that_was_empty_may_be_rotated_while_nobody_runs(log: Path, name: str) -> None:
    log.touch()
    source = FileSource(str(log))
    assert ports(source) == []
    place = stopped(source)
    for number in (1, 2):
        append(log, line(number))
        log.rename(log.with_name(name.format(number)))
    log.write_bytes(line(3))
    assert ports(FileSource(str(log), place)) == [1, 2, 3]


#: What old logs begin with: a later time by another zone, by the hour that comes twice or by a
#: stranger's choice, and none at all.
OLD = (
    b"+0200 2026-10-20 10:00:00 INFO [9 0ms] inbound/vless[in]: inbound connection from 1.2.3.4:7",
    line(7, b"2026/11/20 16:50:00.000000").rstrip(b"\n"),
    b"9999 rest of a name",
    b"INFO [900000000 0ms] inbound/vless[in]: inbound connection from 1.2.3.4:7",
)


@pytest.mark.parametrize("is_rotated", [False, True])
@pytest.mark.parametrize("old", OLD)
def test_nothing_of_before_is_read_that_lies_beside_the_log(
    log: Path, old: bytes, is_rotated: bool
) -> None:
    log.with_name("access.log.3").write_bytes((old + b"\n" + line(7)) * 4)
    log.write_bytes(line(1) * 4)
    source = FileSource(str(log))
    assert ports(source) == [1] * 4
    place = stopped(source)
    append(log, line(2))
    new = []
    rotated = log.with_name("access.log.1") if is_rotated else log
    if is_rotated:
        log.rename(rotated)
        log.write_bytes(line(3) * 4)
        log.with_name("access.log.4").write_bytes(log.read_bytes())
        new = [3] * 4
    # Moved, copied, a copy of what is read anyway, compressed, no file, of another name, a link.
    log.with_name("access.log.3").rename(log.with_name("access.log.6"))
    log.with_name("access.log-20261101").write_bytes(log.with_name("access.log.6").read_bytes())
    log.with_name("access.log.5").write_bytes(rotated.read_bytes())
    later = line(8, b"2026/11/21 15:48:00.448421")
    log.with_name("access.log.7.gz").write_bytes(gzip.compress(later))
    log.with_name("access.log.8").mkdir()
    os.mkfifo(log.with_name("access.log.9"))
    for name in ("access.log.second", "access.log2", "access.log.\N{ARABIC-INDIC DIGIT THREE}"):
        log.with_name(name).write_bytes(later)
    log.with_name("access.log.10").symlink_to("access.log.second")
    assert ports(FileSource(str(log), place)) == [2, *new]


def test_a_short_log_has_no_copies(log: Path) -> None:
    """Logs begin alike where the engine's start is in them, without times."""
    start = b"INFO network: updated default interface eth0, index 2\n"
    log.with_name("access.log.1").write_bytes(start + line(7) * 4)
    log.write_bytes(start)
    source = FileSource(str(log))
    read_all(source)
    place = stopped(source)
    log.unlink()
    log.write_bytes(start + line(2))
    assert ports(FileSource(str(log), place)) == [2]


def test_a_copy_that_was_seen_is_known_whenever_the_agent_ends(log: Path) -> None:
    log.write_bytes(line(1) * 4)
    source = FileSource(str(log))
    assert ports(source) == [1] * 4
    log.with_name("access.log.1").write_bytes(log.read_bytes())
    log.write_bytes(line(2))
    assert ports(source) == [2]
    assert ports(restarted(source, log)) == []


def test_what_is_written_while_somebody_looks_round_is_not_forgotten(log: Path) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log))
    assert ports(source) == [1]
    log.rename(log.with_name("access.log.1"))
    append(log, line(2))
    assert ports(source) == [2]
    append(log, line(3))
    source.tick()
    assert source.more or select.select(source.descriptors(), [], [], 0)[0]
    assert ports(source) == [3]


def test_a_rotation_that_was_not_heard_of_is_no_old_one_where_the_agent_ends(log: Path) -> None:
    log.write_bytes(line(1))
    source = FileSource(str(log))
    assert ports(source) == [1]
    for number in (2, 3):
        append(log, line(number))
        log.rename(log.with_name(f"access.log.{number}"))
        if number == 2:
            assert ports(source) == [2]
        log.touch()
    append(log, line(4))
    assert ports(restarted(source, log)) == [3, 4]


@pytest.mark.parametrize("looks_first", [False, True])
def test_many_rotations_while_nobody_ran_are_read_from_the_latest(
    log: Path, looks_first: bool
) -> None:
    log.write_bytes(line(100))
    source = FileSource(str(log))
    assert ports(source) == [100]
    place = stopped(source)
    for number in range(101, 121):
        append(log, line(number))
        log.rename(log.with_name(f"access.log.{number}"))
        log.touch()
    source = FileSource(str(log), place)
    if looks_first:
        source.tick()
    claims = read_all(source)
    assert [port(claim) for claim in claims] == [101, 117, 118, 119, 120]
    assert [claim.tainted for claim in claims[:2]] == [False, True]  # by what is not read, perhaps


def test_rotations_are_seen_where_inotify_lost_events(log: Path) -> None:
    log.with_name("access.log.9").write_bytes(line(7, b"2026/11/20 16:50:00.000000"))
    log.write_bytes(line(1))
    source = FileSource(str(log))
    assert ports(source) == [1]
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(most // 2 + 1):
        log.with_name("other").touch()
        log.with_name("other").unlink()
    append(log, line(2))
    for number in (3, 4):
        log.rename(log.with_name(f"access.log.{number}"))
        log.write_bytes(line(number))
    assert ports(source) == [2, 3, 4]
    log.rename(log.with_name("access.log.5"))
    log.write_bytes(line(5))
    assert ports(source) == [5]


def test_a_directory_that_cannot_be_listed_is_told(log: Path) -> None:
    log.write_bytes(line(1))
    for directory in log.parents[1:-2]:
        directory.chmod(0o755)
    log.parent.chmod(0o311)
    before = os.geteuid()
    try:
        if before == 0:
            os.seteuid(65_534)
        with pytest.raises(SourceError, match=f"{log.parent}: cannot be listed by uid"):
            FileSource(str(log))
    finally:
        os.seteuid(before)
        log.parent.chmod(0o755)


def test_a_missing_log_is_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "later" / "access.log"
    source = FileSource(str(log))
    assert source.read() == []
    assert source.missing
    log.parent.mkdir()
    log.write_bytes(line(1))
    log.with_name("access.log.1").write_bytes(line(7))
    assert source.tick() is None
    assert ports(source) == [1]
    assert ports(restarted(source, log)) == []


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceError, match="not a regular file"):
        FileSource(str(tmp_path / "fifo"))
    (tmp_path / "plain").touch()
    with pytest.raises(SourceError, match="Not a directory"):
        FileSource(str(tmp_path / "plain" / "access.log"))
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(SourceError, match="Too many levels"):
        FileSource(str(tmp_path / "link"))


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
@settings(max_examples=30)
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


def test_distrust_goes_over_from_a_file_that_is_gone(log: Path) -> None:
    log.write_bytes(RAW)
    source = FileSource(str(log))
    read_all(source)
    log.rename(log.with_name("access.log.1"))
    log.touch()
    source.tick()
    place = source.checkpoint()
    source.close()
    log.with_name("access.log.1").unlink()
    append(log, line(1))
    assert [claim.tainted for claim in read_all(FileSource(str(log), place))] == [True]


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


def test_no_two_files_share_positions_nor_do_two_who_read_the_same(log: Path) -> None:
    """What follows free text is known by its position."""
    log.write_bytes(line(1))
    source, again = FileSource(str(log)), FileSource(str(log))
    first, second = read_all(source), read_all(again)
    log.rename(log.with_name("access.log.1"))
    log.write_bytes(line(2))
    streams = {c.position >> 48 for c in (*first, *second, *read_all(source), *read_all(again))}
    assert len(streams) == 4
