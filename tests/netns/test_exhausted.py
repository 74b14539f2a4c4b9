"""All minors are real users': newcomers share a class with the default limits, and it is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.core.owners import ACTIVE, Owner
from vff_qos.state import State

from .hostile import AWAY, HOME, POLICY, SS2022, VLESS, Scene, true_line


@pytest.fixture
def scene(tmp_path: Path, trees: tuple[str, str]) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.assigner.close()


def test_newcomers_share_the_defaults_when_all_minors_are_taken(
    scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = State(str(tmp_path / "state"))
    taken = {owner.minor for owner in state.owners()}
    free = [minor for minor in range(2, 0xFFFC) if minor not in taken | {0x5100, 0x5101}]
    state.save_owners([Owner(f"user{minor}@x", minor, ACTIVE, 1.0, 1.0) for minor in free])
    state.close()
    scene.assigner.close()
    scene.assigner = scene.start()
    first, second, known = scene.open(AWAY, VLESS), scene.open(HOME, VLESS), scene.open(AWAY, VLESS)
    scene.feed(
        true_line(first, b"new1@x"), true_line(second, b"new2@x"), true_line(known, b"victim@x")
    )
    (shared,) = set(scene.marks(first, second))
    assert scene.limits(first) == list(POLICY.default[:2])
    # Who was known before has what they had.
    assert scene.marks(known) == scene.marks(scene.far) != [shared]
    assert scene.limits(known) == [50_000_000, 50_000_000]
    assert "minors are taken" in capsys.readouterr().err
    assert scene.assigner.counts.exhausted == 2
    # A flow in doubt costs no minor either.
    doubtful = scene.open(HOME, VLESS)
    scene.feed(b"2026/11/20 15:48:00.448421 from 192.0.2.1:1 rejected  proxy/trojan: failed to "
               b"read address and port > common/protocol: invalid domain name: a\n",
               true_line(doubtful, b"new3@x"))  # fmt: skip
    assert scene.limits(doubtful) == list(POLICY.default[:2])
    # Nor does one to an inbound that checks no names.
    unchecked = scene.open(HOME, SS2022)
    scene.feed(true_line(unchecked, b"new4@x"))
    assert scene.limits(unchecked) == list(POLICY.default[:2])
    # As soon as there is room, the newcomers' next lines give them their own classes.
    state = State(str(tmp_path / "state"))
    gone = [owner for owner in state.owners() if owner.key.startswith("user")][:10]
    state.save_owners([], gone)
    state.close()
    scene.assigner.close()
    scene.assigner = scene.start()
    scene.feed(b"." * 9_000 + b"\n", *(b"2026/11/20 15:48:00.448421 from 192.0.2.1:1 rejected  "
               b"proxy/vless: not a user\n",) * 400)  # fmt: skip
    scene.feed(true_line(first, b"new1@x"), true_line(second, b"new2@x"))
    assert shared not in scene.marks(first, second)
    assert len(set(scene.marks(first, second))) == 2
