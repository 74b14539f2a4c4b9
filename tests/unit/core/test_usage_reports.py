"""Reports of usage: whoever receives them can add up deltas or take totals, and gets the same."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vff_qos import report_queue
from vff_qos.core.usage_reports import (
    JSON,
    TRAFFIC_URL,
    TRAFFIC_URL_GLOBAL,
    Told,
    Total,
    new_records,
    pause_s,
    requests,
    shown_url,
)
from vff_qos.report_queue import ReportQueue

RECORD = {
    "username": "a b&c@x",
    "upload": 3,
    "download": 4,
    "since": 10,
    "until": 20,
    "id": "k-1-0",
}


def test_only_who_has_moved_something_is_told_of() -> None:
    told = {"a": Told(1.0, 10, 20, 50.0), "b": Told(1.0, 5, 5, 50.0)}
    totals = [Total("a", 1.0, 13, 20), Total("b", 1.0, 5, 5), Total("c", 60.2, 0, 9)]
    a, c = new_records(totals, told, 100.4)
    assert (a["username"], a["upload"], a["download"], a["upload_total"]) == ("a", 3, 0, 13)
    assert (a["since"], a["until"], a["total_since"]) == (50, 100, 1)
    assert (c["username"], c["download"], c["since"], c["until"]) == ("c", 9, 60, 100)


def test_who_was_joined_is_not_told_of_twice(tmp_path: Path) -> None:
    queue = ReportQueue(str(tmp_path))

    def cut(totals: list[Total], people: dict[str, str]) -> dict[str, tuple[int, int]]:
        assert queue.cut(totals, 100.0, "n", people)
        found = {}
        for part in list(queue.parts()):
            found.update({r["username"]: (r["upload"], r["download"]) for r in part.records})
            queue.accepted(part, 1, 1)
        return found

    assert cut([Total("a", 5.0, 10, 1), Total("b", 3.0, 20, 2), Total("c", 4.0, 1, 1)], {})
    people = {"b": "a", "c": "d"}
    # Accounts are not joined yet: nothing is to be told.
    assert (
        cut([Total("a", 5.0, 10, 1), Total("b", 3.0, 20, 2), Total("c", 4.0, 1, 1)], people) == {}
    )
    joined = [Total("a", 3.0, 37, 3), Total("d", 4.0, 1, 3)]
    assert cut(joined, people) == {"a": (7, 0), "d": (0, 2)}
    assert cut(joined, people) == {}
    # Split off, both begin anew.
    assert cut([Total("a", 3.0, 37, 3), Total("b", 90.0, 4, 0)], {}) == {"b": (4, 0)}
    queue.close()


def test_a_total_that_begins_anew_is_told_from_its_beginning() -> None:
    (found,) = new_records([Total("a", 70.0, 2, 3)], {"a": Told(1.0, 10**9, 10**9, 50.0)}, 100.0)
    assert (found["upload"], found["download"], found["since"]) == (2, 3, 70)


def test_a_clock_that_was_set_back_makes_no_time_that_ends_before_it_begins() -> None:
    (found,) = new_records([Total("a", 1.0, 5, 5)], {"a": Told(1.0, 1, 1, 500.0)}, 100.0)
    assert (found["since"], found["until"]) == (500, 500)


def test_the_forms_of_a_request() -> None:
    (ours,) = requests("https://h/u?t=1", JSON, "k-1", [RECORD])
    assert (ours.method, ours.target, ours.key) == ("POST", "/u?t=1", "k-1")
    assert json.loads(ours.body or b"") == [RECORD]
    assert [ours.is_success(status) for status in (200, 204, 302, 500)] == [
        True,
        True,
        False,
        False,
    ]
    (one,) = requests("https://h/u?t=1", TRAFFIC_URL, "k-1", [RECORD])
    assert (one.method, one.key, one.body) == ("GET", "k-1-0", None)
    query = parse_qs(urlsplit(one.target).query, keep_blank_values=True)
    assert (query["t"], query["bytes"], query["username"]) == (["1"], ["7"], ["a b&c@x"])
    assert query["id"] == ["k-1-0"]
    assert set(query) - {"t"} == {
        "bytes", "client_addr", "id", "server_addr", "target_addr", "username", "out_local_addr",
        "out_remote_addr", "upstream", "sniff_domain",
    }  # fmt: skip
    assert [one.is_success(status) for status in (200, 204)] == [False, True]
    (every,) = requests("https://h", TRAFFIC_URL_GLOBAL, "k-1", [RECORD])
    assert (every.method, every.target) == ("POST", "/")
    assert json.loads(every.body or b"")[0]["bytes"] == 7
    assert [every.is_success(status) for status in (200, 204)] == [False, True]


def test_pauses_grow_to_an_hour_and_are_never_all_the_same() -> None:
    longest = [pause_s(failures, 1.0) for failures in range(1, 40)]
    assert longest[:3] == [30, 60, 120] and max(longest) == 3_600
    assert pause_s(3, 0.0) == 60
    assert pause_s(1, 0.0, asked_s=500) == 500
    assert pause_s(1, 0.0, asked_s=10**9) == 3_600


def test_a_url_is_shown_without_what_may_be_secret() -> None:
    assert shown_url("https://h:8/u?token=abc") == "https://h:8/u"


# -- the queue ------------------------------------------------------------------------------------


def test_what_is_queued_survives_and_is_the_same_each_time(tmp_path: Path) -> None:
    queue = ReportQueue(str(tmp_path))
    assert queue.cut([Total("a", 1.0, 5, 6)], 100.0, "node1")
    (part,) = queue.parts()
    assert [record["id"] for record in part.records] == [f"{part.key}-0"]
    assert part.records[0]["node"] == "node1" and "began" not in part.records[0]
    queue.close()
    again = ReportQueue(str(tmp_path))
    assert list(again.parts()) == [part]
    # Nothing has moved since: nothing is queued.
    assert again.cut([Total("a", 1.0, 5, 6)], 200.0, "node1") and again.waiting == 1
    again.accepted(part, 1, 1)
    assert again.waiting == 0


def test_a_full_queue_takes_no_more_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_queue, "MAX_BYTES", 300)
    queue = ReportQueue(str(tmp_path))
    moved = 0
    for number in range(1, 50):
        moved = number
        queue.cut([Total("a", 1.0, moved, 0)], 100.0 + number, "n")
    assert 0 < queue.waiting < 5
    for part in list(queue.parts()):
        queue.accepted(part, 1, 1)
    assert queue.cut([Total("a", 1.0, moved, 0)], 200.0, "n")
    (rest,) = queue.parts()
    assert rest.records[0]["upload_total"] == 49


def test_a_part_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_queue, "PART", 2)
    queue = ReportQueue(str(tmp_path))
    queue.cut([Total(f"u{n}", 1.0, n, 0) for n in range(1, 6)], 100.0, "n")
    first, second, third = queue.parts()
    assert [len(part.records) for part in (first, second, third)] == [2, 2, 1]
    queue.accepted(first, 1, 2)
    assert [part.sent for part in queue.parts()] == [1, 0, 0]


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]), st.integers(0, 10**12), st.integers(0, 10**12),
            st.lists(st.sampled_from(["ok", "lost answer", "lost"]), max_size=4),
        ),
        max_size=20,
    )
)  # fmt: skip
def test_a_receiver_that_heeds_the_keys_or_the_totals_counts_each_byte_once(
    steps: list[tuple[str, int, int, list[str]]],
) -> None:
    """Whatever is lost on the way there and back."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        queue = ReportQueue(directory)
        totals = {"a": [0, 0], "b": [0, 0]}
        by_key: dict[str, int] = {}
        by_total: dict[tuple[str, int], int] = {}

        def deliver(fates: list[str]) -> None:
            fates = fates.copy()
            for part in queue.parts():
                fate = fates.pop(0) if fates else "ok"
                if fate == "lost":
                    return
                for record in part.records:
                    by_key[record["id"]] = record["upload"] + record["download"]
                    name = record["username"], record["total_since"]
                    total = record["upload_total"] + record["download_total"]
                    by_total[name] = max(by_total.get(name, 0), total)
                if fate == "lost answer":
                    return
                queue.accepted(part, 1, 1)

        for number, (user, up, down, fates) in enumerate(steps):
            totals[user][0] += up
            totals[user][1] += down
            queue.cut([Total(u, 1.0, *both) for u, both in totals.items()], 100.0 + number, "n")
            deliver(fates)
        deliver([])
        moved = sum(map(sum, totals.values()))
        assert sum(by_key.values()) == sum(by_total.values()) == moved
        queue.close()
