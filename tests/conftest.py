"""Tests run side by side, in several processes (pytest-xdist); some of them must not.

``@pytest.mark.alone``: the test measures, or loads the machine: no other runs meanwhile, and it
comes after those that can share.  ``@pytest.mark.xdist_group(name)``: all of a group run in the
same process, because they look at the machine's processes or make cgroups of the same names.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing of the code where other processes have the machine.
settings.register_profile("vff.qos", deadline=None)
settings.load_profile("vff.qos")

_BUILD = Path(__file__).resolve().parents[1] / "build"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest comes first, those that cannot share come last."""

    def turn(item: pytest.Item) -> int:
        return bool(item.get_closest_marker("alone")) - bool(item.get_closest_marker("long"))

    items.sort(key=turn)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the time of the test's timeout begins
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Wait for the machine, or for a part of it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    # Who waits for the whole machine stands at the door, so that nobody goes in meanwhile.
    door, room = (_open(_BUILD / f"tests.{name}.lock") for name in ("door", "room"))
    try:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        return (yield)
    finally:
        os.close(door)
        os.close(room)


@pytest.fixture(autouse=True)
def same_priority() -> Iterator[None]:
    """The kill switch hurries; what comes after it in this process must not go before all others.

    Only who may hurry may end it, setpriority(2): others never had it.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    yield
    if os.getpriority(os.PRIO_PROCESS, 0) != before:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
