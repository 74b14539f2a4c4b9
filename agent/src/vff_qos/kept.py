"""The last good settings and policy, for when the files hold a mistake.

A running agent goes on with what it has read anyway; these are for a start, and for commands.
"""

from __future__ import annotations

from .config import Paths, PolicyFile, parse_files, read_ours
from .core.policy.model import Policy
from .core.settings import Settings, parse_settings
from .errors import ConfigError
from .state import State

_POLICY, _SETTINGS = "policy", "settings"
#: JSON has no bytes; its letters are the bytes.
_BYTES = "latin-1"


def keep_policy(state: State, files: list[PolicyFile]) -> None:
    """Remember the files of a policy that is right.  Raises StateError."""
    _keep(state, _POLICY, [[file.text.decode(_BYTES), file.path] for file in files])


def kept_policy(state: State) -> Policy | None:
    """The last good policy; None if there never was one, or it is not good enough any more.

    Raises StateError.
    """
    texts = state.get_value(_POLICY)
    if texts is None:
        return None
    try:
        return parse_files([PolicyFile(text.encode(_BYTES), path) for text, path in texts])
    except ConfigError:  # this program is younger, and stricter
        return None


def keep_settings(state: State, paths: Paths) -> None:
    """Remember the settings if they are right.  Raises StateError."""
    try:
        text = read_ours(paths.settings, paths)
        parse_settings(text, paths.settings)
    except ConfigError:
        return
    _keep(state, _SETTINGS, text.decode(_BYTES))


def kept_settings(state: State) -> Settings | None:
    """The last good settings; None as with the policy.  Raises StateError."""
    text = state.get_value(_SETTINGS)
    if text is None:
        return None
    try:
        return parse_settings(text.encode(_BYTES), "")
    except ConfigError:
        return None


def _keep(state: State, name: str, value: object) -> None:
    if state.get_value(name) != value:
        state.set_value(name, value)
