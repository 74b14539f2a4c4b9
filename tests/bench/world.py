"""A network namespace with the HTB trees, live conntrack entries, and the real agent."""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vff_qos.core.flow import Flow
from vff_qos.core.htb import OURS_MASK
from vff_qos.kernel.packed.conntrack import Conntrack
from vff_qos.kernel.packed.netlink import (
    HEADER,
    NETLINK_NETFILTER,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    Encoder,
    Netlink,
    attr,
    nest,
)

MAJOR = 0x5100
NODE = socket.inet_aton("203.0.113.1")
PORT = 443
#: The agent has one core, whoever measures it the other.
AGENT_CPU, BENCH_CPU = 1, 0

_RULES = """table inet bench {
  chain o {
    type filter hook output priority 0
    ct state new counter
  }
}
"""
_CT_NEW = 1 << 8
_TIMEOUT_S = 3600


def run(*command: str, stdin: str | None = None) -> str:
    """Output of a command that must succeed."""
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout


def enter_namespace() -> None:
    """Move this process into a new network namespace with addresses and HTB trees."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:
        raise SystemExit("bench: needs root (a network namespace of its own)")
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", "203.0.113.1/32", "dev", "lo")
    run("nft", "-f", "-", stdin=_RULES)
    # The bench sees the moment of a mark through conntrack's events.
    Path("/proc/sys/net/netfilter/nf_conntrack_events").write_text("1", encoding="ascii")


def make_trees() -> None:
    """Both devices with their roots, as bootstrap makes them; what is there is made anew."""
    for device in ("wan0", "vffqos0"):
        if device in {name for _index, name in socket.if_nameindex()}:
            run("ip", "link", "del", device)
        run("ip", "link", "add", device, "type", "veth", "peer", "name", f"{device}p")
        run("ip", "link", "set", device, "up")
        run("tc", "qdisc", "add", "dev", device, "root", "handle", "5100:", "htb",
            "default", "fffe")  # fmt: skip
        for parent, minor in (("5100:", "1"), ("5100:1", "fffe")):
            run("tc", "class", "add", "dev", device, "parent", parent, "classid",
                f"5100:{minor}", "htb", "rate", "100gbit", "quantum", "60000")  # fmt: skip


def flow(number: int) -> Flow:
    """The ``number``-th client's flow to the node."""
    address = struct.pack(">I", 0xC6336401 + number // 32_000)
    return Flow(6, address, 20_000 + number % 32_000, NODE, PORT)


def make_flows(count: int) -> None:
    """Established TCP entries for ``flow(0)`` to ``flow(count - 1)``, in the emptied table."""
    run("conntrack", "-F")
    make_some_flows([flow(number) for number in range(count)])


def make_some_flows(flows: list[Flow]) -> None:
    """Established TCP entries, in the real table."""
    netlink = Netlink(NETLINK_NETFILTER)
    errors, _ = netlink.batch([_create(made) for made in flows])
    netlink.close()
    if errors:
        raise OSError(next(iter(errors.values())), "creating conntrack entries")


def _create(made: Flow) -> Encoder:
    def direction(kind: int, src: bytes, sport: int, dst: bytes, dport: int) -> bytes:
        ports = attr(2, struct.pack(">H", sport)) + attr(3, struct.pack(">H", dport))
        return nest(kind, nest(1, attr(1, src), attr(2, dst)), nest(2, attr(1, b"\6"), ports))

    body = struct.pack("=BBH", socket.AF_INET, 0, 0)
    body += direction(1, made.src, made.sport, made.dst, made.dport)
    body += direction(2, made.dst, made.dport, made.src, made.sport)
    established = nest(4, nest(1, attr(1, b"\3")))
    status = attr(3, struct.pack(">I", 0xE))  # seen reply, assured, confirmed
    body += status + attr(7, struct.pack(">I", _TIMEOUT_S)) + established
    flags = NLM_F_REQUEST | NLM_F_CREATE
    return lambda seq: HEADER.pack(16 + len(body), _CT_NEW, flags, seq, 0) + body


def line(number: int, users: int, microsecond: int = 0) -> bytes:
    """The log's line for ``flow(number)``, which belongs to user ``number % users``."""
    made = flow(number)
    stamp = time.strftime("%Y/%m/%d %H:%M:%S")
    return (
        f"{stamp}.{microsecond % 1_000_000:06d} from {socket.inet_ntoa(made.src)}:{made.sport} "
        f"accepted tcp:www.example.com:443 [vless-in >> direct] email: user{number % users}@x\n"
    ).encode()


def marked() -> int:
    """How many flows bear our mark."""
    conntrack = Conntrack()
    count = sum(1 for _ in conntrack.dump(MAJOR << 16, OURS_MASK))
    conntrack.close()
    return count


def wait_until(
    what: str, check: Callable[[], bool], timeout_s: float, step_s: float = 0.005
) -> float:
    """Seconds until ``check`` is true; ends the bench with a message when ``what`` never is."""
    start = time.perf_counter()
    while not check():
        if time.perf_counter() - start > timeout_s:
            raise SystemExit(f"bench: {what} did not happen within {timeout_s:.0f} s")
        time.sleep(step_s)
    return time.perf_counter() - start


class Agent:
    """The real ``vff-qos follow`` on its own core."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "access.log"
        self.process: subprocess.Popen[str] | None = None
        self.etc = directory / "etc"
        self.etc.mkdir()
        (self.etc / "settings.yml").write_text(
            f"if_wan: wan0\nleaf: pfifo\nxray_access_log_path: {self.log}\n"
            "gc_idle_sec: 1\ngc_min_age_sec: 0\ngc_check_conntrack: false\ngc_pool_max: 65000\n"
        )
        self.write_policy("")
        self.log.touch()

    def write_policy(self, users: str, download: str = "50mbit") -> None:
        """Replace the policy file at once."""
        new = self.etc / "policy.new"
        new.write_text(f"default: {{upload: 20mbit, download: {download}}}\nusers: {{{users}}}\n")
        new.rename(self.etc / "policy.yml")

    def command(self, *words: str) -> list[str]:
        """A vff-qos command line with this agent's files."""
        at = self.directory
        return [
            sys.executable, "-m", "bench.follow", *words, "--settings", f"{self.etc}/settings.yml",
            "--policy", f"{self.etc}/policy.yml", "--state-dir", f"{at}/state",
            "--run-dir", f"{at}/run",
        ]  # fmt: skip

    def start(self) -> None:
        """Start it and wait until it follows the log."""
        self.process = subprocess.Popen(
            ["taskset", "-c", str(AGENT_CPU), *self.command("follow")],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        first = self.process.stderr.readline()
        if "follows" not in first:
            raise SystemExit(f"bench: the agent did not start: {first}{self.process.stderr.read()}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.communicate(timeout=30)
            self.process = None

    def cpu_s(self) -> float:
        """CPU seconds that it has used, counted in nanoseconds: sched-stats.rst of the kernel."""
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text("ascii").split()[0]) / 1e9

    def rss_mib(self) -> float:
        """Resident memory."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        kib = next(word for word in status.splitlines() if word.startswith("VmRSS")).split()[1]
        return int(kib) / 1024

    def append(self, lines: list[bytes]) -> None:
        """Write to its log in one go."""
        with self.log.open("ab") as file:
            file.write(b"".join(lines))


@contextmanager
def agent(start: bool = True) -> Iterator[Agent]:
    """Fresh trees, an empty state, and an agent that is running, or will be."""
    make_trees()
    directory = Path(tempfile.mkdtemp(prefix="vff-qos-bench-"))
    made = Agent(directory)
    try:
        if start:
            made.start()
        yield made
    finally:
        made.stop(signal.SIGKILL)
        shutil.rmtree(directory)
