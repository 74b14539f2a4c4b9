"""Software that is on no fresh node: packages and what they need, for a node without internet."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .image import cache_dir
from .node import Node
from .progress import LabError, step
from .recipe import NODE_PACKAGES

#: Runs in mmdebstrap, where the node's packages are installed: what is fetched is what they lack.
_FETCH = """
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
apt-get -qq --yes --no-install-recommends --download-only \
    -o APT::Keep-Downloaded-Packages=true install {packages}
mv "$1"/var/cache/apt/archives/*.deb "{folder}/"
"""


def fetch(suite: str, packages: Sequence[str]) -> Path:
    """A folder with the packages and what they need beyond a node's; it is cached."""
    digest = hashlib.sha256(" ".join((suite, *packages)).encode()).hexdigest()[:12]
    path = cache_dir() / f"packages-{suite}-{digest}"
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="fetching-", dir=path.parent))
        try:
            with step(f"fetching {', '.join(packages)} for {suite}"):
                hook = _FETCH.format(packages=" ".join(packages), folder=work)
                done = subprocess.run(
                    ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=null"]
                    + [f"--include={','.join(NODE_PACKAGES)}", f"--customize-hook={hook}"]
                    + [suite, "/dev/null"],
                    text=True,
                    capture_output=True,
                )
                if done.returncode:
                    raise LabError(f"mmdebstrap: {done.stderr[-500:]}")
            work.rename(path)
        finally:
            if work.exists():
                shutil.rmtree(work)
    return path


def install(node: Node, packages: Sequence[str]) -> None:
    """Install them on a node, without starting anything."""
    node.put(fetch(node.suite, packages), "/opt/extras")
    done = node.run(
        "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d"
        " && DEBIAN_FRONTEND=noninteractive dpkg -i -E /opt/extras/*.deb; code=$?; "
        "rm /usr/sbin/policy-rc.d; exit $code",
        check=False,
    )
    if done.returncode:
        raise LabError(f"dpkg: {done.stdout[-2000:]}{done.stderr[-2000:]}")
