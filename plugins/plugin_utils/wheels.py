# SPDX-License-Identifier: MIT
"""The wheels that travel with the role: the agent's own and those that requirements.txt pins.

They are in the tarball that `make build` makes. A copy that came from git has none: they are built
once, on the controller, when the role first needs them. The same sources give the same bytes, so
that a node whose agent did not change sees no change, whoever built them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Below the role's files: names and SHA-256 of the wheels, and of what they were made from.
SUMS, SOURCES = "SHA256SUMS", "SOURCES"
#: 1980-01-01, the first day that a wheel can tell of.
EPOCH = "315532800"


class WheelsError(Exception):
    """The wheels cannot be had; the message says why and what to do."""


def wheel_dir(root: Path) -> Path:
    """Where the wheels of a copy of the collection are."""
    return root / "roles" / "qos" / "files" / "wheels"


def source_files(root: Path) -> list[Path]:
    """What the wheels are made from."""
    agent = root / "agent"
    source = agent / "src"
    code = sorted([*source.rglob("*.py"), *(source / "vff_qos" / "web" / "static").glob("*")])
    return [agent / "pyproject.toml", root / "roles" / "qos" / "files" / "requirements.txt", *code]


def digest_of_sources(root: Path) -> str:
    """One number for all of `source_files`; where the copy lies does not matter."""
    total = hashlib.sha256()
    for path in source_files(root):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{content}  {path.relative_to(root).as_posix()}\n".encode())
    return total.hexdigest()


def wheels(root: Path) -> dict[str, str]:
    """SHA-256 by name of the wheels that belong to the sources; empty if there are none."""
    found = wheel_dir(root)
    try:
        if (found / SOURCES).read_text().strip() != digest_of_sources(root):
            return {}
        lines = (found / SUMS).read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {name: digest for digest, name in (line.split() for line in lines)}


def ensure(root: Path = ROOT) -> tuple[dict[str, str], bool]:
    """(SHA-256 by name, whether they had to be built).  Raises WheelsError.

    Several processes may ask at once: Ansible works on many hosts at a time.
    """
    found = wheels(root)
    if found:
        return found, False
    parent = wheel_dir(root).parent
    lock = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = wheels(root)
        if found:
            return found, False
        _build(root)
        return wheels(root), True
    finally:
        os.close(lock)


def _build(root: Path) -> None:
    target = wheel_dir(root)
    if not os.access(target.parent, os.W_OK):
        raise _cannot(root, f"{target.parent} cannot be written by this user")
    with tempfile.TemporaryDirectory(prefix=".wheels-", dir=target.parent) as work_dir:
        work = Path(work_dir)
        new = work / "wheels"
        new.mkdir()
        _copy_sources(root, work / "agent")
        pip = [*_pip(root), "--disable-pip-version-check"]
        wheel = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(new), str(work / "agent")]
        _run(root, [*pip, *wheel], {"SOURCE_DATE_EPOCH": EPOCH})
        requirements = str(root / "roles" / "qos" / "files" / "requirements.txt")
        pinned = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(new)]
        _run(root, [*pip, "download", "--quiet", *pinned, "--requirement", requirements], {})
        sums = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
            for path in sorted(new.glob("*.whl"))
        ]
        (new / SUMS).write_text("".join(sums))
        (new / SOURCES).write_text(digest_of_sources(root) + "\n")
        for path in new.iterdir():
            path.chmod(0o644)
        new.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        new.rename(target)


def _copy_sources(root: Path, target: Path) -> None:
    """Only files of the package, links as what they lead to, with modes of their own."""
    for path in source_files(root):
        if (root / "agent") in path.parents:
            copy = target / path.relative_to(root / "agent")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
            copy.chmod(0o644)


def _pip(root: Path) -> list[str]:
    """The command of a pip: Ansible's own Python may have none."""
    for python in (sys.executable, shutil.which("python3"), shutil.which("python")):
        if python:
            command = [python, "-m", "pip"]
            done = subprocess.run([*command, "--version"], capture_output=True, check=False)
            if done.returncode == 0:
                return command
    raise _cannot(root, f"neither {sys.executable} nor python3 has pip")


def _run(root: Path, command: list[str], environment: Mapping[str, str]) -> None:
    own = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=own, check=False)
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()]
        raise _cannot(root, f"pip: {said[-1] if said else f'ended with {done.returncode}'}")


def _cannot(root: Path, why: str) -> WheelsError:
    return WheelsError(
        f"This copy of vff.qos has no wheels of the agent ({wheel_dir(root)}), as it came from "
        f"git, and they could not be built on this machine: {why}. That needs pip and internet; "
        "without internet, install the tarball that `make build` makes where there is one, or copy "
        "that directory from there"
    )


if __name__ == "__main__":
    try:
        names, built = ensure()
    except WheelsError as error:
        sys.exit(str(error))
    print(f"wheels: {len(names)} in {wheel_dir(ROOT)}{'' if built else ' (no change)'}")
