"""Which packages are ours to remove."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class Module:
    """As much of AnsibleModule as the functions use."""

    def __init__(self, names: list[str], record: Path) -> None:
        self.params = {"names": names, "record": str(record)}
        self.check_mode = False
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Manager:
    """A package manager whose packages bring a dependency each; ``needed`` cannot be removed."""

    def __init__(self, *installed: str, needed: tuple[str, ...] = ()) -> None:
        self.packages = set(installed)
        self.needed = needed

    def installed(self) -> set[str]:
        return set(self.packages)

    def install(self, names: list[str]) -> None:
        for name in names:
            self.packages |= {name, f"lib-{name}"}

    def remove(self, names: list[str]) -> str:
        self.packages -= set(names) - set(self.needed)
        return "other depends on it"


@pytest.fixture
def packages(plugin: Callable[[str], ModuleType]) -> ModuleType:
    return plugin("modules/qos_packages")


def install(packages: ModuleType, manager: Manager, record: Path, *names: str) -> dict[str, Any]:
    result: dict[str, Any] = packages.present(Module(list(names), record), manager)
    return result


def test_what_came_goes_and_what_was_there_stays(packages: ModuleType, tmp_path: Path) -> None:
    manager, record = Manager("bash", "nft"), tmp_path / "packages"
    assert install(packages, manager, record, "nft", "yaml")["packages"] == ["lib-yaml", "yaml"]
    assert not install(packages, manager, record, "nft", "yaml")["changed"]
    assert packages.absent(Module([], record), manager)["changed"]
    assert manager.packages == {"bash", "nft"}
    assert not packages.absent(Module([], record), manager)["changed"]


def test_two_installations_are_remembered_together(packages: ModuleType, tmp_path: Path) -> None:
    manager, record = Manager(), tmp_path / "packages"
    install(packages, manager, record, "a")
    install(packages, manager, record, "b")
    packages.absent(Module([], record), manager)
    assert manager.packages == set()


def test_a_package_that_others_need_by_now_stays_and_is_named(
    packages: ModuleType, tmp_path: Path
) -> None:
    manager, record = Manager(needed=("lib-a",)), tmp_path / "packages"
    install(packages, manager, record, "a")
    module = Module([], record)
    result = packages.absent(module, manager)
    assert (result["packages"], result["kept"]) == (["a"], ["lib-a"])
    assert module.warnings == ["lib-a stays: other depends on it"]


def test_a_removed_package_with_configuration_left_is_not_installed(packages: ModuleType) -> None:
    listing = "installed bash\nconfig-files yaml\nunpacked nft\n"
    assert packages.installed_packages(listing) == {"bash"}
