"""The module qos_files as Ansible runs it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def wanted(tmp_path: Path) -> dict[str, Any]:
    if os.geteuid() != 0:
        pytest.skip("the module gives files to root")
    return {
        "directories": [{"path": str(tmp_path / "d"), "mode": "0750"}],
        "files": [
            {"path": str(tmp_path / "d/a"), "content": "one\n"},
            {"path": str(tmp_path / "d/b"), "content": "two\n", "mode": "0640"},
        ],
        "links": [{"path": str(tmp_path / "l"), "target": str(tmp_path / "d/a")}],
    }


def test_what_differs_is_made_and_nothing_else(
    run_module: Run, tmp_path: Path, wanted: dict[str, Any]
) -> None:
    everything = [str(tmp_path / name) for name in ("d", "d/a", "d/b", "l")]
    result = run_module("qos_files", check=True, **wanted)
    assert (result["changed"], result["paths"]) == (True, everything)
    assert list(tmp_path.iterdir()) == []
    assert run_module("qos_files", **wanted)["paths"] == everything
    assert (tmp_path / "l").read_text() == "one\n"
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o750
    assert not run_module("qos_files", **wanted)["changed"]
    (tmp_path / "d/b").chmod(0o644)
    (tmp_path / "l").unlink()
    (tmp_path / "l").symlink_to("/nowhere")
    wanted["files"][0]["content"] = "three\n"
    result = run_module("qos_files", **wanted)
    assert result["paths"] == everything[1:]
    (diff,) = result["diff"]
    assert (diff["before"], diff["after"]) == ("one\n", "three\n")
    assert (tmp_path / "d/b").stat().st_mode & 0o777 == 0o640


def test_a_file_may_be_another_accounts(
    run_module: Run, tmp_path: Path, wanted: dict[str, Any]
) -> None:
    wanted["files"][0] |= {"owner": "nobody", "group": "nogroup", "mode": "0600"}
    assert run_module("qos_files", **wanted)["changed"]
    status = (tmp_path / "d/a").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (65_534, 65_534, 0o600)
    assert not run_module("qos_files", **wanted)["changed"]
    os.chown(tmp_path / "d/a", 0, 0)
    assert run_module("qos_files", **wanted)["paths"] == [str(tmp_path / "d/a")]


def test_nothing_is_replaced_if_one_is_wrong(
    run_module: Run, tmp_path: Path, wanted: dict[str, Any]
) -> None:
    run_module("qos_files", **wanted)
    wanted["files"][1]["content"] = "wrong\n"
    paths = [item["path"] for item in wanted["files"]]
    result = run_module("qos_files", validate=["/bin/grep", "-L", "x", *paths, "/gone"], **wanted)
    assert result["failed"] and "/gone" in result["msg"]
    assert (tmp_path / "d/b").read_text() == "two\n"


def test_what_is_to_go_goes(run_module: Run, tmp_path: Path, wanted: dict[str, Any]) -> None:
    run_module("qos_files", **wanted)
    gone = {
        "absent": [str(tmp_path / name) for name in ("d/a", "d/b", "l", "never")],
        "absent_if_empty": [str(tmp_path / "d")],
    }
    assert run_module("qos_files", check=True, **gone)["changed"]
    assert (tmp_path / "d/a").exists()
    assert run_module("qos_files", **gone)["paths"] == [*gone["absent"][:3], str(tmp_path / "d")]
    assert list(tmp_path.iterdir()) == []
    assert not run_module("qos_files", **gone)["changed"]
