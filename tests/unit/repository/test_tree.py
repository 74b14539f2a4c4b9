"""The tree can be found one's way in: one name for one thing, files of a size that can be read."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from checkout import AGENT, PLUGINS, ROOT

TESTS = ROOT / "tests"
MODULES = [path for path in sorted(AGENT.rglob("*.py")) if path.name != "__init__.py"]

#: Class names that may stand in several modules, and why.
SHARED_CLASSES = {
    "options": "pyroute2 looks a plug-in's options up by this name (tcmsg.plugins)",
}
MAX_MODULE_LINES = 400
MAX_TEST_LINES = 500


def twice(places: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names that stand in more than one place, and in which."""
    found = defaultdict(list)
    for name, place in places:
        found[name].append(place)
    return {name: where for name, where in found.items() if len(where) > 1}


def classes(path: Path) -> list[str]:
    return [n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_two_modules_share_a_name() -> None:
    assert twice((path.stem, short(path)) for path in MODULES) == {}


def test_no_two_classes_share_a_name() -> None:
    found = twice((name, short(path)) for path in MODULES for name in classes(path))
    assert sorted(found) == sorted(SHARED_CLASSES), found


def too_long(paths: Iterable[Path], lines: int) -> list[str]:
    """Files with more lines than that whose docstring does not say how many and why.

    The sentence has the form "Longer than 400 lines: <reason>".
    """
    found = []
    for path in paths:
        text = path.read_text()
        doc = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
        if text.count("\n") > lines and f"Longer than {lines} lines: " not in doc:
            found.append(short(path))
    return found


def test_a_module_above_400_lines_says_why() -> None:
    assert too_long([*MODULES, *PLUGINS.rglob("*.py")], MAX_MODULE_LINES) == []


def test_a_test_file_above_500_lines_says_why() -> None:
    assert too_long(TESTS.rglob("*.py"), MAX_TEST_LINES) == []


def test_no_test_imports_from_a_test() -> None:
    importers = [
        short(path)
        for path in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and any(part.startswith("test_") for part in (node.module or "").split("."))
    ]
    assert importers == []


#: They read files that lie beside them.
BESIDE = {"tests/unit/kernel/test_filters.py", "tests/unit/repository/test_tree.py"}


UNIT = TESTS / "unit"
#: Tests of the checkout itself and of what several modules do together; no module has their name.
NOT_MIRRORED = {"repository"}
#: Files that test one side of a module whose own test file would be too long.
ASPECTS = {
    "core/claims/test_strangers_text.py": "core/claims/accesslog.py",
    "core/flows/test_mirror_table.py": "core/flows/mirror.py",
    "sources/test_file_times.py": "sources/file.py",
}


@pytest.mark.parametrize(
    "path",
    [
        path.relative_to(UNIT)
        for path in sorted(UNIT.rglob("test_*.py"))
        if path.relative_to(UNIT).parts[0] not in NOT_MIRRORED
    ],
    ids=str,
)
def test_a_unit_test_lies_where_its_module_lies(path: Path) -> None:
    tested = ASPECTS.get(str(path), str(path.with_name(path.name.removeprefix("test_"))))
    in_plugins = path.parts[0] == "plugins"
    root = PLUGINS.parent if in_plugins else AGENT / "vff_qos"
    assert (root / tested).is_file()


def test_tests_find_the_checkout_in_one_way() -> None:
    """A test that counts the directories above it finds another one once it is moved."""
    counting = [
        short(path)
        for directory in ("unit", "netns")
        for path in (TESTS / directory).rglob("*.py")
        if re.search(r"Path\(__file__\)[\w.()]*\.parents?\b", path.read_text())
        and short(path) not in BESIDE
    ]
    assert counting == []
