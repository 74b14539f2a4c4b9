"""``vff-qos top`` on a real terminal, with real classes and real traffic."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyte
import pytest

from vff_qos.core.policy.overrides import Override
from vff_qos.state import State

from .harness import Client, Node, eventually, look, run, status, user
from .senders import Pipe, send_through

# They look at the processes of the machine.
pytestmark = pytest.mark.alone

_UTF8 = {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
_POOR = {"TERM": "vt100", "LANG": "C"}
#: Of ECMA-48, SGR.
_COLOR = re.compile(rb"\x1b\[(?:3|4)[0-7]m")


class _Screen(pyte.Screen):
    """As xterm: it repeats a character and scrolls a region (REP, SU and SD of ECMA-48), which
    pyte lacks."""

    def repeat(self, count: int = 1) -> None:
        self.draw(self.buffer[self.cursor.y][self.cursor.x - 1].data * (count or 1))

    def scroll_up(self, count: int = 1) -> None:
        self._at_margin(self.margins.bottom if self.margins else self.lines - 1, self.index, count)

    def scroll_down(self, count: int = 1) -> None:
        self._at_margin(self.margins.top if self.margins else 0, self.reverse_index, count)

    def _at_margin(self, line: int, move: Callable[[], None], count: int) -> None:
        """The cursor stays where it is."""
        before, self.cursor.y = self.cursor.y, line
        for _ in range(count or 1):
            move()
        self.cursor.y = before


class _Stream(pyte.ByteStream):
    csi = pyte.ByteStream.csi | {"b": "repeat", "S": "scroll_up", "T": "scroll_down"}
    events = pyte.ByteStream.events | {"repeat", "scroll_up", "scroll_down"}


class Terminal:
    """A command on a terminal of its own, and what it shows."""

    def __init__(self, command: list[str], environ: dict[str, str], size: tuple[int, int]) -> None:
        """``size``: columns and lines."""
        kept = ("PATH", "PYTHONPATH")
        env = {name: os.environ[name] for name in kept if name in os.environ} | environ
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            _set_size(0, size)
            # Who runs tests in the background has these ignored, and children inherit that.
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.execvpe(command[0], command, env)
        self.screen = _Screen(*size)
        self._stream = _Stream(self.screen)
        self.output = b""
        self.before = termios.tcgetattr(self.descriptor)

    def read(self, within_s: float = 0.1) -> bool:
        """Take what it has written; whether it still may write."""
        if not select.select([self.descriptor], [], [], within_s)[0]:
            return True
        try:
            data = os.read(self.descriptor, 65_536)
        except OSError:  # EIO: nobody has the other end open
            return False
        self.output += data
        self._stream.feed(data)
        return bool(data)

    @property
    def lines(self) -> list[str]:
        return [str(line).rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def until(self, check: Callable[[], object], within_s: float = 15.0) -> None:
        """Read until what is shown is so."""
        deadline = time.monotonic() + within_s
        while not check():
            assert time.monotonic() < deadline, "it never showed that:\n" + self.text
            self.read()

    def shows(self, *words: str) -> None:
        self.until(lambda: all(word in self.text for word in words))

    def press(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def resize(self, size: tuple[int, int]) -> None:
        """As a window does that is dragged."""
        self.screen.resize(size[1], size[0])
        _set_size(self.descriptor, size)

    def ends(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + 20.0
        while self.read(1.0):
            assert time.monotonic() < deadline, "it does not end:\n" + self.text
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def table(self) -> list[str]:
        """The titles and the rows; the verdict above them takes a line or two."""
        lines = self.lines[:-1]
        at = next(
            (number for number, line in enumerate(lines) if line.lower().startswith("user ")), None
        )
        return [] if at is None else [line for line in lines[at:] if line]

    @property
    def titles(self) -> str:
        return self.table[0] if self.table else ""

    def row(self, email: str) -> list[str]:
        """Words of a user's row; empty if it is not shown."""
        return next((line.split() for line in self.table if line.startswith(email)), [])


def _set_size(descriptor: int, size: tuple[int, int]) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))


