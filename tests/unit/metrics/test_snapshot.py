"""Which users are shown."""

from __future__ import annotations

from vff_qos.core.figures import Figures, Moment
from vff_qos.core.owners import Owner
from vff_qos.metrics.snapshot import Snapshot

FLOWS = {"user1@x": 1, "user2@x": 9, "user10@x": 0, "idle@x": 0}
_MOMENT = Moment(0x5100, flows=dict(enumerate(FLOWS.values(), 2)))
USERS = [Figures(_MOMENT, Owner(name, minor), name) for minor, name in enumerate(FLOWS, 2)]


def names(snapshot: Snapshot, most: int) -> list[str]:
    return [user.name for user in snapshot.chosen(most)]


def test_who_moves_most_comes_first_then_who_has_most_connections() -> None:
    snapshot = Snapshot({}, USERS, {"user10@x": (5, 5)}, {"user10@x": 10})
    assert names(snapshot, 1) == ["user10@x"]
    assert names(snapshot, 2) == ["user2@x", "user10@x"]
    assert names(snapshot, 3) == ["user1@x", "user2@x", "user10@x"]


def test_those_of_whom_there_is_nothing_else_to_tell_are_in_natural_order() -> None:
    assert names(Snapshot({}, (), {"user10@x": (1, 1), "user9@x": (1, 1)}), 1) == ["user9@x"]


def test_all_includes_who_has_an_account_and_no_class_any_more() -> None:
    snapshot = Snapshot({}, USERS, {"gone@x": (1, 2)})
    assert names(snapshot, 65_000) == ["gone@x", "idle@x", "user1@x", "user2@x", "user10@x"]
    gone, idle = snapshot.chosen(65_000)[:2]
    assert (gone.figures, gone.moved) == (None, (1, 2))
    assert (idle.figures, idle.moved) == (USERS[3], None)


def test_none_is_none() -> None:
    assert names(Snapshot({}, USERS, {"gone@x": (1, 2)}, {"gone@x": 3}), 0) == []
