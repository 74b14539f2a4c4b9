"""Finds running engines, reads their own configuration and asks them, for `core.health`."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import select
import shlex
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

from ..config import Paths, read_secret
from ..core.health import xray
from ..core.health.singbox_stream import Answer
from ..core.settings import Settings
from ..core.source_settings import sources_of
from ..errors import ConfigError
from ..sources.runtimes import inside
from ..sources.singbox import SECRET_BYTES, SingboxSource

#: Names of the engine's process: comm of proc(5).
_ENGINES = ("xray", "rw-core")
_MAX_CONFIG_BYTES = 32 << 20
#: sing-box tells of its connections at once.
_PATIENCE_S = 3.0


def read_engines(settings: Settings) -> list[xray.Engine]:
    """All engines that run on this host, also in containers, with what their files say, and
    whether they reach the webhook's socket."""
    engines = [_read_engine(pid) for pid in _engine_pids()]
    listens = [source.options["listen"] for source in sources_of(settings.sources, "webhook")]
    paths = [listen.removeprefix("unix:") for listen in listens if listen.startswith("unix:")]
    return [
        replace(
            engine,
            reaches={p: reach for p in paths if (reach := try_socket(engine.pid, p)) is not None},
        )
        for engine in engines
    ]


def ask_singboxes(settings: Settings, paths: Paths) -> list[Answer]:
    """What each sing-box that is a source answers, when it is asked as the agent asks.

    Nothing in doctor's own unit, which has no network: what the agent waits for is in its report.
    """
    if not _has_network():
        return []
    return [
        _ask_singbox(source.options["address"], source.options["secret_file"], paths)
        for source in sources_of(settings.sources, "singbox")
    ]


def _has_network() -> bool:
    """Whether we may speak IP at all: RestrictAddressFamilies= of systemd.exec(5)."""
    try:
        socket.socket(socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return False
        raise
    return True


def _ask_singbox(address: str, secret_file: str, paths: Paths) -> Answer:
    try:
        read_secret(secret_file, paths, *SECRET_BYTES)
    except ConfigError as error:
        return Answer(address, secret_problem=str(error))
    asked, until = SingboxSource(address, secret_file), time.monotonic() + _PATIENCE_S
    try:
        while not asked.waiting and not asked.has_answered and time.monotonic() < until:
            select.select(asked.descriptors(), [], [], 0.2)
            asked.read()
        if asked.waiting or asked.has_answered:
            return Answer(address, asked.counters.lines, trouble=asked.waiting)
        return Answer(address, trouble=f"{address} has said nothing for {_PATIENCE_S:.0f} s")
    finally:
        asked.close()


def try_socket(pid: int, path: str) -> xray.Reach | None:
    """Connect to a socket as a process would: with its root, its user and its groups.

    What mode bits, directories and mounts say together only the kernel knows.  None if we are not
    root, or the process has just ended.
    """
    if os.geteuid() != 0:
        return None
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    uid, gid = int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1])
    others = [int(number) for number in fields["Groups"].split()]
    try:
        mounts = [os.readlink(f"/proc/{who}/ns/mnt") for who in (pid, "self")]
        error = _connect_as(root, uid, gid, others, path)
    except FileNotFoundError:  # it has just ended
        return None
    finally:
        os.close(root)
    group = ""
    with contextlib.suppress(OSError):  # there is none: the error has said so
        group = _group(os.stat(path).st_gid)
    groups = tuple(dict.fromkeys(map(_group, [gid, *others])))
    return xray.Reach(error, _user(uid), groups, group, mounts[0] != mounts[1])


def _connect_as(root: int, uid: int, gid: int, groups: list[int], path: str) -> int:
    """The errno of the attempt, made by a child that becomes the other one."""
    child = os.fork()
    if child == 0:
        code = errno.EIO
        try:
            os.fchdir(root)
            os.chroot(".")
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX) as attempt:
                attempt.settimeout(2.0)
                attempt.connect(path)
            code = 0
        except OSError as problem:
            code = problem.errno or errno.ETIMEDOUT
        finally:
            os._exit(code)
    _pid, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _engine_pids() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/comm", encoding="utf-8", errors="replace") as file:
                    if file.read().strip() in _ENGINES:
                        found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
    return sorted(found)


def _read_engine(pid: int) -> xray.Engine:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = [os.fsdecode(word) for word in file.read().split(b"\0") if word]
        names = list(_config_files(pid, words[1:]))
    except OSError as error:
        return xray.Engine(pid, (), f"cannot be looked at: {os.strerror(error.errno or 0)}")
    if not names:
        return xray.Engine(pid, (), f"no configuration file is named by '{shlex.join(words)}'")
    configs = []
    for name in names:
        try:
            with open(inside(f"/proc/{pid}/root", name), encoding="utf-8") as file:
                configs.append((name, xray.parse_config(file.read(_MAX_CONFIG_BYTES))))
        except OSError as error:
            problem = f"{name} cannot be read: {os.strerror(error.errno or 0)}"
            return xray.Engine(pid, tuple(names), problem)
        except ValueError as error:
            return xray.Engine(pid, tuple(names), f"{name} is no JSON that we read: {error}")
    return xray.read_engine(pid, configs)


def _config_files(pid: int, words: list[str]) -> Iterator[str]:
    """Paths in the process' own root of the files that its command line names."""
    base = os.readlink(f"/proc/{pid}/cwd")
    named = False
    rest = iter(words)
    for word in rest:
        option, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or option not in ("c", "config", "confdir"):
            continue
        value = value if equals else next(rest, "")
        named = True
        path = os.path.join(base, value)
        if option == "confdir":
            directory = inside(f"/proc/{pid}/root", path)
            names = sorted(os.listdir(directory))
            yield from (os.path.join(path, n) for n in names if n.endswith((".json", ".jsonc")))
        elif ":" not in value:  # stdin: and URLs
            yield path
    if not named:
        yield os.path.join(base, "config.json")
