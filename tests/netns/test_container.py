"""The log inside a container: real processes with their own mounts, root and cgroup.

Docker and Podman are not installed where these tests run; their books are written as they write
them (Docker 20.10 to 28, Podman 4 and 5), everything else is the kernel's.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.errors import SourceError
from vff_qos.sources.container import Books, ContainerSource, Found, find_container

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


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    for container in made.containers:
        container.kill()


def _ports(source: ContainerSource) -> list[int]:
    """Source ports of what there is now, as the follower's loop would get them."""
    ports, empty = [], 0
    while empty < 3:
        claims = source.read()
        ports += [int(claim.source.rpartition(b":")[2]) for claim in claims]
        empty = 0 if claims else empty + 1
    return ports


def _wakes(source: ContainerSource, within_s: float = 2.0) -> bool:
    poll = select.poll()
    for descriptor in source.descriptors():
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_a_log_that_only_the_container_sees_is_followed(host: Host, runtime: str) -> None:
    container = host.start()
    getattr(host, runtime)(container.pid)
    container.log(1)
    assert not (host.directory / "root/var/log").exists()
    source = host.source()
    assert source.replaying
    assert _ports(source) == [1]
    assert not source.replaying
    container.log(2)
    assert _wakes(source)
    assert _ports(source) == [2]
    assert source.tick() is None
    assert source.counters.claims == 2
    source.close()


def test_a_restart_loses_no_line_on_either_side(host: Host) -> None:
    first = host.start()
    host.docker(first.pid)
    source = host.source()
    assert "there is no /var/log/xray/access.log inside" in (source.tick() or "")
    assert source.tick() is None
    first.log(1)
    assert _ports(source) == [1]
    first.log(2, 3)
    first.kill()
    # dockerd has not written anything yet: the book still names the dead process.
    assert _wakes(source)
    assert _ports(source) == [2, 3]
    assert "does not run; waiting" in (source.tick() or "")
    assert source.tick() is None
    host.docker(0)
    assert source.tick() is None
    second = host.start()
    second.log(4)
    host.docker(second.pid)
    assert source.tick() is None
    assert source.replaying
    assert _ports(source) == [4]
    second.log(5)
    assert _wakes(source)
    assert _ports(source) == [5]
    source.tick()
    assert source.counters.claims == 5
    source.close()


def test_ten_kills_leak_no_descriptor_and_lose_no_line(host: Host) -> None:
    host.docker(0)
    source = host.source()
    source.tick()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(10):
        container = host.start()
        container.log(number + 1)
        host.docker(container.pid)
        source.tick()
        container.log(number + 101)
        container.kill()
        assert _ports(source) == [number + 1, number + 101]
        host.containers.clear()
        del container
    assert len(os.listdir("/proc/self/fd")) == before
    source.close()


def test_a_pid_that_went_to_another_process_is_not_followed(host: Host) -> None:
    stranger = host.start(os.urandom(32).hex())
    stranger.log(1)
    host.docker(stranger.pid)
    source = host.source()
    assert "does not run" in (source.tick() or "")
    assert _ports(source) == []
    host.docker(os.getpid())
    assert source.tick() is None
    host.docker(2**22 - 1)
    assert source.tick() is None
    ours = host.start()
    ours.log(2)
    host.docker(ours.pid)
    source.tick()
    assert _ports(source) == [2]
    source.close()


def test_a_container_that_was_made_anew_under_its_name_is_followed(host: Host) -> None:
    old = host.start()
    old.log(1)
    host.docker(old.pid)
    source = host.source()
    assert _ports(source) == [1]
    new_id = os.urandom(32).hex()
    old.kill()
    host.docker(0, name="xray_old")
    new = host.start(new_id)
    host.docker(new.pid, container_id=new_id)
    new.log(2)
    _ports(source)
    source.tick()
    assert _ports(source) == [2]
    source.close()


def test_the_agents_restart_goes_on_where_it_was(host: Host) -> None:
    container = host.start()
    host.docker(container.pid)
    container.log(1)
    source = host.source()
    assert _ports(source) == [1]
    saved = json.loads(json.dumps(source.checkpoint()))
    source.close()
    container.log(2)
    container.command("rename", LOG, LOG + ".1")
    container.log(3)
    again = host.source(saved)
    assert _ports(again) == [2, 3]
    again.close()


