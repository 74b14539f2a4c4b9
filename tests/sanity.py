"""`ansible-test sanity` on the collection as it is shipped: `make test-sanity`.

ansible-test wants a real path that ends in ansible_collections/vff/qos and a git repository, so the
built tarball is unpacked there.  The agent is left out: it is a program of its own, and held to
ruff and strict mypy by `make lint`.  Of the network it needs a package index for pip, no more.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from checkout import ROOT

SANITY = ROOT / "build" / "sanity"
TREE = SANITY / "ansible_collections" / "vff" / "qos"
HOME = SANITY / "home"
#: What ansible-test would fetch from a server of its own.
GET_PIP = "import ensurepip\n\nensurepip.bootstrap()\n"
#: Modules are MIT, as all else here; Ansible's own must be GPL.
IGNORED = "{path} validate-modules:missing-gplv3-license\n"


def unpack() -> None:
    """The tarball of `make build` as a repository."""
    if SANITY.exists():
        shutil.rmtree(SANITY)
    TREE.mkdir(parents=True)
    (tarball,) = (ROOT / "build").glob("vff-qos-*.tar.gz")
    subprocess.run(["tar", "-C", str(TREE), "-xzf", str(tarball)], check=True)
    shutil.rmtree(TREE / "agent")
    (TREE / ".gitignore").write_text("tests/output/\n")
    ignored = TREE / "tests" / "sanity" / f"ignore-{release()}.txt"
    ignored.parent.mkdir(parents=True)
    modules = sorted((TREE / "plugins" / "modules").glob("*.py"))
    ignored.write_text("".join(IGNORED.format(path=m.relative_to(TREE)) for m in modules))
    for command in ("init -q", "add -A", "-c user.name=x -c user.email=x commit -qm x"):
        subprocess.run(["git", *command.split()], cwd=TREE, check=True)


def release() -> str:
    """The installed release of ansible-core, such as 2.19."""
    from ansible.release import __version__

    return ".".join(__version__.split(".")[:2])


def place_pip() -> None:
    """Put a pip where ansible-test looks before it asks a server."""
    library = Path(sysconfig.get_paths()["purelib"]) / "ansible_test" / "_internal"
    text = (library / "python_requirements.py").read_text()
    cache = HOME / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True)
    for version in set(re.findall(r"'(\d+\.\d+(?:\.\d+)?)'", text)):
        (cache / f"get_pip_{version.replace('.', '_')}.py").write_text(GET_PIP)


def main() -> int:
    unpack()
    place_pip()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = ["ansible-test", "sanity", "--venv", "--python", python, *sys.argv[1:]]
    return subprocess.run(command, cwd=TREE, env={**os.environ, "HOME": str(HOME)}).returncode


if __name__ == "__main__":
    sys.exit(main())
