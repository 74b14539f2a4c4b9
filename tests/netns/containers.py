"""Containers for the tests: real processes with their own mounts, root and cgroup.

The books of Docker (20.10 to 28) and Podman (4 and 5) are written as they write them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from vff_qos.sources.container import Books, ContainerSource

from .harness import cgroup_mount

#: Names a cgroup of this machine, which other runs of these tests share.
ID = os.urandom(32).hex()
LOG = "/var/log/xray/access.log"

#: A process with a root of its own on a tmpfs; its commands come line by line.
_PROGRAM = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
root, keep = sys.argv[1], sys.argv[2]
assert libc.unshare(0x00020000) == 0
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0
if not keep:
    assert libc.mount(b"tmpfs", root.encode(), b"tmpfs", 0, None) == 0
os.chroot(root)
os.chdir("/")
os.umask(0o077)
os.makedirs("/var/log/xray", exist_ok=True)
for line in sys.stdin:
    command, path, text = line.rstrip("\\n").split("|")
    if command == "write":
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a") as file:
            file.write(text + "\\n")
    elif command == "link":
        os.symlink(text, path)
    elif command == "rename":
        os.rename(path, text)
    print("done", flush=True)
"""


class Container:
    """A container's first process, in a cgroup that bears the container's id."""

    def __init__(self, directory: Path, container_id: str = ID, keep: bool = False) -> None:
        root = directory / "root"
        root.mkdir(exist_ok=True)
        self.cgroup = cgroup_mount() / f"docker-{container_id}.scope"
        self.cgroup.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(root), "keep" if keep else ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        (self.cgroup / "cgroup.procs").write_text(str(self.pid))
        self.command("nothing", "", "")

    def command(self, command: str, path: str, text: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}|{path}|{text}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def log(self, *numbers: int, path: str = LOG) -> None:
        """Write lines as the engine does; a container's clock often runs in UTC."""
        stamp = time.strftime("%Y/%m/%d %H:%M:%S", time.gmtime())
        for number in numbers:
            line = f"{stamp}.100000 from 192.0.2.5:{number} accepted tcp:a:1 [i >> o] email: a"
            self.command("write", path, line)

    def kill(self, how: int = signal.SIGKILL) -> None:
        if self.process.returncode is None:
            self.process.send_signal(how)
            self.process.communicate(timeout=10)
        # A cgroup is busy for a moment after its last process.
        for _ in range(100):
            try:
                self.cgroup.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.01)


class Host:
    """A node with the books of both runtimes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.books = Books(
            docker=str(directory / "docker"),
            docker_config=str(directory / "daemon.json"),
            snap_docker=str(directory / "snap"),
            snap_docker_config=str(directory / "snap.json"),
            podman=str(directory / "storage"),
            podman_run=str(directory / "run"),
        )
        self.containers: list[Container] = []

    def start(self, container_id: str = ID, keep: bool = False) -> Container:
        container = Container(self.directory, container_id, keep)
        self.containers.append(container)
        return container

    def docker(self, pid: int, name: str = "xray", container_id: str = ID) -> None:
        """What dockerd writes when a container has been started or has stopped."""
        path = Path(self.books.docker) / "containers" / container_id / "config.v2.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {"Running": pid != 0, "Paused": False, "Pid": pid, "ExitCode": 0}
        config = {"State": state, "ID": container_id, "Name": f"/{name}", "Driver": "overlay2"}
        path.with_suffix(".new").write_text(json.dumps(config, separators=(",", ":")))
        path.with_suffix(".new").rename(path)

    def podman(self, pid: int, name: str = "xray", container_id: str = ID) -> None:
        """What Podman and conmon write."""
        books = Path(self.books.podman) / "overlay-containers"
        books.mkdir(parents=True, exist_ok=True)
        entry = {"id": container_id, "names": [name], "image": "x", "layer": "y"}
        (books / "containers.json").write_text(json.dumps([{"id": "0", "names": None}, entry]))
        pidfile = (
            Path(self.books.podman_run) / "overlay-containers" / container_id / "userdata/pidfile"
        )
        pidfile.parent.mkdir(parents=True, exist_ok=True)
        pidfile.write_text(str(pid))

    def source(self, checkpoint: object = None) -> ContainerSource:
        return ContainerSource("xray", LOG, checkpoint, books=self.books)


def ports(source: ContainerSource) -> list[int]:
    """Source ports of what there is now, as the follower's loop would get them."""
    ports, empty = [], 0
    while empty < 3:
        claims = source.read()
        ports += [int(claim.source.rpartition(b":")[2]) for claim in claims]
        empty = 0 if claims else empty + 1
    return ports


def wakes(source: ContainerSource, within_s: float = 2.0) -> bool:
    poll = select.poll()
    for descriptor in source.descriptors():
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(within_s * 1000))
