"""Move traffic through the tunnels and read the kernel's counters meanwhile.

Reads a job (JSON) on standard input, writes the observations (JSON) to standard output; see
`measure.py` for both. Everything it starts is killed with it. Nothing of it runs on the node.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import counters
from .guest.engine import listening

PR_SET_PDEATHSIG = 1
ECHO_BYTES = 64
ETHERNET, IPV4, IPV6, TCP_WITH_TIMESTAMPS, UDP = 14, 20, 40, 32, 8
# A datagram inside Shadowsocks AEAD: salt, target address (IPv4), authentication tag.
SHADOWSOCKS_UDP = 16 + 7 + 16

#: How long servers may take to be there.
_LISTEN_S = 30.0

Job = dict[str, Any]
children: list[int] = []


def spawn(body: Callable[[], None], namespace: str) -> int:
    """Fork a child that runs `body` in a namespace and dies with us."""
    pid = os.fork()
    if pid:
        children.append(pid)
        return pid
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        counters.enter(namespace)
        body()
    finally:  # never return into the parent's code
        print(f"traffic: in {namespace}: {sys.exc_info()[1]!r}", file=sys.stderr, flush=True)
        os._exit(1)


def iperf(arguments: list[str], log: Path) -> Callable[[], None]:
    """A child's body that becomes iperf3 with its output in `log`."""

    def run() -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvp("iperf3", ["iperf3", *arguments])

    return run


def urgent() -> None:
    """Round trips must tell of queues in the network, not of those for the processor."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))


def echo_server(address: str, port: int) -> None:
    """Send everything back, for ever."""
    urgent()
    listener = socket.create_server((address, port), backlog=100)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    peers: dict[int, socket.socket] = {}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listener.fileno():
                peer, _ = listener.accept()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peers[peer.fileno()] = peer
                poll.register(peer, select.EPOLLIN)
                continue
            try:
                data = peers[descriptor].recv(4096)
                peers[descriptor].sendall(data)
            except ConnectionError:
                data = b""
            if not data:
                poll.unregister(descriptor)
                peers.pop(descriptor).close()


def echo_clients(job: Job, output: int) -> None:
    """Measure round trips of all devices in turn; write `time device seconds` lines."""
    urgent()
    sockets: dict[int, tuple[int, socket.socket]] = {}
    poll = select.epoll()
    for device in job["devices"]:
        link = socket.create_connection(("127.0.0.1", device["echo_port"]), timeout=20)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # At once: the engine's Shadowsocks server resets a connection whose first bytes are late.
        link.sendall(bytes(ECHO_BYTES))
        link.recv(4096)
        sockets[link.fileno()] = (device["number"], link)
        poll.register(link, select.EPOLLIN)
    sent: dict[int, float] = {}
    turn = 0
    due = time.monotonic()
    while True:  # spread evenly: round trips of several users at once would wait for each other
        descriptor = list(sockets)[turn % len(sockets)]
        if descriptor not in sent:  # one at a time for each connection
            sent[descriptor] = time.monotonic()
            sockets[descriptor][1].sendall(bytes(ECHO_BYTES))
        turn += 1
        due = max(due + job["echo_interval_s"] / len(sockets), time.monotonic())
        while (left := due - time.monotonic()) > 0:
            for ready, _ in poll.poll(left):
                now = time.monotonic()
                number, link = sockets[ready]
                if not link.recv(4096):  # the others go on
                    print(f"traffic: echo of device {number} was closed", file=sys.stderr)
                    poll.unregister(ready)
                    sockets.pop(ready)[1].close()
                    continue
                if ready in sent:  # not the rest of one that came in pieces
                    os.write(output, b"%f %d %f\n" % (now, number, now - sent.pop(ready)))


class Sampler:
    """Running totals of each device, in both directions."""

    def __init__(self, job: Job) -> None:
        inet, clients = job["inet"], job["clients"]
        self._devices = job["devices"]
        self._owner = {device["address"]: device["number"] for device in self._devices}
        self._queues = counters.Queues(inet)
        self._inet = counters.Connections(inet)
        self._datagrams = counters.NamedCounters(inet)
        self._clients = counters.Connections(clients)
        self._seen: dict[bytes, counters.Connection] = {}
        self._upload = dict.fromkeys(self._owner.values(), 0)

    def download(self) -> dict[int, int]:
        """Bytes on the wire so far, by device: those that left the router's port towards it."""
        sent = self._queues.read()
        return {device["number"]: sent[device["router_port"]] for device in self._devices}

    def upload(self) -> dict[int, int]:
        """Bytes on the wire so far, by device: those that got past the node's limiter.

        What the node's sockets have acknowledged: payload plus the headers of each segment.
        Datagrams are counted where they reach their target; their overhead on the way to the
        node is added.
        """
        for now in self._clients.read():
            number = self._owner.get(now.local)
            if number is None:
                continue
            before = self._seen.get(now.cookie)
            self._seen[now.cookie] = now
            header = ETHERNET + (IPV6 if ":" in now.local else IPV4) + TCP_WITH_TIMESTAMPS
            self._upload[number] += now.bytes_acked + now.segments_out * header
            if before:
                self._upload[number] -= before.bytes_acked + before.segments_out * header
        upload = dict(self._upload)
        datagrams = self._datagrams.read()
        for device in self._devices:
            if device["udp_outside"]:
                packets, size = datagrams[device["router_port"]]
                inside = size - packets * (IPV4 + UDP)
                address = IPV6 if ":" in device["address"] else IPV4
                outside = ETHERNET + address + UDP + SHADOWSOCKS_UDP
                upload[device["number"]] += inside + packets * outside
        return upload

    def sockets(self) -> dict[bytes, tuple[int, int, int]]:
        """The devices' sockets to the node: cookie -> device, bytes received, bytes sent."""
        return {
            c.cookie: (self._owner[c.local], c.bytes_received, c.bytes_acked)
            for c in self._clients.read()
            if c.local in self._owner
        }

    def payload(self, direction: str) -> dict[int, int]:
        """Payload that the receiving applications have got over TCP, by device."""
        by_port = {device["target_port"]: device["number"] for device in self._devices}
        received = dict.fromkeys(by_port.values(), 0)
        for c in (self._clients if direction == "download" else self._inet).read():
            port = c.peer_port if direction == "download" else c.local_port
            if port in by_port:
                received[by_port[port]] += c.bytes_received
        return received


