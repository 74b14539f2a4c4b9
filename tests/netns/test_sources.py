"""Several sources of identities at once, in a real kernel: each by itself, none held back."""

from __future__ import annotations

import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.config import Paths, load_settings
from vff_qos.follower.intake import CHECKPOINTS, Intake
from vff_qos.journal import Journal
from vff_qos.state import State

from .harness import Client, eventually, look, status
from .sources_node import SourcesNode

#: A source that has failed is opened again every ten seconds: a bound, not what it takes.
AGAIN_S = 30.0


@pytest.fixture
def node(tmp_path: Path, trees: tuple[str, str]) -> Iterator[SourcesNode]:
    made = SourcesNode(tmp_path)
    yield made
    made.stop()


def test_each_source_gives_flows_away_and_is_counted_by_itself(node: SourcesNode) -> None:
    node.start()
    first, second, third = (Client("127.0.0.1", 4430) for _ in range(3))
    node.write(first.line("alice@x"), first.line("alice@x"))
    node.write_second(second.line("bob@x"))
    node.post(third, "carol@x")
    eventually(lambda: all(node.mark(client) for client in (first, second, third)))
    assert len({node.mark(client) for client in (first, second, third)}) == 3
    eventually(lambda: node.source("webhook")["last_claim_s"], 12)
    found = {one["name"]: one for one in status(node)["follower"]["sources"]}
    assert {name: one["log"]["claims"] for name, one in found.items()} == {
        "file": 2, "second": 1, "webhook": 1,
    }  # fmt: skip
    assert {name: one["trust"] for name, one in found.items()} == {
        "file": "text", "second": "text", "webhook": "told",
    }  # fmt: skip
    assert status(node)["follower"]["log"]["claims"] == 4
    text = look(node)[1]
    assert f"source second: {node.second} (text" in text
    assert f"source webhook: the webhook at unix:{node.socket} (cannot be forged)" in text
    # What was told beats what was written, whichever comes first.
    carol = node.mark(third)
    last = Client("127.0.0.1", 4430)
    node.write_second(third.line("bob@x"), last.line("bob@x"))
    eventually(lambda: node.mark(last) == node.mark(second))
    assert node.mark(third) == carol
    node.post(last, "carol@x")
    eventually(lambda: node.mark(last) == carol)


def test_a_source_speaks_of_its_own_ports_only(node: SourcesNode) -> None:
    node.set_sources(
        f"{{type: file, path: {node.log}, ports: [4430]}}, "
        f"{{type: file, name: second, path: {node.second}, ports: [4431]}}"
    )
    node.start()
    one, other = Client("127.0.0.1", 4430), Client("127.0.0.1", 4431)
    # Each log names both: only its own port's are its to give away.
    node.write(other.line("mallory@x"), one.line("alice@x"))
    node.write_second(one.line("mallory@x"), other.line("bob@x"))
    eventually(lambda: node.mark(one) and node.mark(other))
    assert node.mark(one) != node.mark(other)
    eventually(lambda: status(node)["follower"]["no_flow"] == 2, 12)
    assert sorted(user["email"] for user in status(node)["users"]) == [
        "alice@x", "second:bob@x",
    ]  # fmt: skip


def test_equal_ends_and_tags_of_two_logs_are_not_mixed_up(node: SourcesNode) -> None:
    """A word that is known by its text is known of its own source alone."""
    node.set_sources(
        f"{{type: file, path: {node.log}, ports: [4430]}}, "
        f"{{type: file, name: second, path: {node.second}, ports: [4431]}}"
    )
    node.start()
    one = Client("127.0.0.1", 4430)
    node.write(one.line("alice@x"))
    eventually(lambda: node.mark(one))
    mark = node.mark(one)
    for _ in range(3):
        node.write_second(one.line("alice@x"))
    eventually(lambda: status(node)["follower"]["no_flow"] == 3, 12)
    assert status(node)["follower"]["marked"] == 1
    assert node.mark(one) == mark


def test_equal_names_of_two_sources_are_one_user_only_where_somebody_says_so(
    node: SourcesNode,
) -> None:
    node.write_policy("users:\n  second:alice@x: {upload: 7mbit, download: 8mbit}\n")
    node.start()
    one, other, sly = (Client("127.0.0.1", 4430) for _ in range(3))
    node.write(one.line("alice@x"), sly.line("second:alice@x"))
    # Also where a line comes again, which is known by its text.
    node.write_second(other.line("alice@x"), other.line("alice@x"))
    eventually(lambda: all(node.mark(client) for client in (one, other, sly)))
    assert len({node.mark(client) for client in (one, other, sly)}) == 3
    names = ["alice@x", "second:alice@x", "xray:second:alice@x"]
    assert sorted(user["email"] for user in status(node)["users"]) == names
    minor = (node.mark(other) or 0) & 0xFFFF
    assert [ceils[minor] for ceils in node.classes()] == [7_000_000, 8_000_000]
    node.stop()
    with (node.directory / "settings.yml").open("a") as file:
        file.write("same_names: true\n")
    node.start()
    later, last = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    node.write(later.line("alice@x"))
    node.write_second(last.line("alice@x"))
    eventually(lambda: node.mark(later) and node.mark(last))
    assert node.mark(later) == node.mark(last) == node.mark(one)


