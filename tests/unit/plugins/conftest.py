"""Modules and filters are files of their own, not a package: tests import them by their path."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from checkout import PLUGINS, ROOT


@pytest.fixture(scope="session")
def plugin() -> Callable[[str], ModuleType]:
    """Imports a plugin: ``plugin("modules/qos_venv")``."""

    def load(name: str) -> ModuleType:
        path = PLUGINS / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"plugin_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def run_module() -> Callable[..., dict[str, Any]]:
    """Runs a module as Ansible does: ``run_module("qos_user", name="a@x", check=True)``."""

    def run(module: str, check: bool = False, **arguments: object) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, str(PLUGINS / "modules" / f"{module}.py")],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": {"_ansible_check_mode": check, **arguments}}),
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "build")},
        )
        assert done.stdout, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == int("failed" in result)
        return result

    return run
