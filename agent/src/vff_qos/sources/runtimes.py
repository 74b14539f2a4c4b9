"""Which process is the container of a name: what Docker and Podman have written down, and where.

First their books at the places where packages put them.  They may as well be anywhere else (snap,
``--data-root``, a user's home, another ``graphroot``), but each running container has a parent that
stays with it, and that one's command line leads to the book wherever it is:

- ``containerd-shim… -id ID`` (Docker) works in the container's bundle, whose ``config.json`` names
  files beside Docker's book of the container;
- ``conmon -c ID -n NAME -p PIDFILE`` (Podman) says everything itself.

A user of the node may run something with these names, too, and have us read what it likes to show.
So root's containers come first, also one that does not run at the moment, and nothing is read that
could make us wait.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import SourceError

_MAX_LINKS = 40
#: A look at all processes takes this share of the time at most.
_WALK_SHARE, _WALK_GAP_S = 0.02, 1.0
#: A container's book and bundle are some ten KiB; Podman has one book for all.
_MAX_BYTES = 4 << 20
_ID = re.compile(r"[0-9a-f]{12,64}")
#: What Docker binds into a container lies in the directory of its book.
_BOUND = re.compile(r"(/[^\0]+/containers)/[0-9a-f]{64}/(?:hostname|hosts|resolv\.conf)")
#: Of the command name Linux keeps 15 bytes.
_PARENTS = ("dockerd", "containerd-shim", "conmon")


@dataclass(frozen=True)
class Books:
    """Where packages put the runtimes' books.

    ``docker``: unless ``docker_config`` says otherwise; ``snap_docker`` and its configuration
    likewise.
    """

    docker: str = "/var/lib/docker"
    docker_config: str = "/etc/docker/daemon.json"
    snap_docker: str = "/var/snap/docker/common/var-lib-docker"
    snap_docker_config: str = "/var/snap/docker/current/config/daemon.json"
    podman: str = "/var/lib/containers/storage"
    podman_run: str = "/run/containers/storage"


@dataclass(frozen=True)
class Found:
    """A container of the wanted name; ``pid`` is 0 while it does not run."""

    container_id: str
    pid: int


class _Parent(NamedTuple):
    """A process that belongs to a runtime."""

    pid: int
    uid: int
    command: str
    args: list[str]

    def option(self, *names: str) -> str:
        """The value of an option that is one word or two; empty if it is not there."""
        for position, word in enumerate(self.args):
            for name in names:
                if word == name:
                    return self.args[position + 1] if position + 1 < len(self.args) else ""
                if word.startswith(f"{name}="):
                    return word[len(name) + 1 :]
        return ""

    def path(self, path: str) -> str:
        """A name under which we reach what the process calls ``path``."""
        return inside(f"/proc/{self.pid}/root", path)


class Finder:
    """Looks for the container called ``name``, again and again."""

    def __init__(self, name: str, books: Books) -> None:
        self.name, self._books = name, books
        self._next_walk = 0.0
        self._walked: Found | None = None

    def look(self) -> Found | None:
        """The container; None if nobody knows it.  Raises SourceError if books are unreadable."""
        try:
            written = self._written()
            if written is not None and written.pid:
                return written
            if time.monotonic() >= self._next_walk:
                self._walked = self._walk(only_root=written is not None)
            return _best([self._walked, written])
        except PermissionError as error:
            within = str(error.filename).startswith("/proc/")
            raise SourceError(
                f"{error.filename}: cannot be read by uid {os.geteuid()}; to find a container the "
                f"agent needs CAP_{'SYS_PTRACE' if within else 'DAC_READ_SEARCH'}"
            ) from error
        except OSError as error:
            raise SourceError(f"{error.filename}: {os.strerror(error.errno or 0)}") from error

    def where(self) -> str:
        """Where was looked, for people."""
        roots = ", ".join([*self._docker_roots(), self._books.podman])
        return f"{roots} and where running {', '.join(_PARENTS[:2])} and {_PARENTS[2]} keep theirs"

    def _docker_roots(self) -> Iterator[str]:
        books = self._books
        for root, config in (
            (books.docker, books.docker_config),
            (books.snap_docker, books.snap_docker_config),
        ):
            yield _data_root(config) or root

    def _written(self) -> Found | None:
        """What stands at the usual places; who runs comes before who does not."""
        found = [_docker(os.path.join(root, "containers"), self.name)
                 for root in self._docker_roots()]  # fmt: skip
        found.append(_podman(self._books, self.name))
        return _best(found)

    def _walk(self, only_root: bool) -> Found | None:
        """What the parents of running containers lead to."""
        begin = time.monotonic()
        found: Found | None = None
        directories: set[str] = set()
        for parent in sorted(_parents(), key=lambda parent: (parent.uid != 0, parent.pid)):
            if only_root and parent.uid:
                break
            try:
                if parent.command == "conmon":
                    candidate = _of_conmon(parent, self.name)
                else:
                    directory = _docker_directory(parent)
                    if not directory or directory in directories:
                        continue
                    directories.add(directory)
                    candidate = _docker(directory, self.name)
            except OSError as error:
                # What a process points to may answer anything; of root's own it is a capability
                # of ours that is missing.
                if isinstance(error, PermissionError) and not parent.uid:
                    raise
                continue
            found = _best([found, candidate])
            if found is not None and found.pid:
                break
        end = time.monotonic()
        self._next_walk = end + max(_WALK_GAP_S, (end - begin) / _WALK_SHARE)
        return found


def find_container(name: str, books: Books) -> Found | None:
    """One look for a container, see `Finder`."""
    return Finder(name, books).look()


def _best(found: list[Found | None]) -> Found | None:
    known = [one for one in found if one is not None]
    return next((one for one in known if one.pid), known[0] if known else None)


# -- Docker -------------------------------------------------------------------------------------


def _data_root(config_path: str) -> str:
    config = _load(config_path)
    root = config.get("data-root") or config.get("graph") if isinstance(config, dict) else ""
    return root if isinstance(root, str) else ""


def _docker(directory: str, name: str) -> Found | None:
    """The container in Docker's books in ``directory``."""
    quoted = json.dumps("/" + name).encode()
    found = None
    for entry in _listdir(directory):
        data = _read(os.path.join(directory, entry, "config.v2.json"))
        # Most of these files are of other containers, and long.
        if quoted not in data:
            continue
        container = _parse(data)
        if not isinstance(container, dict) or container.get("Name") != "/" + name:
            continue
        state = container.get("State")
        pid = state.get("Pid") if isinstance(state, dict) else 0
        found = Found(entry, pid if isinstance(pid, int) else 0)
        if found.pid:
            break
    return found