def test_a_source_that_cannot_be_read_does_not_hold_back_the_others(node: SourcesNode) -> None:
    node.second.unlink()
    node.second.mkdir()
    node.start()
    assert f"second: {node.second}: is not a regular file" in node.told
    client = Client("127.0.0.1", 4430)
    node.write(client.line("alice@x"))
    eventually(lambda: node.mark(client))
    (finding,) = [f for f in status(node)["findings"] if f["kind"] == "source_missing"]
    assert finding["sentence"] == (
        f"nobody new of second is limited: {node.second}: is not a regular file"
    )
    assert f"source second: waiting: {node.second}: is not a regular file" in look(node)[1]
    assert node.source("file")["waiting"] == ""
    # It is told once, and read as soon as it can be.
    node.second.rmdir()
    late = Client("127.0.0.1", 4430)
    node.write_second(late.line("bob@x"))
    eventually(lambda: node.mark(late), AGAIN_S)
    told = [line for line in node.told.splitlines() if line.startswith("second: ")]
    assert told == [f"second: {node.second}: is not a regular file"]
    again = f"{node.second}: can be read again, from where reading had stopped"
    eventually(lambda: again in node.told)
    eventually(lambda: node.source("second")["waiting"] == "", 12)


def test_one_that_breaks_goes_on_where_it_had_stopped(node: SourcesNode) -> None:
    node.start()
    early = Client("127.0.0.1", 4430)
    node.write_second(early.line("bob@x"))
    eventually(lambda: node.mark(early))
    moved = node.directory / "second.log.1"
    node.second.rename(moved)
    node.second.mkdir()
    eventually(lambda: "is not a regular file" in node.told)
    client = Client("127.0.0.1", 4430)
    node.write(client.line("alice@x"))
    eventually(lambda: node.mark(client))
    # The engine goes on with the old file; then there is a new one.
    late, last = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    with moved.open("ab") as file:
        file.write(late.line("bob@x"))
    node.second.rmdir()
    node.write_second(last.line("bob@x"))
    eventually(lambda: node.mark(late) and node.mark(last), AGAIN_S)
    assert node.mark(late) == node.mark(early) == node.mark(last)
    eventually(lambda: node.source("second")["log"]["lines"] == 3, 12)  # none of them twice


def test_where_none_can_be_read_the_agent_says_so_and_ends(node: SourcesNode) -> None:
    for path in (node.log, node.second):
        path.unlink()
        path.mkdir()
    node.set_sources(
        f"{{type: file, path: {node.log}}}, {{type: file, name: second, path: {node.second}}}"
    )
    done = subprocess.run(node.command("follow"), capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert f"{node.second}: is not a regular file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_restart_goes_on_with_each_and_with_what_a_single_source_had_left(
    node: SourcesNode,
) -> None:
    node.start()
    one, other = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    node.write(one.line("alice@x"))
    node.write_second(other.line("bob@x"))
    eventually(lambda: node.mark(one) and node.mark(other))
    node.stop()
    late, later = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    node.write(late.line("alice@x"))
    node.write_second(later.line("bob@x"))
    node.start()
    eventually(lambda: node.mark(late) and node.mark(later))
    assert (node.mark(late), node.mark(later)) == (node.mark(one), node.mark(other))
    eventually(lambda: node.source("file")["log"].get("lines") == 1, 12)
    assert node.source("second")["log"]["lines"] == 1
    node.stop()
    # As a version with one source has left it.
    state = State(str(node.directory / "state"), str(node.directory / "run"))
    kept = state.get_value(CHECKPOINTS)
    kind, place = kept[str(node.log)]
    assert kind == "file" and place[0]["offset"] == node.log.stat().st_size
    state.set_value("checkpoint", place)
    state.set_value(CHECKPOINTS, None)
    state.close()
    last = Client("127.0.0.1", 4430)
    node.write(last.line("alice@x"))
    node.start()
    eventually(lambda: node.mark(last))
    eventually(lambda: node.source("file")["log"].get("lines") == 1, 12)


def test_each_is_read_in_turn(node: SourcesNode) -> None:
    """A long log does not keep the others waiting for its end."""
    line = b"2026/01/01 00:00:00 from 192.0.2.5:%d accepted tcp:a:443 [in >> out] email: a@x\n"
    node.log.write_bytes(b"".join(line % port for port in range(1, 20_000)))
    node.second.write_bytes(line % 7)
    settings = load_settings(Paths(settings=str(node.directory / "settings.yml")))
    state = State(str(node.directory / "state"), str(node.directory / "run"))
    poll = select.epoll()
    intake = Intake(settings.sources, state, Journal(), poll)
    ready = [fd for reading in intake.readings for fd in reading.descriptors]
    rounds = [{number: len(claims) for number, _source, claims in intake.read(ready)}]
    assert rounds[0][1] == 1 and 0 < rounds[0][0] < 19_999
    while intake.more:
        rounds.append({number: len(claims) for number, _source, claims in intake.read(())})
    assert sum(found.get(0, 0) for found in rounds) == 19_999
    assert all(1 not in found for found in rounds[1:])
    intake.close()
    state.close()
    poll.close()


def test_what_a_source_said_is_told_with_its_users_name(node: SourcesNode) -> None:
    node.start()
    first, second = Client("127.0.0.1", 4430), Client("127.0.0.1", 4430)
    node.write(first.line("second:eve"))
    node.write_second(second.line("alice@x"))
    eventually(lambda: node.mark(first) and node.mark(second))
    explained = node.run("explain", f"127.0.0.1:{second.port}")
    assert "names second:alice@x" in explained and "names alice@x" not in explained
    assert "names xray:second:eve" in node.run("explain", "xray:second:eve")
