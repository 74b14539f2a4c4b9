"""What the documents say about the program is so."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import made_docs
from checkout import DOCS, ROOT
from vff_qos.cli import main
from vff_qos.journal import MESSAGE_IDS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
TROUBLESHOOTING = (DOCS / "TROUBLESHOOTING.md").read_text()


def test_the_table_of_message_ids_is_complete() -> None:
    (prefix,) = set(re.findall(r"`([0-9a-f]{30})`", TROUBLESHOOTING))
    rows = re.findall(r"^\| `([0-9a-f]{2})` \| `(\w+)` \|", TROUBLESHOOTING, re.MULTILINE)
    assert {kind: prefix + last for last, kind in rows} == MESSAGE_IDS


def test_every_message_id_that_is_named_exists() -> None:
    named = {i for path in PAGES for i in re.findall(r"MESSAGE_ID=([0-9a-f]+)", path.read_text())}
    assert named and named <= set(MESSAGE_IDS.values())


COMMANDS = sorted(
    {
        command
        for path in PAGES
        for command in re.findall(r"(?:`|^|&& )vff-qos ([a-z][a-z-]+)", path.read_text(), re.M)
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_is_named_exists(command: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0


MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = sorted(
    {target for path in PAGES for target in re.findall(r"\bmake ([a-z][a-z-]+)", path.read_text())}
)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_that_is_named_exists(target: str) -> None:
    assert re.search(rf"^{target}\b[^=]*:", MAKEFILE, re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def links(page: Path) -> list[str]:
    """Links of a page to files of the checkout, images included."""
    found = re.findall(r"\]\(([^)]+)\)|<img src=\"([^\"]+)\"", page.read_text())
    return [a or b for a, b in found if not (a or b).startswith("https://")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_the_tree_in_the_architecture_is_what_make_docs_writes() -> None:
    assert made_docs.ARCHITECTURE.read_text() == made_docs.architecture()


FILES = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    """By its path, or by the end of one: `stamp.py`, `core/claims/stamp.py`."""
    for name in re.findall(r"`([\w./-]+\.(?:py|sh))`", page.read_text()):
        assert any(f"/{path}".endswith(f"/{name}") for path in FILES), name
