"""Replaces files at once: whoever reads one sees the old or the new one, whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO


@contextmanager
def replacing(
    path: str, mode: int, uid: int = -1, gid: int = -1, durable: bool = False
) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends, and goes if it raises.

    ``durable``: it outlives a power cut from then on.  Raises OSError.
    """
    # Beside it, by a name that only this process uses; one that was killed may have left it.
    fresh = f"{path}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(fresh)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(fresh, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if (uid, gid) != (-1, -1):
                os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
            yield file
            if durable:
                file.flush()
                os.fsync(descriptor)
        os.replace(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise
