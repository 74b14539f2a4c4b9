"""Finds running engines and reads their own configuration, for `core.health.xray`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from ..core.health import xray
from ..sources.runtimes import inside

#: Names of the engine's process: comm of proc(5).
_ENGINES = ("xray", "rw-core")
_MAX_CONFIG_BYTES = 32 << 20


def read_engines() -> list[xray.Engine]:
    """All engines that run on this host, also in containers, with what their files say."""
    return [_read_engine(pid) for pid in _engine_pids()]


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
