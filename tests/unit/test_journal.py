"""What is told: the table of events, the calls that use it, and how often."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkout import AGENT
from vff_qos.core import events
from vff_qos.core.events import EVENTS, FIELDS, MANY, ONCE, PRIORITIES, JournalEvent
from vff_qos.journal import Journal


def test_names_and_numbers_are_different_and_fields_are_explained() -> None:
    assert len({event.number for event in EVENTS.values()}) == len(EVENTS)
    told = {value for value in vars(events).values() if isinstance(value, JournalEvent)}
    assert told == set(EVENTS.values())
    for event in EVENTS.values():
        assert len(event.message_id) == 32 and int(event.message_id, 16)
        assert event.priority in PRIORITIES
        unknown = {name.upper() for name in (*event.shown, *event.more)} - FIELDS.keys()
        assert not unknown, event.name
        assert event.title and event.means.endswith(".")
        assert not event.remedy or event.remedy.endswith(".")


def test_every_field_is_used() -> None:
    used = {name for event in EVENTS.values() for name in event.fields}
    assert used | {"EVENT"} == FIELDS.keys()


def calls() -> Iterator[tuple[str, Path, ast.Call]]:
    """Where the program tells of an event: the event's name in `events`, the file, the call."""
    for path in sorted((AGENT / "vff_qos").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if not is_call or not isinstance(node, ast.Call) or not node.args:
                continue
            assert isinstance(node.func, ast.Attribute)
            first = node.args[0]
            if not isinstance(first, ast.Attribute) or not isinstance(first.value, ast.Name):
                continue
            if node.func.attr == "tell" and first.value.id == "events":
                yield first.attr, path, node


def test_each_call_gives_what_the_sentence_needs_and_nothing_unknown() -> None:
    seen = 0
    for name, path, call in calls():
        event = getattr(events, name)
        given = {keyword.arg for keyword in call.keywords}
        where = f"{path.name}:{call.lineno}: {name}"
        assert None not in given, f"{where}: nobody sees what ** gives"
        # A mark stands for the class, too.
        marked = {"mark", "class"} if len(call.args) == 2 else set()
        assert event.shown <= given | marked, where
        assert given | marked <= {field.lower() for field in event.fields}, where
        seen += 1
    assert seen > 30


def test_every_event_is_told_somewhere() -> None:
    text = "".join(path.read_text() for path in sorted((AGENT / "vff_qos").rglob("*.py")))
    names = {name for name, value in vars(events).items() if isinstance(value, JournalEvent)}
    assert {name for name in names if f"events.{name}" not in text} == set()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(clock: Clock) -> Journal:
    return Journal(clock)


def test_what_comes_again_and_again_is_told_once_a_minute_and_counted(
    journal: Journal, clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    assert events.STATE.bound == ONCE
    for number in range(5):
        journal.tell(events.STATE, error=f"disk full {number}", effect="limits hold")
    # Another event has a minute of its own.
    journal.tell(events.KERNEL, error="no such device", effect="repairing")
    assert capfd.readouterr().err == "disk full 0; limits hold\nno such device; repairing\n"
    clock.now = 59.9
    journal.tend()
    assert capfd.readouterr().err == ""
    clock.now = 60.0
    journal.tend()
    assert capfd.readouterr().err == (
        "4 more entries of the kind state within a minute were left out\n"
    )
    journal.tell(events.STATE, error="disk full 9", effect="limits hold")
    assert capfd.readouterr().err == "disk full 9; limits hold\n"
    journal.close()
    assert capfd.readouterr().err == ""


def test_each_user_counts_for_themselves_up_to_a_bound(
    journal: Journal, capfd: pytest.CaptureFixture[str]
) -> None:
    for _again in range(2):
        for number in range(30):
            journal.tell(events.DISTRUST, flow=f"flow {number}", email=(f"user{number}@x",))
    told = capfd.readouterr().err.splitlines()
    assert [line.split(" is ")[0] for line in told] == [f"flow {n}" for n in range(20)]
    journal.close()
    assert capfd.readouterr().err.startswith("40 more entries of the kind distrust ")


def test_ten_thousand_users_are_no_flood(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(events, "USER_CAME", events.USER_CAME._replace(priority=events.INFO))
    journal = Journal(Clock())
    assert events.USER_CAME.bound == MANY
    for number in range(10_000):
        if not journal.has_room(events.USER_CAME):
            journal.leave_out(events.USER_CAME, 10_000 - number)
            break
        journal.tell(events.USER_CAME, 0x5100002A, email=f"u{number}", limits="-", rule="-")
    journal.close()
    told = capfd.readouterr().err.splitlines()
    assert told[0] == "u0 has class 5100:2a: - (-)"
    assert len(told) == 201
    assert told[-1].startswith("9800 more entries of the kind user_came ")


def test_details_of_single_users_are_for_the_journal_alone(
    journal: Journal, capfd: pytest.CaptureFixture[str]
) -> None:
    journal.tell(events.USER_CAME, 0x5100002A, email="alice@x", limits="-", rule="-")
    assert capfd.readouterr().err == ""
