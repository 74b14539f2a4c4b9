"""Memory and the collector of a process that lives for months beside a busy engine."""

from __future__ import annotations

import ctypes
import gc

#: More than a block of the log makes objects.
_COLLECT_OBJECTS = 50_000
_M_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 1 << 18


def spare_collector() -> None:
    """Keep Python's cycle collector from walking over the claims of every block.

    Nothing on the hot path makes cycles; what does is found by a rarer look.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_OBJECTS)


def give_memory_back() -> None:
    """Have freed tables of thousands go back to the kernel.

    Each that is freed raises the size from which glibc maps them (mallopt(3), M_MMAP_THRESHOLD),
    and below it what lies under a younger one stays.  Other C libraries do not have it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def trim() -> None:
    """Give the kernel what is free at once (malloc_trim(3)), after work that took much of it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
