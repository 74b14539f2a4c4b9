"""The page's process: memory and share of a core while many pages are open."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from pathlib import Path

from .rows import Report
from .top_bench import cpu_s
from .world import Agent, wait_until

_PAGES = 20
#: What a page asks for when it is opened, besides its stream.
_QUESTIONS = (
    "/", "/page.js", "/uplot.js", "/api/v1/live", "/api/v1/users", "/api/v1/status",
    "/api/v1/usage?by=hour&since=24h", "/api/v1/users?sort=full&limit=500",
)  # fmt: skip
#: The first looks are over after so long.
_SETTLED_S = 12.0


def measure(report: Report, follower: Agent, users: int, seconds: float) -> None:
    """Resident memory and share of a core with twenty open pages, and what one answer takes."""
    report.progress(f"the page with {users:,} users and {_PAGES} open pages, {seconds:.0f} s")
    path = follower.directory / "web.sock"
    settings = follower.etc / "settings.yml"
    before = settings.read_text(encoding="utf-8")
    settings.write_text(f"{before}web_bind: unix:{path}\n", encoding="utf-8")
    page = subprocess.Popen(
        follower.command("web"), env=follower.environment | {"MALLOC_ARENA_MAX": "1"}
    )
    streams = []
    try:
        wait_until("the page's socket", path.exists, 20)
        for _ in range(_PAGES):
            for question in _QUESTIONS:
                _ask(path, question)
            streams.append(_Stream(path))
        time.sleep(_SETTLED_S)
        answers = []
        used, start = cpu_s(page.pid), time.perf_counter()
        while time.perf_counter() - start < seconds:
            answers.append(_ask(path, "/api/v1/users"))
            time.sleep(1.0)
        share = 100 * (cpu_s(page.pid) - used) / (time.perf_counter() - start)
        name = f"users_{users}.pages_{_PAGES}"
        report.add(f"web.rss_mib.{name}", [_rss_mib(page.pid)], "MiB")
        report.add(f"web.rss_peak_mib.{name}", [_rss_mib(page.pid, "VmHWM")], "MiB")
        report.add(f"web.cpu_pct.{name}", [share], "%")
        report.add(f"web.answer_ms.{name}", [1e3 * took for took in answers], "ms")
        if not all(stream.events > seconds / 4 for stream in streams):
            raise SystemExit("bench: a page was told less than it should have been")
    finally:
        for stream in streams:
            stream.close()
        page.terminate()
        page.wait(timeout=30)
        settings.write_text(before, encoding="utf-8")


class _Stream:
    """An open page: a stream of events that somebody reads."""

    def __init__(self, path: Path) -> None:
        self.events = 0
        self._sock = _get(path, "/api/v1/stream")
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while data := self._sock.recv(65_536):
            self.events += data.count(b"event: now")

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)


def _get(path: Path, question: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    sock.sendall(f"GET {question} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return sock


def _ask(path: Path, question: str) -> float:
    """Seconds until the whole answer is there."""
    start = time.perf_counter()
    with _get(path, question) as sock:
        head, _, body = sock.recv(65_536).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"bench: {question}: {head.splitlines()[0].decode()} {body!r}")
        length = next(
            int(line.split(b":")[1])
            for line in head.splitlines()
            if line.lower().startswith(b"content-length:")
        )
        size = len(body)
        while size < length:
            size += len(sock.recv(1 << 20))
    return time.perf_counter() - start


def _rss_mib(pid: int, what: str = "VmRSS") -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in text.splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024
