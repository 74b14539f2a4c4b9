"""Reads the two files that people write.  The only place that opens them."""

from __future__ import annotations

import os
from typing import NamedTuple

from .core.policy import Policy, parse_policy
from .core.settings import Settings, parse_settings
from .errors import ConfigError

SETTINGS_PATH = "/etc/vff-qos/settings.yml"
POLICY_PATH = "/etc/vff-qos/policy.yml"
STATE_DIR = "/var/lib/vff-qos"
RUN_DIR = "/run/vff-qos"


class Paths(NamedTuple):
    """Where everything is."""

    settings: str = SETTINGS_PATH
    policy: str = POLICY_PATH
    state_dir: str = STATE_DIR
    run_dir: str = RUN_DIR


#: A policy of 65,000 users with every key is about 8 MiB.
_MAX_BYTES = 32 << 20


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    if len(text) > _MAX_BYTES:
        raise ConfigError(path, f"is larger than {_MAX_BYTES >> 20} MiB")
    return text


def load_settings(path: str = SETTINGS_PATH) -> Settings:
    """Settings from ``path``; ConfigError if it cannot be read or holds anything wrong."""
    return parse_settings(_read(path), path)


def load_policy(path: str = POLICY_PATH) -> Policy:
    """Policy from ``path``; ConfigError if it cannot be read or holds anything wrong."""
    return parse_policy(_read(path), path)
