"""When each user was named last: ``named`` in the run directory, both ends.

Four bytes for each minor, whole seconds of CLOCK_MONOTONIC, 0 for "not since the agent's start": so
that ``explain`` can say it and the agent keeps neither text nor a line for each connection.
"""

from __future__ import annotations

import os
import struct
import time
from array import array

from .runfile import replace_file

_FILE = "named"
_U32 = struct.Struct("=I")


def write_named(run_dir: str, named: array[int]) -> None:
    """Replace the file at once.  Raises OSError."""
    replace_file(run_dir, _FILE, named)


def read_named(run_dir: str, minor: int) -> float | None:
    """When a minor's user was named last, in seconds since the epoch; None if it is not known."""
    try:
        with open(os.path.join(run_dir, _FILE), "rb") as file:
            file.seek(minor * _U32.size)
            data = file.read(_U32.size)
    except FileNotFoundError:
        return None
    seconds = _U32.unpack(data)[0] if len(data) == _U32.size else 0
    return time.time() - time.monotonic() + seconds if seconds else None
