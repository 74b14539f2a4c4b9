"""Releases of ansible-core, each in a virtual environment of its own below .cache/."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "ansible-core"

#: The oldest release that meta/runtime.yml allows, and those after it with the interpreters that
#: they can do with (lowest, highest).
RELEASES = {
    "2.16": ((3, 10), (3, 12)),
    "2.17": ((3, 10), (3, 12)),
    "2.18": ((3, 11), (3, 13)),
    "2.19": ((3, 11), (3, 13)),
    "2.20": ((3, 12), (3, 14)),
    "2.21": ((3, 12), (3, 14)),
}
OLDEST = next(iter(RELEASES))


@cache
def interpreters() -> dict[tuple[int, int], str]:
    """Interpreters of this machine that start, by version; the distribution's before others."""
    names = [f"python3.{minor}" for minor in range(8, 15)]
    candidates = ["/usr/bin/python3", *(shutil.which(name) or "" for name in names)]
    root = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    candidates += sorted(glob.glob(f"{root}/versions/3.*/bin/python3"))
    found: dict[tuple[int, int], str] = {}
    code = "import ensurepip, json, sys, venv; print(json.dumps(sys.version_info[:2]))"
    for python in filter(None, candidates):
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if done.returncode == 0:
            major, minor = json.loads(done.stdout)
            found.setdefault((major, minor), python)
    return found


def oldest_target(release: str) -> str:
    """The oldest interpreter of this machine on which a release runs modules (3.8 is our floor)."""
    floor = (3, 8) if release < "2.20" else (3, 9)
    return min((v, python) for v, python in interpreters().items() if v >= floor)[1]


def bin_of(release: str) -> Path | None:
    """Directory with the commands of a release, made when it is first asked for; None if this
    machine has no Python that it can do with.  Needs the network the first time."""
    low, high = RELEASES[release]
    for version, python in interpreters().items():
        if low <= version <= high:
            return _made(release, version, python)
    return None


def _made(release: str, version: tuple[int, int], python: str) -> Path:
    directory = CACHE / f"{release}-python{version[0]}.{version[1]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    # Tests of several processes ask for it.
    with open(CACHE / f"{directory.name}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "whole").exists():
            shutil.rmtree(directory, ignore_errors=True)
            subprocess.run([python, "-m", "venv", directory], check=True)
            pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            words = ["--disable-pip-version-check", f"ansible-core=={release}.*"]
            subprocess.run([*pip, *words], check=True)
            (directory / "whole").touch()
    return directory / "bin"
