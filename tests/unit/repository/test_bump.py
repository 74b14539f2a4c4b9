"""One version, in all its places."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import bump
from checkout import ROOT
from vff_qos import __version__

#: Where a version stays: what has been released, and since when something exists.
HISTORY = ("CHANGELOG.rst", "changelogs/")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in bump.PLACES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("version", ["9.8.7", "10.0.0-rc.1"])
def test_every_place_gets_the_version_and_nothing_else_changes(copy: Path, version: str) -> None:
    assert sorted(bump.bump(copy, version)) == sorted(bump.PLACES)
    for name in bump.PLACES:
        text = (copy / name).read_text()
        assert text.count(version) == 1
        assert text.replace(version, __version__) == (ROOT / name).read_text()
    assert yaml.safe_load((copy / "galaxy.yml").read_text())["version"] == version
    assert bump.bump(copy, version) == []


@pytest.mark.parametrize("version", ["", "1.2", "v1.2.3", "1.2.3\n", "01.2.3", "1.2.x"])
def test_what_is_no_version_changes_nothing(copy: Path, version: str) -> None:
    with pytest.raises(ValueError, match="is not a version such as"):
        bump.bump(copy, version)
    for name in bump.PLACES:
        assert (copy / name).read_text() == (ROOT / name).read_text()


def test_a_place_that_is_gone_is_said_before_anything_changes(copy: Path) -> None:
    page = copy / "docs/INSTALL.md"
    page.write_text("nothing here\n")
    with pytest.raises(ValueError, match=r"docs/INSTALL\.md: the version stands there 0 times"):
        bump.bump(copy, "9.8.7")
    assert (copy / "galaxy.yml").read_text() == (ROOT / "galaxy.yml").read_text()


def test_there_is_no_other_place() -> None:
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    version = re.compile(rf"(?<![\d.]){re.escape(__version__)}(?!\d|\.\d)")
    found = set()
    for name in listing.stdout.splitlines():
        if name.startswith(HISTORY) or not (ROOT / name).is_file():
            continue
        text = re.sub(r"version_added: \S+", "", (ROOT / name).read_text(errors="replace"))
        if version.search(text):
            found.add(name)
    assert found == set(bump.PLACES)
