"""Whether the engine reaches the webhook's socket, asked of the kernel in the engine's place."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vff_qos.commands.engines import try_socket
from vff_qos.core.health.xray import Reach

from .harness import eventually

# They look at the processes of the machine.
pytestmark = pytest.mark.xdist_group("processes")

#: nobody and nogroup of Debian; a group that nobody is in.
UID, GID, OTHER = 65_534, 65_534, 4_711


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A socket in a directory that everybody may enter, as /run is."""
    directory = Path("/run") / f"vff-qos-test-{os.getpid()}"
    directory.mkdir(0o755)
    yield directory / "x.sock"
    shutil.rmtree(directory)


@contextmanager
def listening(path: Path, group: int = 0, mode: int = 0o660) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        os.chown(path, 0, group)
        path.chmod(mode)
        listener.listen()
        yield listener


@contextmanager
def engine(*before: str) -> Iterator[int]:
    """A process that does nothing, started by ``before``; its pid."""
    child = subprocess.Popen([*before, "sleep", "60"])
    try:
        eventually(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n")
        yield child.pid
    finally:
        child.kill()
        child.wait()


def as_user(uid: int, *groups: int) -> list[str]:
    more = ["--groups", ",".join(map(str, groups[1:]))] if groups[1:] else ["--clear-groups"]
    return ["setpriv", "--reuid", str(uid), "--regid", str(groups[0]), *more]


def tried(pid: int, path: Path) -> Reach:
    found = try_socket(pid, str(path))
    assert found is not None
    return found


def test_root_and_members_of_the_group_reach_it_and_nobody_else(place: Path) -> None:
    with listening(place, OTHER) as listener:
        for words, error in (
            ([], 0),
            (as_user(UID, OTHER), 0),
            (as_user(UID, GID, OTHER), 0),
            (as_user(UID, GID), errno.EACCES),
        ):
            with engine(*words) as pid:
                assert tried(pid, place).error == error, words
            if not error:
                listener.accept()[0].close()
        with engine(*as_user(UID, GID, 4_712)) as pid:
            found = tried(pid, place)
        assert (found.error, found.group, found.own_mounts) == (errno.EACCES, str(OTHER), False)
        assert found.user == "nobody" and found.groups == ("nogroup", "4712")
    # Ours are as before: only the child became somebody else.
    assert os.geteuid() == 0


def test_directories_count_too(place: Path) -> None:
    with listening(place, GID):
        place.parent.chmod(0o700)
        with engine(*as_user(UID, GID)) as pid:
            assert tried(pid, place).error == errno.EACCES


def test_who_has_other_mounts_may_not_see_it(place: Path) -> None:
    with listening(place, 0, 0o666):
        hide = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs x {place.parent} && exec "$@"', "sh"]
        with engine(*hide) as pid:
            found = tried(pid, place)
    assert (found.error, found.group, found.own_mounts) == (errno.ENOENT, "root", True)


def test_a_socket_without_anybody_behind_it_refuses(place: Path) -> None:
    with listening(place):
        pass
    with engine() as pid:
        assert tried(pid, place).error == errno.ECONNREFUSED
        place.unlink()
        found = tried(pid, place)
    assert (found.error, found.group) == (errno.ENOENT, "")


def test_of_a_process_that_has_ended_nothing_is_said(place: Path) -> None:
    with engine() as pid:
        pass
    assert try_socket(pid, str(place)) is None
