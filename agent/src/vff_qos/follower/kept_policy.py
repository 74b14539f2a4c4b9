"""The last good policy, for a start while the files hold a mistake.

A running agent keeps the old policy anyway; this is what keeps limits in force over a reboot.
"""

from __future__ import annotations

from ..config import PolicyFile, parse_files
from ..core.policy.model import Policy
from ..errors import ConfigError
from ..journal import ERROR, Journal
from ..state import State

_KEY = "policy"


def keep_policy(state: State, files: list[PolicyFile]) -> None:
    """Remember the files of a policy that is right.  Raises StateError."""
    # JSON has no bytes; these letters are the bytes.
    texts = [[file.text.decode("latin-1"), file.path] for file in files]
    if state.get_value(_KEY) != texts:
        state.set_value(_KEY, texts)


def kept_policy(error: ConfigError, state: State, journal: Journal) -> Policy:
    """The last good policy, although the files hold a mistake; says so.

    Raises ``error`` if there never was one, StateError.
    """
    texts = state.get_value(_KEY)
    if texts is None:
        raise error
    policy = parse_files([PolicyFile(text.encode("latin-1"), path) for text, path in texts])
    journal.event("config", f"{error}; the last good policy stays in force", ERROR)
    return policy
