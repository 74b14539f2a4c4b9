"""The agent's tests with the Python, nftables and iproute2 of other releases of Debian.

    python tests/releases.py [SUITE ...]

Each release has a tree of its own, from its packages (kept in the lab's cache), and is entered in
namespaces of its own: of this machine it has the kernel and the checkout, which it cannot write to.
Root only. What needs a lab node or the network is left out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lab.image import cache_dir
from lab.progress import step

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("trixie", "testing")
PACKAGES = (
    "python3 python3-yaml python3-nftables python3-systemd python3-pytest python3-pytest-timeout "
    "python3-hypothesis python3-jsonschema iproute2 nftables conntrack kmod procps util-linux "
    "systemd-journal-remote ufw firewalld dbus"
)
TESTS = (
    "tests/unit/core tests/unit/kernel tests/unit/metrics tests/unit/sources tests/unit/test_*.py"
)
NETNS = "bootstrap coexistence early firewalls heal networkd static_maps statics upgrade"
#: Arguments: the tree, the checkout, the wheels that the agent needs, the tests.
ENTER = """
set -eu
tree=$1
mount --make-rprivate /
mount -t proc proc $tree/proc
mount -t sysfs -o ro sys $tree/sys
for name in tmp run dev; do mount -t tmpfs $name $tree/$name; done
mkdir -p $tree/dev/shm $tree/src $tree/run/etc $tree/run/dbus
# What firewalls write there is gone with the namespace.
cp -a $tree/etc/. $tree/run/etc
mount --bind $tree/run/etc $tree/etc
mount -t tmpfs shm $tree/dev/shm
for name in null zero full random urandom; do
    touch $tree/dev/$name
    mount --bind /dev/$name $tree/dev/$name
done
mount --bind "$2" $tree/src
mount -o remount,bind,ro $tree/src
exec chroot $tree sh -euc '
ip link set lo up
cd /src
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=agent/src:tests:$1
python3 --version; nft --version; ip -V
exec python3 -W ignore -m pytest -p no:cacheprovider -o addopts= -o markers=xdist_group -q $2
' sh "$3" "$4"
"""


def tree_of(suite: str) -> Path:
    """The tree of a release, made if the cache has none."""
    digest = hashlib.sha256(f"{suite} {PACKAGES}".encode()).hexdigest()[:12]
    tree = cache_dir().parent / "releases" / f"{suite}-{digest}"
    if not tree.is_dir():
        tree.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="making-", dir=tree.parent))
        try:
            with step(f"a tree of Debian {suite} from packages"):
                # A mirror may keep the list of testing for longer than that says it is valid.
                subprocess.run(
                    ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"]
                    + ["--aptopt=Acquire::Check-Valid-Until false"]
                    + [f"--include={PACKAGES.replace(' ', ',')}", suite, str(work / "tree")],
                    check=True,
                )
            (work / "tree").rename(tree)
        finally:
            shutil.rmtree(work)
    return tree


def run(suite: str) -> int:
    """Exit code of the tests there."""
    wheels = sorted(ROOT.glob("roles/qos/files/wheels/*.whl"))
    path = ":".join(f"/src/{w.relative_to(ROOT)}" for w in wheels if "vff_qos" not in w.name)
    tests = " ".join([TESTS, *(f"tests/netns/test_{name}.py" for name in NETNS.split())])
    spaces = ["unshare", "--mount", "--net", "--fork", "--kill-child"]
    enter = ["sh", "-c", ENTER, "sh", str(tree_of(suite)), str(ROOT), path, tests]
    return subprocess.run([*spaces, *enter]).returncode


def main(suites: tuple[str, ...]) -> int:
    """All of them; 1 if tests have failed on one."""
    if os.geteuid() != 0:
        print("releases: needs root for namespaces and trees", file=sys.stderr)
        return 2
    codes = [run(suite) for suite in suites]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:]) or SUITES))
