"""The cached node image: built once for each recipe and suite, then only read."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import recipe
from .progress import LabError, say


@dataclass(frozen=True)
class Image:
    """A finished image folder; nothing in it is ever written again."""

    path: Path
    suite: str

    @property
    def disk(self) -> Path:
        return self.path / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd"

    @property
    def key(self) -> Path:
        """The private SSH key of root on the node."""
        return self.path / "key"

    @property
    def host_key(self) -> str:
        """The node's public host key: type and base64."""
        return " ".join((self.path / "host_key.pub").read_text().split()[:2])


def cache_dir() -> Path:
    """Where images live: $VFF_QOS_CACHE/lab or ~/.cache/vff-qos/lab."""
    base = os.environ.get("VFF_QOS_CACHE")
    return (Path(base) if base else Path.home() / ".cache" / "vff-qos") / "lab"


def image_path(suite: str) -> Path:
    """The folder that the image of this recipe and suite has, built or not."""
    if suite not in recipe.SUITES:
        raise LabError(f"unknown suite {suite!r}: allowed are {', '.join(recipe.SUITES)}")
    digest = hashlib.sha256(suite.encode())
    for source in (Path(recipe.__file__), *recipe.ENGINES):
        digest.update(source.read_bytes())
    return cache_dir() / f"{suite}-{digest.hexdigest()[:12]}"


def ensure(suite: str = "bookworm") -> Image:
    """Return the image, building it first if the cache has none. Needs root to build."""
    path = image_path(suite)
    if not path.is_dir():
        if os.geteuid() != 0:
            raise LabError("building the image needs root (mmdebstrap, depmod, chroot)")
        with _cache_lock():
            if not path.is_dir():  # another process may have built it while we waited
                _build(path, suite)
    return Image(path, suite)


def prune() -> list[Path]:
    """Delete every image that no current recipe leads to; return what was deleted."""
    keep = {image_path(suite) for suite in recipe.SUITES}
    deleted = []
    with _cache_lock():
        for entry in sorted(cache_dir().iterdir()):
            if entry.is_dir() and entry not in keep:
                shutil.rmtree(entry)
                deleted.append(entry)
    return deleted


def _build(path: Path, suite: str) -> None:
    for stale in path.parent.glob("building-*"):  # we hold the lock: nobody is building
        shutil.rmtree(stale)
    work = Path(tempfile.mkdtemp(prefix="building-", dir=path.parent))
    try:
        recipe.build(work, suite)
        work.rename(path)
    finally:
        if work.exists():
            shutil.rmtree(work)
    used = sum(f.stat().st_blocks * 512 for f in path.iterdir()) / 2**20
    say(f"image {path} is ready ({used:.0f} MiB)")


@contextmanager
def _cache_lock() -> Iterator[None]:
    cache_dir().mkdir(parents=True, exist_ok=True)
    with open(cache_dir() / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
