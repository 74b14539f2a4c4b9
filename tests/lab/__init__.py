"""A lab node on this machine: image, virtual machine, clients, engine, traffic, measurement."""

from __future__ import annotations

from .labnode import Lab
from .measure import Measurement, Report, Run
from .node import Node
from .progress import LabError
from .users import USERS, Device, Direction, User, role_variables

__all__ = [
    "USERS",
    "Device",
    "Direction",
    "Lab",
    "LabError",
    "Measurement",
    "Node",
    "Report",
    "Run",
    "User",
    "role_variables",
]