def failures(folder: Path) -> list[str]:
    """iperf3 clients that ended although they should still run, with their last words."""
    found = []
    for log in sorted(folder.glob("client-*.log")):
        words = log.read_text().strip().splitlines()
        if any("error" in line for line in words):
            found.append(f"{log.stem}: {words[-1]}")
    return found


def await_servers(ports: set[int], namespace: str) -> None:
    """Wait until all of them listen: what comes before is refused."""

    def look() -> None:
        deadline = time.monotonic() + _LISTEN_S
        while missing := ports - listening():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody listens on {sorted(missing)}")
            time.sleep(0.05)
        os._exit(0)

    pid = spawn(look, namespace)
    _pid, status = os.waitpid(pid, 0)
    children.remove(pid)
    if status:
        raise SystemExit("traffic: not all servers listen")


def observe(job: Job) -> dict[str, Any]:
    """Run the job: idle round trips, start the load, warm up, sample, stop."""
    folder = Path(job["folder"])
    inet, clients, target = job["inet"], job["clients"], job["target"]
    spawn(lambda: echo_server(target, job["echo_port"]), inet)
    for device in job["devices"]:
        if device["iperf"]:
            arguments = ["-s", "-1", "-p", str(device["target_port"])]
            spawn(iperf(arguments, folder / f"server-{device['number']}.log"), inet)
    ports = {device["target_port"] for device in job["devices"] if device["iperf"]}
    await_servers({*ports, job["echo_port"]}, inet)
    echoes = os.open(folder / "echo.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    spawn(lambda: echo_clients(job, echoes), clients)
    sampler = Sampler(job)
    time.sleep(job["idle_s"])

    load_at = time.monotonic()
    for device in job["devices"]:
        if device["iperf"]:
            log = folder / f"client-{device['number']}.log"
            spawn(iperf(device["iperf"], log), clients)
    time.sleep(job["warmup_s"])
    began = time.monotonic()
    samples, tick = [], began
    direction = job["direction"]
    wire = sampler.download if direction == "download" else sampler.upload
    sockets, payload = [sampler.sockets()], [(time.monotonic(), sampler.payload(direction))]
    while True:
        samples.append((time.monotonic(), wire()))
        tick += job["interval_s"]
        if tick > began + job["seconds"] + 1e-6 or (folder / "enough").exists():
            break
        time.sleep(max(0.0, tick - time.monotonic()))
    payload.append((time.monotonic(), sampler.payload(direction)))
    sockets.append(sampler.sockets())
    errors = failures(folder)
    stop()
    flows = [
        (after[0], after[1] - before[1], after[2] - before[2])
        for cookie, after in sockets[1].items()
        if (before := sockets[0].get(cookie, (0, 0, 0)))
    ]
    return {
        "clock": time.time() - time.monotonic(),
        "load_at": load_at,
        "samples": samples,
        "payload": payload,
        "flows": flows,
        "echoes": [line.split() for line in (folder / "echo.log").read_text().splitlines()],
        "errors": errors,
    }


def stop(*_: object) -> None:
    """Kill everything that we started."""
    for pid in reversed(children):  # the users of a server before the server
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        os.waitpid(pid, 0)
    children.clear()


def main() -> None:
    job = json.load(sys.stdin)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    try:
        json.dump(observe(job), sys.stdout)
    finally:
        stop()


if __name__ == "__main__":
    main()
