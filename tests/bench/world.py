"""A network namespace with the HTB trees, live conntrack entries, and the real agent."""

from __future__ import annotations

import ctypes
import os
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
from dataclasses import dataclass
from pathlib import Path

from vff_qos.core.flow import Flow
from vff_qos.core.htb import OURS_MASK, PARKED_PRIO, ClassState
from vff_qos.core.settings import GcSettings
from vff_qos.kernel.packed.conntrack import Conntrack, prepare
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
from vff_qos.kernel.packed.tc import Tc

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


def unshare_network() -> None:
    """Move this process into a new network namespace."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:
        raise SystemExit("bench: needs root (a network namespace of its own)")


def enter_namespace() -> None:
    """Move this process into a new network namespace with addresses and HTB trees."""
    unshare_network()
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", "203.0.113.1/32", "dev", "lo")
    run("nft", "-f", "-", stdin=_RULES)
    sysctls = Path("/proc/sys/net/netfilter")
    # The bench sees the moment of a mark through conntrack's events.
    (sysctls / "nf_conntrack_events").write_text("1", encoding="ascii")
    # As bootstrap sets it: flows whose birth nobody knows are a slower way.
    (sysctls / "nf_conntrack_timestamp").write_text("1", encoding="ascii")


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


def line(number: int, users: int) -> bytes:
    """The log's line of now for ``flow(number)``, which belongs to user ``number % users``.

    To the microsecond: a flow found after a restart has no part in what was said before its birth.
    """
    made = flow(number)
    return line_from(made.src, made.sport, number % users, time.time())


def line_from(address: bytes, port: int, user: int, when_s: float) -> bytes:
    """The log's line of that user's request from there, at a Unix time."""
    stamp = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(when_s))
    microsecond = round(when_s % 1 * 1e6) % 1_000_000
    return (
        f"{stamp}.{microsecond:06d} from {socket.inet_ntoa(address)}:{port} "
        f"accepted tcp:www.example.com:443 [vless-in >> direct] email: user{user}@x\n"
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


@dataclass(frozen=True)
class Code:
    """Whose agent is measured: the one of this checkout, or of another commit's."""

    root: Path = Path(__file__).parents[2]
    #: What the names of its rows begin with.
    prefix: str = ""

    def settings(self, log: Path, service_ports: str) -> str:
        """The node's ``settings.yml``, with the keys that this commit knows."""
        common = f"leaf: pfifo\nservice_ports: [{service_ports}]\n"
        if not self._knows("xray_access_log_path"):
            return (
                f"{common}wan: wan0\naccess_log: {log}\n"
                "gc: {idle_s: 1, min_age_s: 0, check_conntrack: false, pool_max: 65000}\n"
            )
        return (
            f"{common}if_wan: wan0\nxray_access_log_path: {log}\n"
            "gc_idle_sec: 1\ngc_min_age_sec: 0\ngc_check_conntrack: false\ngc_pool_max: 65000\n"
        )

    @property
    def spare_classes(self) -> int:
        """How many classes it keeps ready for new users."""
        return GcSettings().pool_min if self._knows("gc_pool_min") else 0

    def _knows(self, key: str) -> bool:
        settings = self.root / "agent" / "src" / "vff_qos" / "core" / "settings.py"
        return f'"{key}"' in settings.read_text(encoding="utf-8")


HERE = Code()


class Agent:
    """The real ``vff-qos follow`` on its own core."""

    def __init__(self, directory: Path, code: Code, service_ports: str) -> None:
        self.directory, self.code = directory, code
        # In memory, as /run is on a node: to replace a file on a disk costs a millisecond.
        self.run_directory = tempfile.mkdtemp(prefix="vff-qos-bench-", dir="/dev/shm")
        self.log = directory / "access.log"
        self.process: subprocess.Popen[str] | None = None
        self.etc = directory / "etc"
        self.etc.mkdir()
        settings = code.settings(self.log, service_ports)
        (self.etc / "settings.yml").write_text(settings, encoding="utf-8")
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
            sys.executable, "-S", "-m", "bench.follow", *words,
            "--settings", f"{self.etc}/settings.yml", "--policy", f"{self.etc}/policy.yml",
            "--state-dir", f"{at}/state", "--run-dir", self.run_directory,
        ]  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """Makes ``bench.follow`` and the agent those of its code.

        Packages are found by path, because a node has nothing of what this machine's Python may
        load when it starts (``*.pth`` files, site(3)): here that can be a MiB and more.  Modules
        are compiled once, as by an installation, and not at each start.
        """
        packages = [path for path in sys.path if path.endswith("-packages")]
        places = [f"{self.code.root}/agent/src", f"{self.code.root}/tests", *packages]
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(places),
            "PYTHONDONTWRITEBYTECODE": "",
        }

    def run(self, *words: str) -> None:
        """A vff-qos command that must succeed."""
        subprocess.run(self.command(*words), env=self.environment, capture_output=True, check=True)

    def start(self) -> None:
        """Start it and wait until it follows the log."""
        self.process = subprocess.Popen(
            ["taskset", "-c", str(AGENT_CPU), *self.command("follow")],
            stderr=subprocess.PIPE, text=True, env=self.environment,
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


def push(follower: Agent, lines: list[bytes], last: int) -> float:
    """Append ``lines``; lines a second until the flow of the last one bears a mark."""
    conntrack = Conntrack()
    # The file grows in portions, so that writing and reading overlap as in life.
    start = time.perf_counter()
    for at in range(0, len(lines), 20_000):
        follower.append(lines[at : at + 20_000])
    wait_until(
        f"a mark on flow {last}",
        lambda: bool(conntrack.get_marks([prepare(flow(last))])[0]),
        120,
        0.001,
    )
    spent = time.perf_counter() - start
    conntrack.close()
    return len(lines) / spent


@contextmanager
def agent(start: bool = True, code: Code = HERE, service_ports: str = "443") -> Iterator[Agent]:
    """Fresh trees, an empty state, and an agent that is running, or will be."""
    make_trees()
    # It shall not take the flows to come for those of the agent before, whose tuples they have.
    run("conntrack", "-F")
    directory = Path(tempfile.mkdtemp(prefix="vff-qos-bench-"))
    made = Agent(directory, code, service_ports)
    try:
        if start:
            made.start()
        yield made
    finally:
        made.stop(signal.SIGKILL)
        shutil.rmtree(directory)
        shutil.rmtree(made.run_directory)


def count_classes(wanted: Callable[[ClassState], bool]) -> int:
    """How many classes of the WAN device are as ``wanted``."""
    tc = Tc()
    found = tc.classes(socket.if_nametoindex("wan0"), MAJOR).values()
    tc.close()
    return sum(map(wanted, found))


def is_parked(state: ClassState) -> bool:
    """Whether a class waits for a user."""
    return state.params.prio == PARKED_PRIO


def is_user(state: ClassState) -> bool:
    """Whether it has one."""
    return state.params.prio == 0


def wait_for_the_pool(follower: Agent) -> None:
    """Until as many classes wait for new users as there should."""
    spare = follower.code.spare_classes
    wait_until("a full pool", lambda: count_classes(is_parked) >= spare, 240, 1.0)
