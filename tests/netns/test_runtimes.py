"""Containers whose runtime keeps its books elsewhere: found through running processes.

The processes are real, with the names and command lines of containerd's shim, of dockerd and of
conmon; what they point to is written as Docker 20.10 to 28 and Podman 4 and 5 write it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.errors import SourceError
from vff_qos.sources.container import ContainerSource
from vff_qos.sources.runtimes import Books, Finder, Found, bears_id, find_container

from .containers import ID, LOG, Host, ports

# They look at the processes of the machine.
pytestmark = pytest.mark.xdist_group("processes")

OTHER = "0123456789abcdef" * 4
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")


class Parents:
    """Processes that look like those of a runtime: bash under another name, which waits."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: list[subprocess.Popen[str]] = []

    def start(
        self, command: str, *words: str, cwd: Path | None = None, wrap: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        """Run ``command`` with an argument vector that ends with ``words``."""
        path = self.directory / command
        if not path.exists():
            path.symlink_to("/bin/bash")
        made = subprocess.Popen(
            [*wrap, str(path), "-s", "--", *words],
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(made)
        assert self.tell(made, "echo ready") == "ready"
        return made

    @staticmethod
    def tell(process: subprocess.Popen[str], command: str) -> str:
        """The first line that a shell command prints in there."""
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(command + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    def conmon(
        self,
        pidfile: Path | str,
        name: str = "xray",
        container_id: str = ID,
        more: tuple[str, ...] = (),
        wrap: tuple[str, ...] = (),
    ) -> subprocess.Popen[str]:
        """As Podman starts it (libpod/oci_conmon_common.go)."""
        return self.start(
            "conmon", "--api-version", "1", "-c", container_id, "-u", container_id,
            "-r", "/usr/bin/crun", "-b", f"/x/{container_id}/userdata", "-p", str(pidfile),
            "-n", name, "--exit-dir", "/run/libpod/exits", *more, wrap=wrap,
        )  # fmt: skip

    def shim(self, bundle: Path, container_id: str = ID) -> subprocess.Popen[str]:
        """As containerd starts it for Docker: in the container's bundle."""
        return self.start(
            "containerd-shim-runc-v2", "-namespace", "moby", "-id", container_id,
            "-address", "/run/containerd/containerd.sock", cwd=bundle,
        )  # fmt: skip

    def stop(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture
def parents(tmp_path: Path) -> Iterator[Parents]:
    made = Parents(tmp_path)
    yield made
    made.stop()


def _moved(host: Host, name: str = "elsewhere") -> Host:
    """A host whose Docker writes where nobody looks."""
    moved = Host(host.directory)
    moved.books = Books(**{**vars(host.books), "docker": str(host.directory / name)})
    return moved


def _bundle(host: Host, root: str, container_id: str = ID) -> Path:
    """The OCI bundle of a container whose books are below ``root``."""
    bundle = host.directory / f"bundle-{container_id[:8]}"
    bundle.mkdir()
    mounts = [{"destination": "/proc", "type": "proc", "source": "proc"}]
    for name in ("resolv.conf", "hostname", "hosts"):
        source = f"{root}/containers/{container_id}/{name}"
        mounts.append({"destination": f"/etc/{name}", "type": "bind", "source": source})
    (bundle / "config.json").write_text(json.dumps({"ociVersion": "1.2.0", "mounts": mounts}))
    return bundle


def _source(host: Host) -> ContainerSource:
    return ContainerSource("xray", LOG, books=host.books)


def test_a_shim_leads_to_dockers_books_wherever_they_are(host: Host, parents: Parents) -> None:
    moved = _moved(host)
    container, other = host.start(), Host(host.directory)
    other.books = moved.books
    other.docker(4, name="other", container_id=OTHER)
    moved.docker(container.pid)
    container.log(1)
    assert find_container("xray", host.books) is None
    parents.shim(_bundle(host, "/nowhere", OTHER), OTHER)
    assert find_container("xray", host.books) is None
    parents.shim(_bundle(host, moved.books.docker))
    source = _source(host)
    assert ports(source) == [1]
    container.log(2)
    assert ports(source) == [2]
    assert source.tick() is None
    source.close()


@pytest.mark.parametrize("form", ["--data-root={}", "--data-root {}", "-g {}", "--graph={}"])
def test_dockerds_command_line_leads_to_its_books(host: Host, parents: Parents, form: str) -> None:
    moved = _moved(host)
    moved.docker(0)
    words = form.format(moved.books.docker).split()
    parents.start("dockerd", "-H", "fd://", "--containerd=/run/containerd/containerd.sock", *words)
    assert find_container("xray", host.books) == Found(ID, 0)
    assert "does not run" in (_source(host).tick() or "")


@pytest.mark.parametrize("key", ["data-root", "graph"])
def test_a_configuration_file_elsewhere_is_read(host: Host, parents: Parents, key: str) -> None:
    moved = _moved(host)
    moved.docker(5)
    config = host.directory / "other.json"
    config.write_text(json.dumps({key: moved.books.docker, "log-level": "error"}))
    parents.start("dockerd", f"--config-file={config}")
    assert find_container("xray", host.books) == Found(ID, 5)


def test_conmon_says_it_all(host: Host, parents: Parents) -> None:
    container = host.start()
    container.log(1)
    pidfile = host.directory / "run/anywhere/userdata/pidfile"
    pidfile.parent.mkdir(parents=True)
    pidfile.write_text(f"{container.pid}\n")
    (host.directory / "exec.pid").write_text(str(os.getpid()))
    # Another container, a command in ours, and one that has not got a process yet.
    parents.conmon(host.directory / "exec.pid", name="xray2", container_id=OTHER)
    parents.conmon(host.directory / "exec.pid", more=("-e", "--exec-attach"))
    parents.conmon(host.directory / "none.pid", container_id=OTHER)
    assert find_container("xray", host.books) == Found(OTHER, 0)
    parents.conmon(pidfile)
    assert find_container("xray", host.books) == Found(ID, container.pid)
    source = _source(host)
    assert ports(source) == [1]
    source.close()


@pytest.mark.parametrize("book", ["containers.json", "volatile-containers.json"])
def test_podman_has_two_books_of_its_storage(host: Host, book: str) -> None:
    host.podman(7)
    directory = Path(host.books.podman) / "overlay-containers"
    (directory / "containers.json").rename(directory / "kept")
    (directory / "containers.json").write_text("[]")
    (directory / "kept").rename(directory / book)
    assert find_container("xray", host.books) == Found(ID, 7)


def test_who_runs_comes_before_who_does_not(host: Host) -> None:
    host.docker(0)
    host.podman(8, container_id=OTHER)
    assert find_container("xray", host.books) == Found(OTHER, 8)


def test_the_books_of_a_user_are_read_through_the_users_own_mounts(
    host: Host, parents: Parents
) -> None:
    container = host.start()
    container.log(1)
    place = host.directory / "home"
    place.mkdir()
    script = f"mount -t tmpfs none {place} && echo {container.pid} >{place}/pidfile && exec "
    wrap = ("unshare", "-m", "--propagation", "private", "sh", "-c",
            script + 'setpriv --reuid 65534 --regid 65534 --clear-groups "$@"', "sh")  # fmt: skip
    for path in (host.directory, *host.directory.parents[:-2]):
        path.chmod(0o755)
    parents.conmon(place / "pidfile", wrap=wrap)
    assert not (place / "pidfile").exists()
    source = _source(host)
    assert ports(source) == [1]
    source.close()


def test_a_user_cannot_take_the_place_of_roots_container(host: Host, parents: Parents) -> None:
    for path in (host.directory, *host.directory.parents[:-2]):
        path.chmod(0o755)
    forged = host.start(OTHER)
    (host.directory / "forged").write_text(str(forged.pid))
    parents.conmon(host.directory / "forged", container_id=OTHER, wrap=NOBODY)
    assert find_container("xray", host.books) == Found(OTHER, forged.pid)
    # Known, though it does not run at the moment.
    host.docker(0)
    assert find_container("xray", host.books) == Found(ID, 0)
    (Path(host.books.docker) / "containers" / ID / "config.v2.json").unlink()
    true = host.start()
    (host.directory / "true").write_text(str(true.pid))
    parents.conmon(host.directory / "true")
    assert find_container("xray", host.books) == Found(ID, true.pid)


def test_what_a_process_points_to_can_make_nobody_wait(host: Host, parents: Parents) -> None:
    pipe, circle = host.directory / "pipe", host.directory / "circle"
    os.mkfifo(pipe)
    circle.symlink_to(circle)
    bundle = host.directory / "bundle"
    bundle.mkdir()
    os.mkfifo(bundle / "config.json")
    for path in (pipe, circle, "relative"):
        parents.conmon(path)
    parents.conmon(host.directory / "x", container_id="../..")
    parents.shim(bundle)
    parents.start("dockerd", "--config-file", str(pipe))
    parents.start("dockerd", "--data-root", str(circle))
    parents.start("dockerd", "--data-root")
    assert find_container("xray", host.books) == Found(ID, 0)
    # What is not readable ends the search only where it is root's.
    (host.directory / "circle2").symlink_to("circle2")
    with pytest.raises(SourceError, match="circle2/containers: Too many levels"):
        find_container("xray", Books(docker=str(host.directory / "circle2")))


def test_without_cgroups_the_parent_says_whose_process_it_is(parents: Parents) -> None:
    conmon = parents.conmon("/none")
    child = int(parents.tell(conmon, "sleep 600 & echo $!"))
    try:
        assert bears_id(child, ID)
        assert not bears_id(child, OTHER)
        assert not bears_id(os.getpid(), ID)
        assert not bears_id(2**22 - 1, ID)
    finally:
        os.kill(child, 9)


def test_a_look_at_all_processes_is_rare(host: Host, parents: Parents) -> None:
    finder = Finder("xray", host.books)
    assert finder.look() is None
    parents.conmon("/none")
    assert finder.look() is None  # not again within the second
    finder._next_walk = 0.0
    assert finder.look() == Found(ID, 0)


@pytest.mark.parametrize("config", [None, "/var/elsewhere"])
def test_snaps_docker_is_known(config: str | None) -> None:
    root = config or "/var/snap/docker/common/var-lib-docker"
    program = (
        "import json, os, sys\n"
        "from vff_qos.sources.runtimes import Books, find_container\n"
        f"book = {root!r} + '/containers/' + {ID!r}\n"
        "os.makedirs(book)\n"
        "with open(book + '/config.v2.json', 'w') as file:\n"
        "    json.dump({'Name': '/xray', 'State': {'Running': True, 'Pid': 77}}, file)\n"
        "os.makedirs('/var/snap/docker/current/config')\n"
        "with open('/var/snap/docker/current/config/daemon.json', 'w') as file:\n"
        f"    json.dump({{'log-level': 'error', 'data-root': {config!r}}}, file)\n"
        "print(find_container('xray', Books()))\n"
    )
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c",
         'mount -t tmpfs none /var && exec "$@"', "sh", sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout == f"{Found(ID, 77)}\n", done.stderr
