"""What the documents say about the program is so."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import made_docs
from checkout import AGENT, DOCS, ROOT
from vff_qos.cli import main
from vff_qos.core.events import EVENTS, FIELDS
from vff_qos.metrics.catalogue import NODE, USER

PAGES = [
    *(ROOT / name for name in ("README.md", "README.ru.md", "CONTRIBUTING.md")),
    *sorted(DOCS.glob("*.md")),
]


#: What else is called like that: a table of the role qos_per_user_xray.
NOT_METRICS = {"vff_qos_ctmark"}


def test_the_page_of_the_journal_is_what_make_docs_writes() -> None:
    assert made_docs.JOURNAL.read_text() == made_docs.journal()


def test_the_page_of_metrics_is_what_make_docs_writes() -> None:
    assert made_docs.METRICS.read_text() == made_docs.metrics()
    named = set(re.findall(r"\bvff_qos_\w+", "".join(page.read_text() for page in PAGES)))
    assert named - NOT_METRICS == {metric.full_name for metric in (*NODE, *USER)}


def test_the_catalog_is_what_make_docs_writes() -> None:
    assert made_docs.CATALOG.read_text() == made_docs.catalog()


def test_every_event_and_message_id_that_is_named_exists() -> None:
    text = "".join(page.read_text() for page in PAGES)
    ids = set(re.findall(r"MESSAGE_ID=([0-9a-f]+)", text))
    assert ids <= {event.message_id for event in EVENTS.values()}
    names = set(re.findall(r"VFF_QOS_EVENT=(\w+)", text))
    assert names and names <= EVENTS.keys()


def test_every_field_that_is_named_exists() -> None:
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"\bVFF_QOS_([A-Z_]+)=", text))
    assert named and named <= FIELDS.keys()


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


def kinds_of_findings() -> set[str]:
    """What the rules of health call their findings, read from their calls of `Finding`."""
    calls = [
        node
        for path in sorted((AGENT / "vff_qos" / "core" / "health").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding"
    ]
    kinds = [call.args[1] for call in calls]
    return {kind.value for kind in kinds if isinstance(kind, ast.Constant)}


def test_every_kind_of_finding_is_listed() -> None:
    rows = re.findall(r"^\|(.*?)\|", (DOCS / "TROUBLESHOOTING.md").read_text(), re.M)
    kinds = kinds_of_findings()
    assert {"source_missing", "reports", "canary", "xray_front"} <= kinds
    assert kinds <= set(re.findall(r"`(\w+)`", "".join(rows)))


def test_make_takes_no_broken_inventory_for_one_without_hosts(tmp_path: Path) -> None:
    """A kill switch that reached nobody must not end well."""
    inventory = tmp_path / "inventory.yml"
    inventory.write_text("all: {hosts: {node: [")
    exported = dict(re.findall(r"^export (ANSIBLE_\w+) := ([a-z]+)$", MAKEFILE, re.M))
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "inventory", "-i", str(inventory), "--list"],
        env={**os.environ, **exported}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "failed to parse inventory" in done.stderr


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 116


def bones(page: Path) -> dict[str, list[str]]:
    """What a page says whatever its language is, in its order."""
    text = page.read_text()
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    return {
        "code": re.findall(r"```.*?```", text, re.S),
        "headings": re.findall(r"^#+ ", prose, re.M),
        "rows": re.findall(r"^\|([^|]*)\|", prose, re.M),
        "links": re.findall(r"\]\(((?!README)[^)]+)\)", prose),
        "steps": re.findall(r"^\d\. ", prose, re.M),
        "names": re.findall(r"`[^`]+`", prose),
    }


def test_the_russian_readme_is_in_step() -> None:
    ours, theirs = (bones(ROOT / name) for name in ("README.md", "README.ru.md"))
    assert theirs == ours


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
