"""Tests that must not run side by side do not: a version of pytest that pytest-xdist does not know
ran them in all processes, and nothing said so."""

from __future__ import annotations

import os

import pytest


@pytest.mark.xdist_group("processes")
def test_a_group_is_known_to_who_gives_tests_to_processes(request: pytest.FixtureRequest) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("there is one process")
    assert request.node.nodeid.endswith("@processes")
