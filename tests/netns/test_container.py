"""The log inside a container: real processes with their own mounts, root and cgroup.

Docker and Podman are not installed where these tests run; their books are written as they write
them (Docker 20.10 to 28, Podman 4 and 5), everything else is the kernel's.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vff_qos.core.claims.singbox_log import SingboxScanner
from vff_qos.errors import SourceError
from vff_qos.sources.container import Books, ContainerSource, Found, find_container

from .containers import ID, LOG, Host, ports, wakes

# They look at the processes of the machine.
pytestmark = pytest.mark.xdist_group("processes")


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_a_log_that_only_the_container_sees_is_followed(host: Host, runtime: str) -> None:
    container = host.start()
    getattr(host, runtime)(container.pid)
    container.log(1)
    assert not (host.directory / "root/var/log").exists()
    source = host.source()
    assert source.replaying
    assert ports(source) == [1]
    assert not source.replaying
    container.log(2)
    assert wakes(source)
    assert ports(source) == [2]
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
    assert ports(source) == [1]
    first.log(2, 3)
    first.kill()
    # dockerd has not written anything yet: the book still names the dead process.
    assert wakes(source)
    assert ports(source) == [2, 3]
    assert "does not run; waiting" in (source.tick() or "")
    assert source.tick() is None
    host.docker(0)
    assert source.tick() is None
    second = host.start()
    second.log(4)
    host.docker(second.pid)
    assert source.tick() is None
    assert source.replaying
    assert ports(source) == [4]
    second.log(5)
    assert wakes(source)
    assert ports(source) == [5]
    source.tick()
    assert source.counters.claims == 5
    source.close()


def test_ten_kills_leak_no_descriptor_and_lose_no_line(host: Host) -> None:
    host.docker(0)
    source = host.source()
    source.tick()
    gc.collect()  # what earlier tests left
    before = len(os.listdir("/proc/self/fd"))
    for number in range(10):
        container = host.start()
        container.log(number + 1)
        host.docker(container.pid)
        source.tick()
        container.log(number + 101)
        container.kill()
        assert ports(source) == [number + 1, number + 101]
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
    assert ports(source) == []
    host.docker(os.getpid())
    assert source.tick() is None
    host.docker(2**22 - 1)
    assert source.tick() is None
    ours = host.start()
    ours.log(2)
    host.docker(ours.pid)
    source.tick()
    assert ports(source) == [2]
    source.close()


def test_a_container_that_was_made_anew_under_its_name_is_followed(host: Host) -> None:
    old = host.start()
    old.log(1)
    host.docker(old.pid)
    source = host.source()
    assert ports(source) == [1]
    new_id = os.urandom(32).hex()
    old.kill()
    host.docker(0, name="xray_old")
    new = host.start(new_id)
    host.docker(new.pid, container_id=new_id)
    new.log(2)
    ports(source)
    source.tick()
    assert ports(source) == [2]
    source.close()


def test_the_agents_restart_goes_on_where_it_was(host: Host) -> None:
    container = host.start()
    host.docker(container.pid)
    container.log(1)
    source = host.source()
    assert ports(source) == [1]
    saved = json.loads(json.dumps(source.checkpoint()))
    source.close()
    container.log(2)
    container.command("rename", LOG, LOG + ".1")
    container.log(3)
    again = host.source(saved)
    assert ports(again) == [2, 3]
    again.close()


def test_a_log_that_survives_the_restart_is_not_read_twice(host: Host) -> None:
    first = host.start(keep=True)
    host.docker(first.pid)
    first.log(1)
    source = host.source()
    assert ports(source) == [1]
    first.kill()
    assert ports(source) == []
    second = host.start(keep=True)
    second.log(2)
    host.docker(second.pid)
    source.tick()
    assert ports(source) == [2]
    source.close()


def test_absolute_links_are_those_of_the_container(host: Host) -> None:
    container = host.start()
    host.docker(container.pid)
    container.command("link", "/var/log/xray/access.log", "/data/../data/./real.log")
    container.log(1, path="/data/real.log")
    source = host.source()
    assert ports(source) == [1]
    source.close()


def test_a_link_that_is_made_later_is_seen(host: Host) -> None:
    container = host.start()
    host.docker(container.pid)
    source = host.source()
    assert "there is no" in (source.tick() or "")
    container.log(1, path="/data/real.log")
    container.command("link", LOG, "../../../../../data/real.log")
    source.tick()
    assert ports(source) == [1]
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


def test_sing_boxs_log_inside_a_container(host: Host) -> None:
    container = host.start()
    host.docker(container.pid)
    source = ContainerSource("xray", LOG, books=host.books, scanner=SingboxScanner)
    assert '"log": {"level": "info", "timestamp": true, "output": "' in (source.tick() or "")
    head = "+0000 2026-11-26 14:04:05 INFO [7 0ms] inbound/vless[in]:"
    container.command("write", LOG, f"{head} inbound connection from 192.0.2.5:7")
    assert ports(source) == []
    container.command("write", LOG, f"{head} [alice] inbound connection to a.example:443")
    assert ports(source) == [7]
    source.close()