def test_a_log_that_survives_the_restart_is_not_read_twice(host: Host) -> None:
    first = host.start(keep=True)
    host.docker(first.pid)
    first.log(1)
    source = host.source()
    assert _ports(source) == [1]
    first.kill()
    assert _ports(source) == []
    second = host.start(keep=True)
    second.log(2)
    host.docker(second.pid)
    source.tick()
    assert _ports(source) == [2]
    source.close()


def test_absolute_links_are_those_of_the_container(host: Host) -> None:
    container = host.start()
    host.docker(container.pid)
    container.command("link", "/var/log/xray/access.log", "/data/../data/./real.log")
    container.log(1, path="/data/real.log")
    source = host.source()
    assert _ports(source) == [1]
    source.close()


def test_a_link_that_is_made_later_is_seen(host: Host) -> None:
    container = host.start()
    host.docker(container.pid)
    source = host.source()
    assert "there is no" in (source.tick() or "")
    container.log(1, path="/data/real.log")
    container.command("link", LOG, "../../../../../data/real.log")
    source.tick()
    assert _ports(source) == [1]
    source.close()


def test_links_in_a_circle_are_told(host: Host) -> None:
    container = host.start()
    host.docker(container.pid)
    container.command("link", LOG, LOG)
    with pytest.raises(SourceError, match="links in a circle"):
        host.source()


def test_what_is_no_file_is_told_by_its_name_in_the_container(host: Host) -> None:
    container = host.start()
    host.docker(container.pid)
    container.log(1, path=LOG + "/file")
    with pytest.raises(SourceError) as caught:
        host.source()
    assert str(caught.value) == f"container xray: {LOG}: is not a regular file"


def test_an_unknown_container_is_waited_for(host: Host) -> None:
    source = host.source()
    books = host.books
    assert source.tick() == (
        f"container xray: neither Docker nor Podman knows it (looked in {books.docker}, "
        f"{books.snap_docker}, {books.podman} and where running dockerd, containerd-shim and "
        "conmon keep theirs); waiting for it"
    )
    assert source.tick() is None
    assert source.replaying
    assert source.read() == []
    assert not source.replaying
    assert source.checkpoint() is None
    source.close()


def test_docker_may_keep_its_data_elsewhere(host: Host) -> None:
    moved = Books(**{**vars(host.books), "docker": "/nowhere"})
    host.docker(5)
    assert find_container("xray", moved) is None
    Path(moved.docker_config).write_text(json.dumps({"data-root": host.books.docker}))
    assert find_container("xray", moved) == Found(ID, 5)
    host.docker(6, name="xray2", container_id="1" * 64)
    assert find_container("xray", host.books) == Found(ID, 5)
    (Path(host.books.docker) / "containers" / ID / "config.v2.json").write_text('{"Name":"/xray"')
    assert find_container("xray", host.books) is None


def test_without_the_rights_it_says_which_are_missing(host: Host) -> None:
    container = host.start()
    host.docker(container.pid)
    program = (
        "import sys\n"
        "from vff_qos.sources.container import Books, ContainerSource\n"
        "from vff_qos.errors import SourceError\n"
        f"try: ContainerSource('xray', {LOG!r}, books={host.books!r})\n"
        "except SourceError as error: print(error)\n"
    )

    def as_nobody() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)

    def told() -> str:
        return subprocess.run(
            [sys.executable, "-c", program],
            preexec_fn=as_nobody,
            cwd="/",
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    for path in (host.directory, *host.directory.parents[:-2]):
        path.chmod(0o755)
    assert "needs CAP_SYS_PTRACE" in told()
    (Path(host.books.docker) / "containers").chmod(0o700)
    assert "needs CAP_DAC_READ_SEARCH" in told()


def test_the_two_capabilities_suffice(host: Host) -> None:
    container = host.start()
    host.docker(container.pid)
    (Path(host.books.docker) / "containers").chmod(0o700)
    container.log(7)
    program = (
        "from vff_qos.sources.container import Books, ContainerSource\n"
        f"source = ContainerSource('xray', {LOG!r}, books={host.books!r})\n"
        "print([claim.source.decode() for claim in source.read()])\n"
    )
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs",
         "--inh-caps", "-all,+sys_ptrace,+dac_read_search",
         "--ambient-caps", "-all,+sys_ptrace,+dac_read_search",
         "--bounding-set", "-all,+sys_ptrace,+dac_read_search",
         sys.executable, "-c", program],
        cwd="/",
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout == "['192.0.2.5:7']\n", done.stderr
