"""The last good settings and policy, for when the files hold a mistake.

A running agent goes on with what it has read anyway; these are for a start, and for commands.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

from .config import Paths, PolicyFile, load_identities, parse_files, read_ours
from .core.document import Document
from .core.identities import Identities, parse_identities
from .core.names import HASHED, Names
from .core.policy.model import Policy
from .core.settings import Settings, name_prefixes, parse_settings
from .errors import ConfigError
from .name_hashing import keep_names, keep_people, people_of
from .state import KERNEL_RECORD, State

_POLICY, _SETTINGS, _IDENTITIES = "policy", "settings", "identities"
#: JSON has no bytes; its letters are the bytes.
_BYTES = "latin-1"


def keep_policy(state: State, files: list[PolicyFile], names: Names) -> None:
    """Remember the files of a policy that is right, without emails where names are hashes.

    Raises StateError.
    """
    if names.mode == HASHED:
        files = [_hashed(file, names) for file in files]
    _keep(state, _POLICY, [[file.text.decode(_BYTES), file.path] for file in files])


def rename_all(state: State, names: Names, policy: Policy) -> Names:
    """Bring all users in the state to the names that are wanted; returns how they are from now on.

    The caller holds the lock.  Raises StateError.
    """
    if names.are_emails:
        return names
    renamed = names.renamed(state.names(), policy.users, policy.fitting)
    if names.mode == HASHED:
        _hash_kept_policy(state, names)
        _hash_kept_identities(state, names)
    return keep_names(state, names, renamed)


def _hash_kept_policy(state: State, names: Names) -> None:
    """Have hashes in the place of the emails in what was kept.  Raises StateError."""
    if (texts := state.get_value(_POLICY)) is not None:
        files = [PolicyFile(text.encode(_BYTES), path) for text, path in texts]
        keep_policy(state, files, names)
        if state.get_value(_POLICY) != texts:
            state.scrub()


def _hash_kept_identities(state: State, names: Names) -> None:
    """The same of identities, and of whose they are.  Raises StateError."""
    before = state.get_value(_IDENTITIES), people_of(state)
    if before[0]:
        text = _hashed_people(before[0].encode(_BYTES), "", names)
        _keep(state, _IDENTITIES, text.decode(_BYTES))
    keep_people(state, names.joined(before[1]))
    if (state.get_value(_IDENTITIES), people_of(state)) != before:
        state.scrub()


def _hashed(file: PolicyFile, names: Names) -> PolicyFile:
    """A policy's file with hashes in the place of emails; JSON is YAML, too."""
    try:
        data = Document(*file).data
    except ConfigError:  # this program is younger, and stricter: nobody can use it any more
        return file._replace(text=b"")
    if isinstance(users := data.get("users"), dict):
        data = {**data, "users": {names.alone(email): entry for email, entry in users.items()}}
    return file._replace(text=json.dumps(data).encode())


def _hashed_people(text: bytes, where: str, names: Names) -> bytes:
    """The text of identities with hashes in the place of people's names and emails."""
    try:
        data = Document(text, where).data
    except ConfigError:  # as in `_hashed`
        return b""
    if isinstance(people := data.get("people"), dict):
        hashed = {
            names.alone(person): [names.alone(identity) for identity in identities]
            for person, identities in people.items()
        }
        return json.dumps({**data, "people": hashed}).encode()
    return text


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


def with_trees(settings: Settings, state: State) -> Settings:
    """Settings with as many trees as bootstrap has made.  Raises StateError."""
    recorded = state.get_value(KERNEL_RECORD) or {}
    return replace(settings, trees=recorded.get("trees", 1))


def keep_identities(state: State, paths: Paths, settings: Settings, names: Names) -> None:
    """Remember the identities if they are right, without emails where names are hashes.

    Raises StateError.
    """
    try:
        load_identities(paths, settings)
        text = read_ours(paths.identities, paths)
        if names.mode == HASHED:
            text = _hashed_people(text, paths.identities, names)
    except ConfigError:
        # One that is not there holds none.
        if not os.path.exists(paths.identities):
            _keep(state, _IDENTITIES, "")
        return
    _keep(state, _IDENTITIES, text.decode(_BYTES))


def kept_identities(state: State, settings: Settings) -> Identities | None:
    """The last good ones; None as with the policy.  Raises StateError."""
    text = state.get_value(_IDENTITIES)
    if text is None:
        return None
    try:
        return parse_identities(
            text.encode(_BYTES), "", settings.service_ports, name_prefixes(settings)
        )
    except ConfigError:
        return None


def _keep(state: State, name: str, value: object) -> None:
    if state.get_value(name) != value:
        state.set_value(name, value)
