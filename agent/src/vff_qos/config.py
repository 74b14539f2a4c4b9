"""Reads the files that people and billing systems write.  The only place that opens them."""

from __future__ import annotations

import os
from typing import NamedTuple

from .core.policy.model import Policy
from .core.policy.parse import parse_policy
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
    #: Drop-ins, ``*.yml``, which may hold users.
    policy_dir: str = "/etc/vff-qos/policy.d"
    state_dir: str = STATE_DIR
    run_dir: str = RUN_DIR


#: A policy of 65,000 users with every key is about 8 MiB.
_MAX_BYTES = 32 << 20


def read_file(path: str) -> bytes:
    """A file that people write; ConfigError if it cannot be read."""
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
    return parse_settings(read_file(path), path)


class PolicyFile(NamedTuple):
    """One file of a policy as it was read."""

    text: bytes
    path: str


def load_policy(path: str, directory: str, text: bytes | None = None) -> Policy:
    """Policy from ``path`` and its drop-ins; ConfigError if one cannot be read or is wrong.

    ``text`` is what ``path`` holds, for who has read it already.
    """
    return parse_files(read_policy(path, directory, text))


def read_policy(path: str, directory: str, text: bytes | None = None) -> list[PolicyFile]:
    """The files of a policy, the drop-ins behind it; ConfigError if one cannot be read."""
    drop_ins = [PolicyFile(read_file(name), name) for name in drop_ins_of(directory)]
    return [PolicyFile(read_file(path) if text is None else text, path), *drop_ins]


def parse_files(files: list[PolicyFile]) -> Policy:
    """The policy that the files hold; ConfigError if one is wrong."""
    policy, *drop_ins = files
    return parse_policy(*policy, drop_ins)


def drop_ins_of(directory: str) -> list[str]:
    """The drop-ins' paths in their order; none if there is no directory."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".yml"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(directory, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    # Editors and our own writers put files there that are not finished: those start with a dot.
    return [os.path.join(directory, name) for name in names if not name.startswith(".")]


def policy_stamp(paths: Paths) -> list[list[object]]:
    """What changes when a file of the policy does, or whether it can be read; JSON keeps it."""
    found: list[list[object]] = []
    try:
        for path in (paths.policy, *drop_ins_of(paths.policy_dir)):
            status = os.stat(path)
            found.append([path, status.st_ino, status.st_mtime_ns, status.st_size])
    except (ConfigError, OSError) as error:
        found.append([str(error)])  # `load_policy` says it to people
    return found
