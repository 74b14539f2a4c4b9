"""Reads the files that people and billing systems write.  The only place that opens them."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from .core.identities import Identities, parse_identities
from .core.old_role import ENV
from .core.policy.model import Policy
from .core.policy.parse import parse_policy
from .core.settings import Settings, name_prefixes, parse_settings
from .errors import ConfigError

_ETC = "/etc/vff-qos"


class Paths(NamedTuple):
    """Where everything is."""

    settings: str = f"{_ETC}/settings.yml"
    policy: str = f"{_ETC}/policy.yml"
    #: Drop-ins, ``*.yml``, which may hold users.
    policy_dir: str = f"{_ETC}/policy.d"
    state_dir: str = "/var/lib/vff-qos"
    run_dir: str = "/run/vff-qos"

    @property
    def identities(self) -> str:
        """Services and networks; it need not be there."""
        return os.path.join(os.path.dirname(self.settings), "identities.yml")

    @property
    def disabled(self) -> str:
        """Says who has disabled this node by hand; ``vff-qos enable`` removes it."""
        return os.path.join(os.path.dirname(self.settings), "disabled-by-hand")

    @property
    def kept(self) -> str:
        """What a run of the role has changed and not confirmed yet; a timer puts it back."""
        return f"{self.run_dir}-confirm"

    @property
    def old_env(self) -> str:
        """The settings of the role qos_per_user_xray, while it has not been taken over."""
        return os.path.join(os.path.dirname(self.settings), os.path.basename(ENV))


#: A policy of 65,000 users with every key is about 8 MiB.
_MAX_BYTES = 32 << 20
#: What drop-ins might be named by somebody who expects them to be read.
_OTHER_ENDINGS = (".yaml", ".json")


def load_settings(paths: Paths) -> Settings:
    """The node's settings; ConfigError if they cannot be read or hold anything wrong."""
    return parse_settings(read_ours(paths.settings, paths), paths.settings)


def load_identities(
    paths: Paths, settings: Settings, file: str | None = None, any_reader: bool = False
) -> Identities:
    """Identities that ports and addresses tell, none without a file; ConfigError as above.

    ``file`` takes the place of the usual one; ``any_reader``: the agent may not read it yet.
    """
    path = file or paths.identities
    if not os.path.exists(path):
        return Identities()
    text = read_file(path) if any_reader else read_ours(path, paths)
    return parse_identities(text, path, settings.service_ports, name_prefixes(settings))


def load_policy(paths: Paths, file: str | None = None) -> Policy:
    """The policy and its drop-ins, with ``file`` in the place of the policy if one is given.

    Raises ConfigError if one cannot be read or is wrong.
    """
    return parse_files(read_policy(paths, None if file is None else read_file(file), file))


class PolicyFile(NamedTuple):
    """One file of a policy as it was read."""

    text: bytes
    path: str


def read_policy(
    paths: Paths, text: bytes | None = None, path: str | None = None
) -> list[PolicyFile]:
    """The policy and its drop-ins, which come after it; ConfigError if one cannot be read.

    ``text`` of a file ``path`` takes the place of the policy.
    """
    drop_ins = [PolicyFile(read_ours(name, paths), name) for name in drop_ins_of(paths.policy_dir)]
    if text is None:
        text = read_ours(paths.policy, paths)
    return [PolicyFile(text, path or paths.policy), *drop_ins]


def parse_files(files: list[PolicyFile]) -> Policy:
    """The policy that the files hold; ConfigError if one is wrong."""
    policy, *drop_ins = files
    return parse_policy(*policy, drop_ins)


