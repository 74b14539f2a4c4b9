"""The canary: a short flow of our own that proves that limits hold on this very kernel.

It lives in network namespaces of its own, a node's and a client's, with everything that bootstrap
makes; the host's devices, tables and connections are not touched, and when these processes end
the kernel removes all of it.  ``python -m vff_qos.commands.canary`` with settings as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import sys
import time
from dataclasses import replace
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from ..core.flow import Flow
from ..core.htb import CEIL_MINOR, FIRST_USER_MINOR, classid, usable_minor, user_class
from ..core.settings import Settings
from ..errors import QosError
from ..kernel.packed.conntrack import Conntrack, prepare
from ..kernel.packed.tc import ClassKey, Tc, add_class
from ..state import State
from .bootstrap import reconcile

_CLONE_NEWNET = 0x40000000
_WAN, _PEER = "canary0", "canary1"
_NODE, _CLIENT, _PORT = "10.255.255.1", "10.255.255.2", 443
#: Each direction runs for so long, the first part of which does not count, in seconds.
_RUN_S, _WARM_UP_S = 2.5, 0.5
_WAIT_S = 10.0
_SMALL_BUFFER = 1 << 16
#: Begins a line that tells of an error.
_FAILED = "!"


def run(settings: Settings, limit_bps: int) -> dict[str, Any]:
    """Rates of (upload, download) that came through a class with this limit, in bit/s.

    Raises QosError, OSError.  The process is in another network namespace afterwards.
    """
    _unshare()
    ours, theirs = socket.socketpair()
    client = os.fork()
    if client == 0:
        ours.close()
        _be_client(theirs)
    theirs.close()
    ours.settimeout(_WAIT_S)
    _receive(ours)  # it is in its own namespace
    with IPRoute() as ipr:
        ipr.link("set", index=1, state="up")
        ipr.link("add", ifname=_WAN, kind="veth", peer={"ifname": _PEER, "net_ns_pid": client})
        wan = ipr.link_lookup(ifname=_WAN)[0]
        ipr.addr("add", index=wan, address=_NODE, prefixlen=24)
        ipr.link("set", index=wan, state="up")
    reconcile(settings, State.forgetful())
    minor = next(m for m in range(FIRST_USER_MINOR, 1 << 16) if usable_minor(settings.major, m))
    tc, params = Tc(), user_class(limit_bps)
    for name in (settings.ifb, _WAN):
        key = ClassKey(socket.if_nametoindex(name), settings.major, minor)
        tc.apply(add_class(key, CEIL_MINOR, params, settings.leaf))
    with socket.create_server((_NODE, _PORT)) as server:
        server.settimeout(_WAIT_S)
        ours.sendall(b"go\n")
        connection, (address, port) = server.accept()
    flow = Flow(6, socket.inet_aton(address), port, socket.inet_aton(_NODE), _PORT)
    conntrack = Conntrack()
    if conntrack.set_marks([prepare(flow, classid(settings.major, minor))]):
        raise QosError("the kernel does not track the canary's connection")
    connection.settimeout(_WAIT_S)
    ours.sendall(b"go\n")
    upload = _count(connection, ours)
    _send(connection, ours)
    return {"upload_bps": upload, "download_bps": int(_receive(ours))}


def _be_client(parent: socket.socket) -> None:
    """The other end, a process of its own; never returns."""
    parent.settimeout(_WAIT_S)
    try:
        _unshare()
        parent.sendall(b"here\n")
        _receive(parent)
        with IPRoute() as ipr:
            peer = ipr.link_lookup(ifname=_PEER)[0]
            ipr.addr("add", index=peer, address=_CLIENT, prefixlen=24)
            ipr.link("set", index=peer, state="up")
        with socket.socket() as sock:
            # What waits in a large buffer would still come when the other direction begins.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALL_BUFFER)
            sock.settimeout(_WAIT_S)
            sock.connect((_NODE, _PORT))
            _receive(parent)
            _send(sock, parent)
            parent.sendall(b"%d\n" % _count(sock, parent))
            # Not gone before the other end has stopped.
            parent.recv(1)
    except (OSError, QosError, NetlinkError, IndexError) as error:
        parent.sendall(f"{_FAILED}{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(0)


def _send(sock: socket.socket, control: socket.socket) -> None:
    """Send for a while, then say so."""
    block, end = bytes(1 << 14), time.monotonic() + _RUN_S
    while time.monotonic() < end:
        sock.send(block)
    control.sendall(b"sent\n")


def _count(sock: socket.socket, control: socket.socket) -> int:
    """The rate of what comes until the other end says that it has sent all, in bit/s."""
    count, begin, end = 0, 0.0, 0.0
    while True:
        ready, _, _ = select.select([sock, control], [], [], _WAIT_S)
        if sock in ready:
            size = len(sock.recv(1 << 16))
            now = time.monotonic()
            begin = begin or now + _WARM_UP_S
            if now > begin:
                count, end = count + size, now
        if control in ready or not ready:
            _receive(control)
            return round(count * 8 / (end - begin)) if end > begin else 0


def _receive(sock: socket.socket) -> str:
    """A line of the other process; QosError if it has ended."""
    line = b""
    while not line.endswith(b"\n"):
        part = sock.recv(1)
        if not part:
            raise QosError("the canary's client has ended")
        line += part
    text = line.decode().strip()
    if text.startswith(_FAILED):
        raise QosError(f"the client failed: {text.removeprefix(_FAILED)}")
    return text


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "a network namespace of its own")


def main() -> None:
    """Print what came through, or why nothing could be tried."""
    given = json.loads(sys.argv[1])
    settings = replace(
        Settings(), wan=_WAN, ifb="vffqoscan0", major=given["major"], leaf=given["leaf"],
        service_ports=((_PORT, _PORT),), flood_guard=False,
    )  # fmt: skip
    try:
        found = run(settings, given["limit_bps"])
    except (QosError, OSError) as error:
        # The steps that were not taken either are none of the reader's.
        found = {"problem": str(error).partition(" (done: ")[0]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
