"""The journal as a source: real journal files, streams, restarts, and since when."""

from __future__ import annotations

import json
import math
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from vff_qos.core.claims.accesslog import NAME_BYTES, Claim, Scanner, Stranger
from vff_qos.core.claims.singbox_log import SingboxScanner
from vff_qos.core.claims.stamp import written
from vff_qos.sources import journald as journald_module
from vff_qos.sources.base import Source
from vff_qos.sources.clock import boot_id
from vff_qos.sources.journald import JournalSource, container_matches, unit_matches

REMOTE = shutil.which("systemd-journal-remote", path="/lib/systemd:/usr/lib/systemd:/usr/bin")

needs_journal = pytest.mark.skipif(
    REMOTE is None, reason="needs systemd-journal-remote to write journal files"
)


#: As if this machine had run for a day at least.
UP_S = 100_000.0
OFFSET = time.time() - time.monotonic() - UP_S


def _now() -> float:
    """CLOCK_MONOTONIC as the entries have it."""
    return time.monotonic() + UP_S


class JournalFiles:
    """A directory of real journal files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = 0
        self.count = 0

    def write(self, *messages: bytes, age_s: float = 0.0, unit: str = "xray.service",
              file: str = "system", boot: str = "", step_s: float = 0.0,
              **fields: str) -> None:  # fmt: skip
        """Append entries to one of the files; ``step_s``: somebody had set the clock."""
        out = []
        fields = {"_SYSTEMD_UNIT": unit, "_TRANSPORT": "stdout", "_UID": "0", **fields}
        for message in messages:
            self.count += 1
            up = int((_now() - age_s) * 1e6) + self.count
            stamp = up + int((OFFSET + step_s) * 1e6)
            head = [f"__REALTIME_TIMESTAMP={stamp}", f"__MONOTONIC_TIMESTAMP={up}",
                    f"_BOOT_ID={(boot or boot_id()).replace('-', '')}"]  # fmt: skip
            head += [f"{name}={value}" for name, value in fields.items()]
            out.append("\n".join(head).encode() + b"\nMESSAGE\n")
            out.append(len(message).to_bytes(8, "little") + message + b"\n\n")
        assert REMOTE is not None
        subprocess.run(
            [REMOTE, "-o", str(self.directory / f"{file}.journal"), "-"],
            input=b"".join(out),
            capture_output=True,
            check=True,
        )

    def source(
        self,
        checkpoint: object = None,
        matches: dict[str, str] | None = None,
        scanner: type[Scanner] = Scanner,
    ) -> JournalSource:
        return JournalSource(
            matches or unit_matches("xray.service"), checkpoint, directory=str(self.directory),
            scanner=scanner,
        )  # fmt: skip


def _line(number: int, email: str = "alice@x") -> bytes:
    return (
        f"2026/11/20 15:48:00.448421 from 192.0.2.5:{number} accepted tcp:example.com:443 "
        f"[in >> out] email: {email}"
    ).encode()


def _all(source: Source) -> list[Claim]:
    """All claims that are there now."""
    found: list[Claim] = []
    empty = 0
    source.tick()
    while empty < 2:
        claims = source.read()
        found += claims
        empty = 0 if claims else empty + 1
    return found


def _ports(source: Source) -> list[int]:
    """Source ports of all claims that are there now."""
    return [int(claim.source.rpartition(b":")[2]) for claim in _all(source)]


@pytest.fixture
def files(tmp_path: Path) -> JournalFiles:
    return JournalFiles(tmp_path)


@needs_journal
def test_lines_of_the_unit_become_claims_in_their_order(files: JournalFiles) -> None:
    files.write(_line(1), _line(2))
    files.write(_line(3), unit="other.service")
    source = files.source()
    assert source.replaying
    assert _ports(source) == [1, 2]
    assert not source.replaying
    files.write(_line(4))
    assert _ports(source) == [4]
    source.close()


@needs_journal
def test_new_entries_wake_the_loop(files: JournalFiles) -> None:
    files.write(_line(1))
    source = files.source()
    assert _ports(source) == [1]
    poll = select.poll()
    poll.register(source.descriptors()[0], select.POLLIN)
    files.write(_line(2))
    assert poll.poll(2_000)
    assert _ports(source) == [2]
    source.close()


@needs_journal
def test_a_restart_goes_on_at_the_cursor(files: JournalFiles) -> None:
    files.write(_line(1), _line(2))
    source = files.source()
    assert _ports(source) == [1, 2]
    saved = json.loads(json.dumps(source.checkpoint()))
    source.close()
    files.write(_line(3))
    again = files.source(saved)
    assert _ports(again) == [3]
    assert files.source(again.checkpoint()).checkpoint() == again.checkpoint()


@needs_journal
def test_a_restart_loses_no_entry_however_long_nobody_ran(files: JournalFiles) -> None:
    files.write(_line(1), age_s=7_000)
    source = files.source()
    assert _ports(source) == [1]
    saved = source.checkpoint()
    source.close()
    files.write(_line(2), age_s=6_000)
    files.write(_line(3), age_s=1)
    assert _ports(files.source(saved)) == [2, 3]


@needs_journal
def test_a_restart_reads_a_bounded_number_of_entries(
    files: JournalFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journald_module, "REPLAY_ENTRIES", 5)
    files.write(_line(1), age_s=7_000)
    source = files.source()
    assert _ports(source) == [1]
    saved = source.checkpoint()
    source.close()
    files.write(_line(2), _line(3), age_s=6_000)
    again = files.source(saved)
    assert _ports(again) == [2, 3]
    files.write(*map(_line, range(10, 30)))
    (claims,) = [files.source(saved).read()]
    assert [claim.source[-2:] for claim in claims] == [b"25", b"26", b"27", b"28", b"29"]
    assert all(claim.tainted for claim in claims)


@needs_journal
def test_a_first_look_trusts_nothing_that_it_sees_no_beginning_of(
    files: JournalFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journald_module, "FIRST_LOOK_ENTRIES", 5)
    files.write(*map(_line, range(10, 30)), _STREAM_ID="a")
    source = files.source()
    claims = source.read()
    assert [claim.source[-2:] for claim in claims] == [b"25", b"26", b"27", b"28", b"29"]
    assert all(claim.tainted for claim in claims)
    source.read()
    files.write(_line(1), _STREAM_ID="b")
    assert [claim.tainted for claim in _all(source)] == [False]


@needs_journal
def test_a_rotated_journal_loses_no_line(files: JournalFiles) -> None:
    files.write(_line(1))
    source = files.source()
    assert _ports(source) == [1]
    for number in range(2, 8):
        files.write(_line(number))
        live = files.directory / "system.journal"
        live.rename(files.directory / f"system@{number:032x}-{number:016x}-{number:016x}.journal")
        files.write(_line(10 + number))
        assert sorted(_ports(source)) == [number, 10 + number]
    source.close()


@needs_journal
def test_a_vacuumed_journal_is_followed_and_what_comes_first_is_distrusted(
    files: JournalFiles,
) -> None:
    files.write(_line(1))
    source = files.source()
    assert _ports(source) == [1]
    saved = source.checkpoint()
    (files.directory / "system.journal").unlink()
    files.write(_line(2))
    assert _ports(source) == [2]
    source.close()
    again = files.source(saved)
    claims = again.read()
    assert [claim.tainted for claim in claims] == [True]


REFUSED = (
    b"2026/11/20 15:51:41.127080 from 192.0.2.9:1 rejected  proxy/trojan: failed to read "
    b"address and port > common/protocol: invalid domain name: a.example"
)


def _seen(files: JournalFiles) -> JournalSource:
    """A source that has seen where all streams begin."""
    files.write(_line(9), unit="other.service")
    source = files.source()
    assert _all(source) == []
    return source


@needs_journal
def test_distrust_reaches_over_entries_and_over_restarts(files: JournalFiles) -> None:
    source = _seen(files)
    files.write(REFUSED, _line(1, "victim@x"))
    assert [claim.tainted for claim in _all(source)] == [True]
    assert source.strangers == []
    saved = json.loads(json.dumps(source.checkpoint()))
    source.close()
    files.write(_line(2, "victim@x"), *[_line(5)] * 4)
    claims = files.source(saved).read()
    assert claims[0].tainted
    assert not claims[-1].tainted
    assert 4 * len(_line(5)) > NAME_BYTES


@needs_journal
def test_distrust_of_one_stream_is_not_that_of_another(files: JournalFiles) -> None:
    source = _seen(files)
    for text in (REFUSED, b"forged?", _line(1)):
        files.write(text, _STREAM_ID="a")
        files.write(_line(2), _STREAM_ID="b")
    claims = _all(source)
    assert [(claim.source[-1:], claim.tainted) for claim in claims] == [
        (b"2", False), (b"2", False), (b"1", True), (b"2", False),
    ]  # fmt: skip
    # Nor after a restart.
    saved = json.loads(json.dumps(source.checkpoint()))
    files.write(_line(3), _STREAM_ID="b")
    files.write(_line(4), _STREAM_ID="a")
    assert [claim.tainted for claim in files.source(saved).read()] == [False, True]


@needs_journal
def test_strangers_are_told_of_once(files: JournalFiles) -> None:
    source = _seen(files)
    files.write(REFUSED)
    source.read()
    assert source.strangers == [Stranger(b"192.0.2.9:1", False)]
    source.read()
    assert source.strangers == []


@needs_journal
@pytest.mark.parametrize(
    ("field", "value"),
    [("_LINE_BREAK", "nul"), ("_LINE_BREAK", "line-max"), ("CONTAINER_PARTIAL_MESSAGE", "true")],
)
def test_a_line_that_was_cut_is_no_line(files: JournalFiles, field: str, value: str) -> None:
    source = _seen(files)
    files.write(_line(1), **{field: value})  # type: ignore[arg-type]
    files.write(_line(2))
    claims = _all(source)
    assert [(claim.source, claim.tainted) for claim in claims] == [(b"192.0.2.5:2", True)]
    assert source.counters.unparsed == 1


@needs_journal
@pytest.mark.parametrize("reason", ["eof", "pid-change"])
def test_a_writer_that_ended_within_a_line_restricts_nobody(
    files: JournalFiles, reason: str
) -> None:
    source = _seen(files)
    files.write(_line(1)[:60], _LINE_BREAK=reason)
    files.write(_line(2))
    claims = _all(source)
    assert [(claim.source, claim.tainted) for claim in claims] == [(b"192.0.2.5:2", False)]
    assert (source.counters.torn, source.counters.unparsed) == (1, 0)


@needs_journal
def test_entries_say_themselves_since_when(files: JournalFiles) -> None:
    began = _now()
    files.write(_line(1), age_s=500)
    files.write(_line(2), age_s=100)
    source, now = files.source(), _now()
    assert len(source.read()) == 2
    since, until = source.window
    assert began - 530 <= since <= now - 530
    assert began - 100 <= until <= now - 100
    assert source.epoch_offset_s is not None
    assert source.epoch_offset_s == pytest.approx(OFFSET, abs=0.001)
    # No line is written later than its entry.
    said_s = until + source.epoch_offset_s + 4 * 900
    stamp = time.strftime("%Y/%m/%d %H:%M:%S", time.gmtime(said_s)).encode()
    first, last = written(stamp, since, until, source.epoch_offset_s)
    assert until - 3 < first < last < until + 2


@needs_journal
def test_entries_far_apart_are_not_read_together(files: JournalFiles) -> None:
    """Stamps would be ambiguous."""
    for age in (9_000, 8_900, 5_000, 5, 4):
        files.write(_line(age), age_s=age)
    source = files.source()
    seen = []
    while True:
        claims = source.read()
        seen.append([int(claim.source.rpartition(b":")[2]) for claim in claims])
        assert source.window[1] - source.window[0] < 900
        checkpoint = source.checkpoint()
        if not source.more:
            break
        assert files.source(checkpoint).read() != claims
    assert seen == [[9_000, 8_900], [5_000], [5, 4]]


@needs_journal
def test_entries_of_another_boot_are_older_than_this_one(files: JournalFiles) -> None:
    files.write(_line(1), boot="3b9ba5f1-c63d-46b4-b1b7-a6bd1e2b1e11")
    files.write(_line(2))
    source = files.source()
    assert len(source.read()) == 1
    assert source.window == (-math.inf, 0.0)
    assert source.epoch_offset_s is None
    assert source.more
    assert len(source.read()) == 1
    assert source.window[0] > 0


@needs_journal
def test_a_step_of_the_clock_makes_stamps_say_nothing(files: JournalFiles) -> None:
    files.write(_line(1), age_s=5)
    source = files.source()
    assert len(source.read()) == 1
    assert source.epoch_offset_s is not None
    files.write(_line(2), step_s=-3_600)
    assert len(_read_some(source)) == 1
    assert source.epoch_offset_s is None
    files.write(_line(3), step_s=-3_600)
    assert len(_read_some(source)) == 1
    assert source.epoch_offset_s == pytest.approx(OFFSET - 3_600, abs=0.001)


def _read_some(source: JournalSource) -> list[Claim]:
    """The next claims, when they are there."""
    deadline = time.monotonic() + 20
    while not (claims := source.read()):
        source.tick()
        assert time.monotonic() < deadline, "nothing came"
    return claims


@needs_journal
def test_bytes_of_any_kind_do_not_stop_the_reader(files: JournalFiles) -> None:
    files.write(b"\xff\xfe\x00\x01", b"", b"x" * 60_000, b"a\nb", _line(1)[:-3] + b"\xc3\xa9")
    source = files.source()
    assert len(source.read()) == 1
    assert source.counters.unparsed >= 3


@needs_journal
def test_a_container_is_named_by_root_only(files: JournalFiles) -> None:
    files.write(_line(1), unit="docker.service", CONTAINER_NAME="xray")
    files.write(_line(2), unit="evil.service", CONTAINER_NAME="xray", _UID="1000")
    files.write(_line(3), unit="docker.service", CONTAINER_NAME="other")
    assert _ports(files.source(matches=container_matches("xray"))) == [1]


@needs_journal
def test_an_empty_journal_is_waited_for(files: JournalFiles) -> None:
    files.write(_line(1), unit="other.service")
    source = files.source()
    assert "no entry with _SYSTEMD_UNIT=xray.service" in (source.tick() or "")
    assert source.tick() is None
    assert source.read() == []
    assert not source.replaying
    assert source.checkpoint() is None
    files.write(_line(2))
    assert _ports(source) == [2]


@needs_journal
def test_many_entries_come_in_portions(files: JournalFiles) -> None:
    files.write(*(_line(number) for number in range(1, 5_001)))
    source = files.source()
    assert len(source.read()) == 2_048
    assert source.more
    assert source.replaying
    assert len(_ports(source)) == 5_000 - 2_048


@needs_journal
def test_sing_boxs_log_is_read_in_its_colours(files: JournalFiles) -> None:
    """As it writes to standard error; the two lines of a connection may be told of apart."""
    head = b"\x1b[36mINFO\x1b[0m[0001] [\x1b[38;5;36m274\x1b[0m 0ms] inbound/vless[in]: "
    files.write(head + b"inbound connection from 192.0.2.1:1", _STREAM_ID="a")
    source = files.source(scanner=SingboxScanner)
    assert _all(source) == []
    files.write(head + b"[bob] inbound connection to a.example:443", _STREAM_ID="a")
    # Another process of the unit has ids of its own.
    files.write(head + b"[eve] inbound connection to a.example:443", _STREAM_ID="b")
    (claim,) = _all(source)
    assert (claim.source, claim.email) == (b"192.0.2.1:1", b"bob")
    source.close()
