"""Whether names in the state are hashes, and the key of these: a file, made once.

The agent's account and root may read it.  It lies beside the state and goes with it.  Who copies
both can try whether an email is among the names; so a backup of the state is better made without
it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .core.names import HASHED, KEY_BYTES, MIXED, PLAIN, Names
from .errors import QosError
from .state import State

_FILE = "email.key"
#: Name of the value that says what names are: {"mode": ..., "key": its fingerprint}.
_NAMES = "names"
#: Name of the one that says which identities are whose (`core.people`), as `Names.people`.
_PEOPLE = "people"


def read_key(state_dir: str) -> bytes | None:
    """The key; None if there is none.  Raises QosError."""
    path = os.path.join(state_dir, _FILE)
    try:
        with open(path, "rb") as file:
            text = file.read(2 * KEY_BYTES + 2)
        key = bytes.fromhex(text.decode("ascii"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise QosError(f"{path}: {os.strerror(error.errno or 0)}") from error
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise QosError(
            f"{path}: is not {2 * KEY_BYTES} hexadecimal digits; put the right one back, or delete "
            "it, and all users get new names"
        )
    return key


def make_key(state_dir: str) -> bytes:
    """The key, made if there is none.  Raises QosError."""
    if key := read_key(state_dir):
        return key
    path = os.path.join(state_dir, _FILE)
    mine = f"{path}.{os.getpid()}"
    try:
        os.makedirs(state_dir, mode=0o750, exist_ok=True)
        owner = os.stat(state_dir)
        descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o600)
                if os.geteuid() == 0:
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
                file.write(os.urandom(KEY_BYTES).hex().encode() + b"\n")
                file.flush()
                os.fsync(descriptor)
            os.link(mine, path)  # whoever is first has made it
        except FileExistsError:
            pass  # somebody else was first
        finally:
            os.unlink(mine)
    except OSError as error:
        raise QosError(f"{path}: {os.strerror(error.errno or 0)}") from error
    made = read_key(state_dir)
    if made is None:
        raise QosError(f"{path}: was deleted again")
    return made


def mode_of(state: State) -> str:
    """What the names in the state are: PLAIN, HASHED or MIXED.  Raises StateError."""
    kept = state.get_value(_NAMES)
    return PLAIN if kept is None else str(kept["mode"])


def names_in_force(state: State, state_dir: str) -> Names:
    """How the names in the state are to be read, whatever the settings say: the agent changes both.

    Raises StateError, QosError.
    """
    kept, people = state.get_value(_NAMES), people_of(state)
    if kept is None:
        return Names(people=people)
    key = read_key(state_dir)
    if key is None:
        raise QosError(
            f"{os.path.join(state_dir, _FILE)}: is missing, and names are hashed with it; put it "
            "back, or restart the agent, which makes a new one and new names"
        )
    return Names(kept["mode"], key, state.globs(), people)


def people_of(state: State) -> dict[str, str]:
    """Whose identities are whose, as `Names.people`.  Raises StateError."""
    return state.get_value(_PEOPLE) or {}


def keep_people(state: State, people: Mapping[str, str]) -> None:
    """Remember whose identities are whose, for all who ask for a user.  Raises StateError."""
    if people_of(state) != people:
        state.set_value(_PEOPLE, dict(people) or None)


def names_wanted(state: State, state_dir: str, hashed: bool) -> tuple[Names, str]:
    """How the agent shall keep names, and what a person should know of that; empty for nothing.

    `keep_names` brings the state there.  Raises StateError, QosError.
    """
    kept = state.get_value(_NAMES)
    if not hashed and kept is None:
        return Names(), ""
    if not hashed and read_key(state_dir) is None:
        state.set_value(_NAMES, None)
        return Names(), "names are emails again; users of before are strangers, for the key is lost"
    key = make_key(state_dir)
    names = Names(HASHED if hashed else MIXED, key, state.globs())
    if kept is None:
        news = "names are hashed from now on, those of before, too"
        return names, news if state.names() else ""
    if kept["key"] != names.fingerprint:
        return names, "the key of names' hashes is another one: users of before have new names"
    if kept["mode"] == names.mode:
        return names, ""
    if hashed:
        return names, "names are hashed from now on, those of before, too"
    return names, "names are emails from now on; a user's hash goes when they are seen again"


def keep_names(state: State, names: Names, renamed: dict[str, str]) -> Names:
    """Rename users in the state, all or nothing; returns how names are from now on.

    Once no hash is left, MIXED is PLAIN.  Raises StateError.
    """
    names.forget_others({renamed.get(name, name) for name in state.names()})
    if renamed or state.globs() != names.globs:
        state.rename(renamed, names.globs)
    mode = names.mode
    if mode == MIXED and not state.hashes():
        mode = PLAIN
    kept = {"mode": mode, "key": names.fingerprint}
    if mode == PLAIN:
        state.set_value(_NAMES, None)
        return Names()
    if state.get_value(_NAMES) != kept:
        state.set_value(_NAMES, kept)
    return names