def drop_ins_of(directory: str) -> list[str]:
    """The drop-ins' paths in their order; none if there is no directory.

    Raises ConfigError, also about a file that somebody takes for one and nobody reads.
    """
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(directory, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    found = []
    for name in names:
        # Editors and our own writers put files there that are not finished: those begin so.
        if name.startswith("."):
            continue
        path = os.path.join(directory, name)
        if name.endswith(".yml"):
            found.append(path)
        elif name.lower().endswith((".yml", *_OTHER_ENDINGS)):
            raise ConfigError(path, "is not read, because its name does not end in .yml; rename it")
    return found


def settings_stamp(paths: Paths) -> list[object]:
    """What changes when the settings do, as `policy_stamp`."""
    return _stamp(paths.settings)


def identities_stamp(paths: Paths) -> list[object]:
    """What changes when the identities do, as `policy_stamp`."""
    return _stamp(paths.identities)


def _stamp(path: str) -> list[object]:
    try:
        status = os.stat(path)
    except OSError as error:
        return [str(error)]
    # The last one changes with the owner and the mode, too.
    return [path, status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns]


def policy_stamp(paths: Paths) -> list[list[object]]:
    """What changes when a file of the policy does, or whether it can be read; JSON keeps it."""
    found: list[list[object]] = []
    try:
        found = [_stamp(path) for path in (paths.policy, *drop_ins_of(paths.policy_dir))]
    except ConfigError as error:
        found.append([str(error)])  # `load_policy` says it to people
    return found


# -- who may read what --------------------------------------------------------------------------


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


def read_ours(path: str, paths: Paths) -> bytes:
    """A file that the agent's account must be able to read, whoever asks; else ConfigError.

    The account is the owner of the state directory.  Root, and a follower that may read all logs,
    could read more than the units that run without that capability: what one of them refuses, all
    refuse, with the same sentence.
    """
    account = _account(paths.state_dir)
    if account is not None and os.path.exists(path) and not _may_read(path, account):
        name = _name(pwd.getpwuid, account[0])
        group = _name(grp.getgrgid, account[1])
        raise ConfigError(
            path,
            f"{_whose(path)} the agent's account {name} cannot read; "
            f"'chgrp {group} {path}' and 'chmod 0640 {path}' let it",
        )
    return read_file(path)


def read_secret(path: str, paths: Paths | None, low: int, high: int) -> str:
    """The one word of a file that is not for everybody; ConfigError, which never shows it.

    ``paths`` where it is asked for by another account than the agent's, too (`read_ours`); the word
    has ``low`` to ``high`` bytes.
    """
    word = (read_file(path) if paths is None else read_ours(path, paths)).strip()
    if not low <= len(word) <= high or not all(0x21 <= byte <= 0x7E for byte in word):
        raise ConfigError(
            path, f"does not hold one word of {low} to {high} printable characters, and no more"
        )
    if os.stat(path).st_mode & 0o004:
        raise ConfigError(
            path, f"everybody may read it, and it is a secret; 'chmod o= {path}' ends that"
        )
    return word.decode("ascii")


def _account(state_dir: str) -> tuple[int, int] | None:
    """User and group of the agent; None where that is root, or nothing is set up yet."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    try:
        status = os.stat(state_dir)
    except FileNotFoundError:
        return None
    return (status.st_uid, status.st_gid) if status.st_uid else None


def _may_read(path: str, account: tuple[int, int]) -> bool:
    if os.geteuid() != 0:
        # access(2) is about the real user and, unless that is root, leaves capabilities aside.
        return os.access(path, os.R_OK)
    with _acting_as(*account):
        return os.access(path, os.R_OK, effective_ids=True)


@contextmanager
def _acting_as(uid: int, gid: int) -> Iterator[None]:
    """Be another account for a moment; root's capabilities rest meanwhile."""
    groups = os.getgroups()
    try:
        others = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        others = [gid]
    try:
        os.setgroups(others)
        os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _whose(path: str) -> str:
    """The beginning of a sentence about a file's owner, group and mode."""
    status = os.stat(path)
    user, group = _name(pwd.getpwuid, status.st_uid), _name(grp.getgrgid, status.st_gid)
    return f"is {user}:{group} {status.st_mode & 0o7777:04o}, which"


def _name(look_up: Callable[[int], Sequence[Any]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)
