"""What a time since the epoch says when somebody has set the clock."""

from __future__ import annotations

import json
import math

import pytest

from vff_qos.sources import clock as clocks
from vff_qos.sources.clock import Clock

from .access_log import EPOCH, Watch


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_while_nobody_sets_it_every_time_is_clear(watch: Watch) -> None:
    clock = watch.clock()
    watch.up += 100
    watch.offset += 0.001  # what two clocks seem to differ by
    clock.look()
    assert clock.clear_since_s == -math.inf and clock.steps == 0


@pytest.mark.parametrize("by_s", [60.0, -60.0], ids=["forward", "back"])
def test_a_time_that_either_clock_may_have_said_is_not_clear(by_s: float, watch: Watch) -> None:
    clock = watch.clock()
    watch.up, watch.offset = 1_100.0, EPOCH + by_s
    clock.look()
    assert clock.steps == 1
    # The latest time that was noted by the clock as it was before.
    latest_s = 1_100.0 + EPOCH - clock.offset_s
    assert clock.clear_since_s == pytest.approx(max(latest_s, 1_100.0))


def test_a_later_step_makes_nothing_clearer(watch: Watch) -> None:
    clock = watch.clock()
    for up, by_s in ((1_100.0, -3_600.0), (1_200.0, -3_599.0)):
        watch.up, watch.offset = up, EPOCH + by_s
        clock.look()
    assert clock.clear_since_s == pytest.approx(1_100.0 + 3_599.0)


@pytest.mark.parametrize("by_s", [0.0, 60.0, -60.0])
def test_a_step_while_nobody_looked_is_seen_by_the_next_run(by_s: float, watch: Watch) -> None:
    saved = json.loads(json.dumps(watch.clock().save(0.0)))
    watch.up, watch.offset = 2_000.0, EPOCH + by_s
    clock = watch.clock()
    clock.restore(saved)
    if not by_s:
        assert clock.clear_since_s == -math.inf
        return
    assert clock.clear_since_s == pytest.approx(2_000.0 + max(0.0, -by_s))
    # And by the one after that, though nobody has set it since.
    again = watch.clock()
    again.restore(json.loads(json.dumps(clock.save(0.0))))
    assert again.clear_since_s == pytest.approx(clock.clear_since_s)


def test_what_another_boot_saved_says_nothing(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = watch.clock().save(0.0)
    monkeypatch.setattr(clocks, "boot_id", lambda: "another")
    watch.up, watch.offset = 5.0, EPOCH + 60
    clock = watch.clock()
    clock.restore(saved)
    assert clock.clear_since_s == -math.inf
    Clock().restore({})
