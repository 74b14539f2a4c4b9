"""What an operator does to a node: write the inventory, type `make qos LIMIT=node`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

from .node import Node
from .progress import LabError, step

ROOT = Path(__file__).parents[2]


def inventory(node: Node, folder: Path, variables: Mapping[str, object]) -> Path:
    """Write an inventory with the node and the role's variables; returns its path."""
    group = folder / "group_vars" / "all.yml"
    group.parent.mkdir(parents=True, exist_ok=True)
    group.write_text(yaml.safe_dump(dict(variables), sort_keys=False))
    return node.inventory(folder / "hosts.yml")


def make(target: str, inventory: Path, *more: str, what: str = "", expect: str = "") -> str:
    """Run a make target against the node, with progress; returns what it prints.

    Raises LabError with the end of that if it fails or if `expect` is not in it.
    """
    words = ["make", target, "LIMIT=node", *more]
    with step(f"{what} ({' '.join(words)})" if what else " ".join(words)):
        return run([*words, f"INVENTORY={inventory}"], expect=expect)


def run(
    command: list[str], cwd: Path = ROOT, expect: str = "", environment: Mapping[str, str] = {}
) -> str:
    """Run an operator's command, as `make` does."""
    done = subprocess.run(
        command, cwd=cwd, env={**_plain(), **environment}, text=True, capture_output=True
    )
    if done.returncode or expect not in done.stdout:
        tail = (done.stdout[-4000:] + done.stderr[-2000:]).strip()
        raise LabError(f"{' '.join(command)} did not do what it should:\n{tail}")
    return done.stdout


def _plain() -> dict[str, str]:
    """The environment without what molecule and make put there: an operator has none of it."""
    ours: tuple[str, ...] = ("ANSIBLE", "MOLEC", "MAKE", "MFLAGS")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)}
