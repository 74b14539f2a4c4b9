"""Kernel parameters through /proc/sys, see proc_sys(5)."""

from __future__ import annotations

import os

from ..core.plan.objects import Sysctl, SysctlState
from ..errors import KernelRefused

_ROOT = "/proc/sys"


def _path(name: str) -> str:
    return os.path.join(_ROOT, *name.split("."))


def read_sysctl(name: str) -> SysctlState:
    """What it is, and whether it can be set: in containers much is read-only, and a unit's
    ProtectKernelTunables= makes it so, too."""
    try:
        with open(_path(name), encoding="ascii") as file:
            value = file.read().strip()
    except FileNotFoundError:
        return SysctlState(None, False)
    except OSError as error:
        raise KernelRefused(error.errno or 0, f"reading sysctl {name}") from error
    try:
        # Opening changes nothing, and is the only question that the kernel answers for sure.
        os.close(os.open(_path(name), os.O_WRONLY))
    except OSError:
        return SysctlState(value, False)
    return SysctlState(value, True)


def write_sysctl(item: Sysctl) -> None:
    """Set it.  Raises KernelRefused."""
    try:
        with open(_path(item.name), "w", encoding="ascii") as file:
            file.write(item.value)
    except OSError as error:
        raise KernelRefused(error.errno or 0, f"setting {item}") from error
