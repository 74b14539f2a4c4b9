"""Modules and filters are files of their own, not a package: tests import them by their path."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

PLUGINS = Path(__file__).resolve().parents[3] / "plugins"


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
