"""The last good policy, for a start while the files hold a mistake.

A running agent keeps the old policy anyway; this is what keeps limits in force over a reboot.
"""

from __future__ import annotations

from .config import PolicyFile, parse_files
from .core.policy import Policy
from .state import State

_KEY = "policy"


def keep_policy(state: State, files: list[PolicyFile]) -> None:
    """Remember the files of a policy that is right.  Raises StateError."""
    # JSON has no bytes; these letters are the bytes.
    texts = [[file.text.decode("latin-1"), file.path] for file in files]
    if state.get_value(_KEY) != texts:
        state.set_value(_KEY, texts)


def kept_policy(state: State) -> Policy | None:
    """The last good policy; None if there never was one.  Raises ConfigError, StateError."""
    texts = state.get_value(_KEY)
    if texts is None:
        return None
    return parse_files([PolicyFile(text.encode("latin-1"), path) for text, path in texts])
