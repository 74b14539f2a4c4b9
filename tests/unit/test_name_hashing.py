"""The key of names' hashes, and what becomes of the names in a state."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from vff_qos.config import PolicyFile
from vff_qos.core.names import HASHED, MIXED, PLAIN, is_hash
from vff_qos.core.owners import Owner
from vff_qos.core.policy.overrides import OPERATOR, Override
from vff_qos.errors import ConfigError, QosError
from vff_qos.kept import keep_policy, kept_policy, rename_all
from vff_qos.name_hashing import (
    keep_names,
    make_key,
    mode_of,
    names_in_force,
    names_wanted,
    read_key,
)
from vff_qos.state import State

POLICY = b'match: [{pattern: "*.trial", download: 1mbit}]\nusers: {alice: {download: 5mbit}}\n'


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    assert read_key(str(tmp_path)) is None
    key = make_key(str(tmp_path))
    assert len(key) == 32
    assert make_key(str(tmp_path)) == read_key(str(tmp_path)) == key
    assert make_key(str(tmp_path / "other")) != key
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["email.key"]
    assert stat.S_IMODE((tmp_path / "email.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", [b"", b"no hex", b"00" * 31, b"00" * 33])
def test_what_is_no_key_is_refused_and_stays(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "email.key").write_bytes(text)
    with pytest.raises(QosError, match=r"email\.key: is not 64 hexadecimal digits"):
        make_key(str(tmp_path))
    assert (tmp_path / "email.key").read_bytes() == text


def filled(directory: Path) -> State:
    """A state with two users, an order, what one has used, and a spare class."""
    state = State(str(directory))
    state.save_owners([Owner("alice", 2), Owner("bob.trial", 3), Owner("\x03deadbeef", 4)])
    state.save_overrides([Override("alice", OPERATOR, {"blocked": True}, None, "me", "", 1.0)])
    state.save_usage([("bob.trial", 3, 1, 2, {"windows": {}})])
    keep_policy(state, [PolicyFile(POLICY, "policy.yml")], names_in_force(state, str(directory)))
    return state


def switch(state: State, directory: Path, hashed: bool, emails: list[str]) -> str:
    """What the agent does when it starts; returns what it tells."""
    policy = kept_policy(state)
    assert policy is not None
    names, news = names_wanted(state, str(directory), hashed)
    users = dict.fromkeys(emails, policy.default)
    rename_all(state, names, replace(policy, users=users))
    return news


def test_names_are_hashed_in_place_and_nothing_of_them_is_left(tmp_path: Path) -> None:
    state = filled(tmp_path)
    assert mode_of(state) == PLAIN
    assert switch(state, tmp_path, True, []).startswith("names are hashed from now on")
    assert mode_of(state) == HASHED
    names = names_in_force(state, str(tmp_path))
    alice, bob = names.of("alice"), names.of("bob.trial")
    assert {owner.key: owner.minor for owner in state.owners()} == {
        alice: 2, bob: 3, "\x03deadbeef": 4,
    }  # fmt: skip
    assert [override.email for override in state.overrides()] == [alice]
    assert [row[0] for row in state.usage()] == [bob]
    assert state.globs() == {bob: ("*.trial",)}
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"alice" not in kept and b"bob" not in kept
    policy = kept_policy(state)
    assert policy is not None
    assert policy.named(names).limits(alice).download_bps == 5_000_000
    assert policy.named(names).limits(bob).download_bps == 1_000_000
    # Once is enough.
    before = kept
    assert switch(state, tmp_path, True, []) == ""
    assert b"".join(path.read_bytes() for path in tmp_path.iterdir()) == before


def test_names_come_back_of_those_who_are_known(tmp_path: Path) -> None:
    state = filled(tmp_path)
    switch(state, tmp_path, True, [])
    bob = names_in_force(state, str(tmp_path)).of("bob.trial")
    assert "goes when they are seen again" in switch(state, tmp_path, False, ["alice"])
    assert mode_of(state) == MIXED
    assert state.names() == {"alice", bob}
    names = names_in_force(state, str(tmp_path))
    assert keep_names(state, names, {bob: "bob.trial"}).are_emails
    assert mode_of(state) == PLAIN and state.names() == {"alice", "bob.trial"}
    # The key stays: the same users get the same hashes another time.
    switch(state, tmp_path, True, [])
    assert bob in state.names() and not [name for name in state.names() if not is_hash(name)]


def test_another_key_is_told_and_a_missing_one_refused(tmp_path: Path) -> None:
    state = filled(tmp_path)
    switch(state, tmp_path, True, [])
    (tmp_path / "email.key").unlink()
    with pytest.raises(QosError, match=r"email\.key: is missing"):
        names_in_force(state, str(tmp_path))
    assert "users of before have new names" in switch(state, tmp_path, True, [])
    (tmp_path / "email.key").unlink()
    assert "the key is lost" in switch(state, tmp_path, False, ["alice"])
    assert mode_of(state) == PLAIN


def test_a_mistake_is_told_without_the_users_name() -> None:
    error = ConfigError("policy.yml", "is wrong", 7, "users.alice@x.download")
    assert "alice" in str(error)
    assert error.nameless() == "policy.yml:7: users: is wrong"
    other = ConfigError("policy.yml", "is wrong", 7, "plans.gold.download")
    assert other.nameless() == str(other)
