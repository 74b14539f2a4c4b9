"""What may be unpacked into the agent's environment, and when it is built anew."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from checkout import ROOT


@pytest.fixture
def venv(plugin: Callable[[str], ModuleType]) -> ModuleType:
    return plugin("modules/qos_venv")


@pytest.mark.parametrize(
    "name",
    [
        "../evil.py",
        "/etc/passwd",
        "a/../../b",
        "x-1.data/purelib/x",
        "x-1.data/scripts/../../x",
        "x/_x.so",
    ],
)
def test_a_wheel_that_is_more_than_python_files_is_refused(venv: ModuleType, name: str) -> None:
    assert venv.refuse_member(name)


def test_commands_of_a_library_stay_away(venv: ModuleType) -> None:
    """bottle's wheel has one; what leads out of the place is refused, not left out."""
    assert venv.is_left_out("bottle-0.13.4.data/scripts/bottle.py")
    assert not venv.is_left_out("x-1.data/scripts/../../x")
    assert not venv.is_left_out("x/data/scripts/x.py") and not venv.is_left_out(
        "x-1.data/purelib/x"
    )


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


def test_an_environment_without_what_it_must_import_does_not_replace_the_old_one(
    run_module: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "wheels").mkdir()

    def build(version: int, *imports: str) -> dict[str, Any]:
        name = f"example-{version}-py3-none-any.whl"
        wheel = tmp_path / "wheels" / name
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("example.py", f"def main():\n    return {version}\n")
            archive.writestr(
                f"example-{version}.dist-info/entry_points.txt",
                "[console_scripts]\nexample = example:main\n",
            )
        return run_module(
            "qos_venv",
            path=str(tmp_path / "venv"),
            python="/usr/bin/python3",
            python_version="{}.{}".format(*_version("/usr/bin/python3")),
            wheel_dir=str(tmp_path / "wheels"),
            wheels={name: hashlib.sha256(wheel.read_bytes()).hexdigest()},
            commands=["example"],
            imports=list(imports),
        )

    def answer() -> int:
        return subprocess.run([tmp_path / "venv/bin/example"]).returncode

    assert build(1, "json")["changed"]
    assert answer() == 1
    refused = build(2, "json", "no_such_module")
    assert refused["failed"]
    assert "No module named 'no_such_module'" in refused["msg"]
    assert "/usr/bin/python3 (qos_python)" in refused["msg"]
    assert answer() == 1
    assert [name for name in os.listdir(tmp_path) if name.endswith(".new")] == []
    assert build(2, "json")["changed"]
    assert answer() == 2


def test_wheels_come_along_and_only_once(tmp_path: Path) -> None:
    """Through ansible itself, because the controller's half reads and sends them."""
    store = tmp_path / "wheels"
    store.mkdir()

    def play(have: dict[str, str]) -> bool:
        build = {
            "path": str(tmp_path / "venv"),
            "python": "/usr/bin/python3",
            "python_version": "{}.{}".format(*_version("/usr/bin/python3")),
            "wheel_dir": str(store),
            "wheels": "{{ controller.wheels }}",
            "have": have,
            "commands": ["vff-qos"],
        }
        note = {"dest": str(tmp_path / "built.json"), "content": "{{ built | to_json }} "}
        tasks = [
            {"vff.qos.qos_wheels": {}, "register": "controller"},
            {"vff.qos.qos_venv": build, "register": "built"},
            {"ansible.builtin.copy": note},
        ]
        plays = [{"hosts": "localhost", "connection": "local", "gather_facts": False}]
        (tmp_path / "play.yml").write_text(yaml.safe_dump([{**plays[0], "tasks": tasks}]))
        subprocess.run(
            [Path(sys.executable).with_name("ansible-playbook"), "play.yml"],
            cwd=tmp_path,
            check=True,
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build")},
        )
        changed: bool = json.loads((tmp_path / "built.json").read_text())["changed"]
        return changed

    def stored() -> dict[str, str]:
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.iterdir()
        }

    assert play({})
    whole = stored()
    assert len(whole) > 1
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in store.iterdir())
    subprocess.run([tmp_path / "venv/bin/vff-qos", "--version"], check=True)
    times = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    assert not play(whole)
    lost = next(iter(whole))
    (store / lost).unlink()
    assert play(stored())
    assert stored() == whole
    same = {path.name: path.stat().st_mtime_ns for path in store.iterdir() if path.name != lost}
    assert same.items() < times.items()


def _version(python: str) -> tuple[str, str]:
    code = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    major, minor = done.stdout.split()
    return major, minor
