"""What `make lint` finds, beside the other tests: it takes minutes of one processor."""

from __future__ import annotations

import subprocess

import pytest

from checkout import ROOT


@pytest.mark.lint
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_linters_have_nothing_to_say() -> None:
    done = subprocess.run(["make", "lint"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
