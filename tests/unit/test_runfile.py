"""What one process tells another in the run directory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vff_qos.runfile import read_last_named, write_last_named


def test_what_is_written_is_read(tmp_path: Path) -> None:
    named = memoryview(bytearray(4 << 16)).cast("I")
    named[42] = int(time.monotonic())
    write_last_named(str(tmp_path), named)
    assert read_last_named(str(tmp_path), 42) == pytest.approx(time.time(), abs=1.5)
    assert read_last_named(str(tmp_path), 43) is None


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert read_last_named(str(tmp_path), 42) is None
    (tmp_path / "named").write_bytes(b"\1\0\0\0")
    assert read_last_named(str(tmp_path), 42) is None
