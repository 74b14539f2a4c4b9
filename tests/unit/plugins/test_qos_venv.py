"""What may be unpacked into the agent's environment, and when it is built anew."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def venv(plugin: Callable[[str], ModuleType]) -> ModuleType:
    return plugin("modules/qos_venv")


@pytest.mark.parametrize(
    "name", ["../evil.py", "/etc/passwd", "a/../../b", "x-1.data/scripts/x", "x/_x.so"]
)
def test_a_wheel_that_is_more_than_python_files_is_refused(venv: ModuleType, name: str) -> None:
    assert venv.refuse_member(name)


@pytest.mark.parametrize("name", ["x/__init__.py", "x-1.dist-info/RECORD", "x/data.txt", "x..y.py"])
def test_plain_members_are_unpacked(venv: ModuleType, name: str) -> None:
    assert venv.refuse_member(name) is None


def test_console_scripts_are_read_as_pip_reads_them(venv: ModuleType) -> None:
    text = "[console_scripts]\nvff-qos = vff_qos.cli:main\nX = a.b:c.d [extra]\n[other]\ny = z\n"
    assert venv.console_scripts(text) == {"vff-qos": ("vff_qos.cli", "main"), "X": ("a.b", "c.d")}
    assert venv.console_scripts("") == {}


def test_another_wheel_or_another_python_is_another_environment(venv: ModuleType) -> None:
    base = venv.manifest({"a.whl": "1"}, "/usr/bin/python3", "3.11", ["x"])
    assert base == venv.manifest({"a.whl": "1"}, "/usr/bin/python3", "3.11", ["x"])
    assert base != venv.manifest({"a.whl": "2"}, "/usr/bin/python3", "3.11", ["x"])
    assert base != venv.manifest({"a.whl": "1"}, "/usr/bin/python3", "3.13", ["x"])