def _docker_directory(parent: _Parent) -> str:
    """The directory of Docker's books that a daemon or a shim leads to; empty if none."""
    if parent.command == "dockerd":
        root = parent.option("--data-root", "-g", "--graph")
        config = parent.option("--config-file")
        if not root and config:
            root = _data_root(parent.path(config))
        return parent.path(os.path.join(root, "containers")) if root.startswith("/") else ""
    bundle = _load(f"/proc/{parent.pid}/cwd/config.json")
    mounts = bundle.get("mounts") if isinstance(bundle, dict) else None
    for mount in mounts if isinstance(mounts, list) else []:
        source = mount.get("source") if isinstance(mount, dict) else None
        found = _BOUND.fullmatch(source) if isinstance(source, str) else None
        if found is not None:
            return parent.path(found[1])
    return ""


# -- Podman -------------------------------------------------------------------------------------


def _podman(books: Books, name: str) -> Found | None:
    """The container in the books of Podman's storage, which every kind of its database has."""
    found: list[Found | None] = []
    for kind in _listdir(books.podman):
        # overlay-containers, vfs-containers, ...: named after the storage driver
        if not kind.endswith("-containers"):
            continue
        # Containers of `podman run --rm`, as in Quadlet's units, are in the second one.
        for book in ("containers.json", "volatile-containers.json"):
            containers = _load(os.path.join(books.podman, kind, book))
            for container in containers if isinstance(containers, list) else []:
                if isinstance(container, dict) and name in (container.get("names") or []):
                    key = str(container.get("id"))
                    run = os.path.join(books.podman_run, kind, key, "userdata", "pidfile")
                    found.append(Found(key, _pid(_read(run))))
    return _best(found)


def _of_conmon(parent: _Parent, name: str) -> Found | None:
    """The container that a conmon keeps, if it is the wanted one; not what runs in it by exec."""
    key, pidfile = parent.option("-c", "--cid"), parent.option("-p", "--container-pidfile")
    if (
        parent.option("-n", "--name") != name
        or not _ID.fullmatch(key)
        or not pidfile.startswith("/")
        or {"-e", "--exec"} & set(parent.args)
    ):
        return None
    return Found(key, _pid(_read(parent.path(pidfile))))


# -- processes and files ------------------------------------------------------------------------


def _parents() -> Iterator[_Parent]:
    """All processes that belong to a runtime; those that end meanwhile are left out."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        command = _read(f"/proc/{entry}/comm").strip().decode("ascii", "replace")
        if command not in _PARENTS:
            continue
        words = _read(f"/proc/{entry}/cmdline").decode("utf-8", "surrogateescape").split("\0")
        # The owner of the directory would be root for any process that hides its memory.
        uid = re.search(rb"^Uid:\t(\d+)\t", _read(f"/proc/{entry}/status"), re.MULTILINE)
        if uid is not None:
            yield _Parent(int(entry), int(uid[1]), command, words[:-1])


def inside(root: str, path: str) -> str:
    """A name under which we reach what stands at ``path`` below ``root``.

    The kernel would follow absolute links from our own root.  Raises OSError (ELOOP) for links in
    a circle.
    """
    todo, done, links = path.split("/")[::-1], [root], 0
    while todo:
        part = todo.pop()
        if part == "..":
            del done[max(1, len(done) - 1) :]
        elif part not in ("", "."):
            link = _readlink("/".join([*done, part]))
            if link is None:
                done.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if link.startswith("/"):
                del done[1:]
            todo += link.split("/")[::-1]
    return "/".join(done)


def _readlink(path: str) -> str | None:
    """Where a symbolic link points; None if there is none (what there is, its reader sees)."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def bears_id(pid: int, container_id: str) -> bool:
    """Whether a process is of a container: by its cgroup, or where cgroups are not used (rootless)
    by its parent's command line."""
    wanted = container_id.encode()
    if wanted in _read(f"/proc/{pid}/cgroup"):
        return True
    # proc(5): "pid (comm) state ppid"; the name may hold anything.
    words = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return len(words) > 1 and wanted in _read(f"/proc/{int(words[1])}/cmdline").split(b"\0")


def _pid(data: bytes) -> int:
    return int(data) if data.strip().isdigit() else 0


def _listdir(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: str) -> bytes:
    """The bytes of a file; empty if there is none (containers and processes come and go)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return b""
            return file.read(_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return b""


def _parse(data: bytes) -> Any:
    """JSON; None if it is none (yet)."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def _load(path: str) -> Any:
    return _parse(_read(path))