@pytest.fixture
def terminals() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def make(
        node: Node, *words: str, environ: dict[str, str] = _UTF8, size: tuple[int, int] = (80, 24)
    ) -> Terminal:
        made = Terminal(node.command("top", "--interval", "0.3", *words), environ, size)
        opened.append(made)
        return made

    yield make
    for one in opened:
        try:
            os.kill(one.pid, signal.SIGKILL)
            os.waitpid(one.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended
        os.close(one.descriptor)


@pytest.fixture
def busy(node: Node) -> Iterator[Node]:
    """Three users; alice downloads as fast as she may, bob has lost packets."""
    node.write_policy(
        "plans: {pro: {upload: 5mbit, download: 10mbit}}\n"
        "users:\n  alice@x: {plan: pro}\n  carol@x: {unlimited: true}\n"
    )
    node.start()
    kept = [user(node, name) for name in ("alice@x", "bob@x", "carol@x", "alice@x")]
    minors = [(node.mark(client) or 0) & 0xFFFF for client in kept]
    send_through("vffqos0", minors[1], 30)
    pipe, ends = Pipe(), threading.Event()

    def download() -> None:
        while not ends.is_set():
            pipe.send(minors[0], 200_000, 0.3)

    thread = threading.Thread(target=download)
    thread.start()
    yield node
    ends.set()
    thread.join()


def rate(top: Terminal) -> float:
    """Alice's download in Mbit/s as it is shown."""
    shown = [*top.row("alice@x"), "", "", "", ""][3]
    return float(shown[:-1]) if shown.endswith("M") else 0.0


def test_a_live_table_at_80_columns(busy: Node, terminals: Callable[..., Terminal]) -> None:
    top = terminals(busy)
    # A machine without free processors takes some looks until she is at her limit.
    top.until(lambda: {"pro", "limit"} <= {*top.row("alice@x")} and 9.0 < rate(top) < 10.6, 30)
    assert top.lines[0].startswith(("OK: ", "DEGRADED: "))
    assert re.search(r"^3 users by rate; down [0-9.]+mbit on wan0, up ", top.text, re.M)
    assert top.titles.split() == [
        "user", "plan", "UP", "DOWN", "limit", "full", "minute", "drop", "flow", "addr", "held",
        "by",
    ]  # fmt: skip
    assert top.table[1].startswith("alice@x")
    row = top.row("alice@x")
    assert row[1] == "pro" and row[4] == "5M/10M" and row[-1] == "limit"
    assert row[-4:-1] == ["0", "2", "1"]
    assert "█" in "".join(row)
    assert top.row("bob@x")[3] == "2M/3M"
    assert top.row("carol@x")[3] == "-"
    # Before five seconds are over nobody knows their rate: then there is a minute.
    top.until(lambda: re.search(r"[▁▂▃▄▅▆▇█]", top.table[1][50:57]))
    assert top.lines[-1].startswith("q quit")
    assert max(map(len, top.lines)) <= 80
    top.press("q")
    assert top.ends() == 0


@pytest.mark.parametrize("environ", [_UTF8, _POOR], ids=["xterm", "vt100"])
def test_the_terminal_is_as_before(
    busy: Node, terminals: Callable[..., Terminal], environ: dict[str, str]
) -> None:
    top = terminals(busy, environ=environ)
    top.until(lambda: "limit" in top.row("alice@x"))
    assert termios.tcgetattr(top.descriptor)[3] != top.before[3]
    os.kill(top.pid, signal.SIGINT)
    assert top.ends() == 0
    assert termios.tcgetattr(top.descriptor) == top.before
    if environ is _UTF8:
        assert top.output.rindex(b"\x1b[?1049l") > top.output.rindex(b"\x1b[?1049h")
        assert _COLOR.search(top.output)
    else:
        assert top.output.isascii() and not _COLOR.search(top.output)
        assert re.search(r"#+", " ".join(top.row("alice@x")))


def test_a_top_that_is_terminated_leaves_the_terminal_as_before(
    busy: Node, terminals: Callable[..., Terminal]
) -> None:
    top = terminals(busy)
    top.until(lambda: "limit" in top.row("alice@x"))
    os.kill(top.pid, signal.SIGTERM)
    assert top.ends() != 0
    assert termios.tcgetattr(top.descriptor) == top.before
    assert b"\x1b[?1049l" in top.output


def test_no_color_where_nobody_wants_it(busy: Node, terminals: Callable[..., Terminal]) -> None:
    top = terminals(busy, environ=_UTF8 | {"NO_COLOR": "1"})
    top.until(lambda: "limit" in top.row("alice@x"))
    assert not _COLOR.search(top.output)


def order(top: Terminal) -> list[str]:
    return [line.split()[0] for line in top.table[1:]]


def test_sort_filter_and_pause(busy: Node, terminals: Callable[..., Terminal]) -> None:
    top = terminals(busy)
    top.until(lambda: "limit" in top.row("alice@x"))
    assert order(top)[0] == "alice@x"
    top.press("S")  # the one before the first is the last: by name
    top.shows("3 users by name")
    top.until(lambda: order(top) == ["alice@x", "bob@x", "carol@x"])
    top.press("r")
    top.until(lambda: order(top) == ["carol@x", "bob@x", "alice@x"])
    top.press("r/bo")
    top.shows("filter: bo_")
    top.press("\x7fob\r")  # a letter is taken back
    top.shows("1 users by name, *bob*")
    top.until(lambda: order(top) == ["bob@x"])
    top.press("/\r")
    top.shows("3 users by name;")
    top.press("p")
    top.shows("PAUSED, 3 users")
    kept = top.lines
    assert top.read(1.5) and top.lines == kept
    top.press("p")
    top.until(lambda: "PAUSED" not in top.text)
    top.press("h")
    top.shows("help", "keys", "stop, and go on")
    top.press("\x1b")
    top.shows("q quit")


def test_a_user_is_picked_and_explained(busy: Node, terminals: Callable[..., Terminal]) -> None:
    top = terminals(busy, "--sort", "name")
    top.until(lambda: "limit" in top.row("alice@x"))
    top.press("\x1bOBj")  # down by key and by letter: carol
    top.press("k")
    top.press("\r")
    top.shows("explain bob@x", "upload 2mbit, download 3mbit", "decided by: default", "names bob@x")
    top.press("\x1b")
    top.shows("3 users by name")
    top.press("k\r")
    top.shows("explain alice@x", "decided by: user alice@x", "escape back")
    top.press("q")
    top.shows("3 users by name")
    top.press("q")
    assert top.ends() == 0


def test_the_picked_user_stays_picked_when_the_order_changes(
    busy: Node, terminals: Callable[..., Terminal]
) -> None:
    top = terminals(busy, "--sort", "name")
    top.until(lambda: "limit" in top.row("alice@x"))
    top.press("j")
    top.press("r")
    top.until(lambda: order(top) == ["carol@x", "bob@x", "alice@x"])
    top.press("\r")
    top.shows("explain bob@x")


def test_connections_in_doubt_have_a_row_and_are_told_of_their_neighbours(
    busy: Node, terminals: Callable[..., Terminal]
) -> None:
    # As bootstrap sets it, and as long as a handshake takes: then a word is surely younger than its
    # flow, although the table may just have been compared.
    Path("/proc/sys/net/netfilter/nf_conntrack_timestamp").write_text("1")
    doubted = Client("127.0.0.1", 4430)
    time.sleep(0.1)
    busy.write(doubted.line("alice@x"), doubted.line("bob@x"))
    top = terminals(busy, "--sort", "name")
    top.until(lambda: top.row("(restricted)")[-1:] == ["restr."])
    top.until(lambda: top.row("bob@x")[-1:] == ["restr."])  # from the same address
    top.press("\r")
    top.shows("127.0.0.1: alice@x, bob@x, carol@x, 5 connections")
    top.until(lambda: "two users are named for it" in " ".join(top.text.split()))


def test_another_size(busy: Node, terminals: Callable[..., Terminal]) -> None:
    top = terminals(busy)
    top.until(lambda: "limit" in top.row("alice@x"))
    top.resize((132, 40))
    top.shows("own limit")
    assert len(top.titles) > 100
    top.resize((40, 8))
    top.until(lambda: "plan" not in top.titles and "held" in top.titles)
    top.until(lambda: order(top)[:1] == ["alice@x"])
    top.resize((5, 2))
    assert top.read(1.0)
    top.resize((80, 24))
    top.until(lambda: "limit" in top.row("alice@x") and "plan" in top.titles)
    top.press("q")
    assert top.ends() == 0


def test_what_breaks_meanwhile_is_said_and_mended(
    busy: Node, terminals: Callable[..., Terminal]
) -> None:
    top = terminals(busy, size=(160, 24))  # a test's paths are longer than a node's
    top.until(lambda: "limit" in top.row("alice@x"))
    policy = busy.directory / "policy.yml"
    good = policy.read_text()
    policy.write_text(good + "  dave@x: {upload: 5mbps}\n")
    top.until(lambda: top.lines[0].startswith("DEGRADED: ") and "policy.yml:6" in top.text, 30)
    policy.write_text(good)
    top.until(lambda: "policy.yml" not in top.text, 30)
    assert b"warning" not in top.output


def refused(node: Node, *words: str, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        node.command("top", *words), capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, env=os.environ | (environ or {}),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    return done.stderr


@pytest.mark.parametrize("name", ["nonsense", "dumb", ""])
def test_a_terminal_that_is_not_fit_gets_one_line(
    node: Node, terminals: Callable[..., Terminal], name: str
) -> None:
    top = terminals(node, environ={"TERM": name})
    assert top.ends() == 2
    (line,) = top.output.decode().splitlines()
    assert line.startswith(f"vff-qos top: TERM={name!r}: ") and "--once" in line


def test_no_terminal_and_a_wrong_interval(node: Node) -> None:
    assert "'vff-qos top --once'" in refused(node)
    assert "between 0.2 and 60" in refused(node, "--once", "--interval", "0")


def test_the_terminal_may_go_away(busy: Node, terminals: Callable[..., Terminal]) -> None:
    top = terminals(busy)
    top.until(lambda: "limit" in top.row("alice@x"))
    os.close(top.descriptor)
    assert os.waitpid(top.pid, 0)[0] == top.pid
    top.descriptor = os.open(os.devnull, os.O_RDONLY)


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in text.splitlines()[3:]}


def test_once_and_for_programs(busy: Node) -> None:
    def is_at_the_limit() -> bool:
        told = json.loads(run(*busy.command("top", "--json", "alice@x")))["users"][0]
        return bool(told["held_by"] == "limit" and 9_000_000 < told["down_rate_bps"] < 10_600_000)

    eventually(is_at_the_limit, 30)
    text = run(*busy.command("top", "--once"))
    found = rows(text)
    assert list(found) == ["alice@x", "bob@x", "carol@x"]
    assert "minute" not in text.splitlines()[2]
    assert found["alice@x"][1] == "pro" and "5M/10M" in found["alice@x"]
    assert list(rows(run(*busy.command("top", "--once", "b*", "c*", "--sort", "name")))) == [
        "bob@x", "carol@x",
    ]  # fmt: skip
    told: dict[str, Any] = json.loads(run(*busy.command("top", "--json")))
    alice, bob, carol = told["users"]
    assert (alice["plan"], alice["addresses"]) == ("pro", 1)
    assert alice["down_rate_bps"] <= told["devices"]["download"]["rate_bps"]
    assert bob["plan"] == carol["plan"] == ""
    # The same figures as everywhere.
    same = {one["email"]: one for one in status(busy)["users"]}
    for one in told["users"]:
        there = same[one["email"]]
        assert set(there) == set(one) - {"plan"}
        for key in ("class", "upload_bps", "download_bps", "flows", "addresses"):
            assert there[key] == one[key]
    assert told["verdict"] == {0: "OK", 1: "DEGRADED", 2: "TROUBLE"}[look(busy)[0]]


def test_once_where_nothing_is_set_up(node: Node) -> None:
    run("ip", "link", "del", "wan0")
    text = run(*node.command("top", "--once", "--interval", "0.2"))
    assert text.startswith("TROUBLE: ") and "wan0" in text.splitlines()[0]
    assert json.loads(run(*node.command("top", "--json", "--interval", "0.2")))["users"] == []


def test_a_penalty_is_told_from_a_person_s_order(busy: Node) -> None:
    def alice() -> dict[str, Any]:
        (found,) = json.loads(run(*busy.command("top", "--json", "alice@x")))["users"]
        return dict(found)

    state = State(str(busy.directory / "state"))
    why = "20 GB within 24h"
    slow = {"upload": "4mbit", "download": "4mbit"}
    state.save_overrides([Override("alice@x", "fair_use", slow, None, "", why, time.time())])
    state.close()
    eventually(lambda: status(busy, "alice@x")["users"][0]["download_bps"] == 4_000_000)
    eventually(lambda: alice()["held_by"] == "penalty", 20)
    eventually(lambda: f"held by a penalty ({why})" in busy.run("explain", "alice@x"), 20)
    busy.run("limit", "alice@x", "--download", "6mbit")
    assert alice()["download_bps"] == 6_000_000
    eventually(lambda: alice()["held_by"] == "limit", 20)
