"""Names of users: emails, or hashes of them."""

from __future__ import annotations

from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.names import HASHED, MIXED, Names, is_hash
from vff_qos.core.policy.parse import parse_policy

KEY = bytes(range(32))
TEXT = b"""
default: {upload: 1mbit, download: 1mbit}
plans:
  gold: {download: 9mbit, quota: {limit: 1GB, per: day, reset: 0, then: slow}}
  slow: {download: 2mbit}
match:
  - {pattern: "a*", download: 3mbit}
  - {pattern: "*.trial", plan: gold}
users:
  alice: {download: 4mbit}
"""


def test_a_hash_is_blake2b_with_the_key() -> None:
    names = Names(HASHED, KEY)
    want = blake2b("алиса@x".encode(), key=KEY, digest_size=10).hexdigest()
    assert names.of("алиса@x") == f"user-{want}"
    assert is_hash(names.of("алиса@x")) and not is_hash("алиса@x")
    assert Names(HASHED, KEY[::-1]).of("алиса@x") != names.of("алиса@x")
    # What looks as a hash does is one: a person gives what status shows.
    assert names.of(names.of("алиса@x")) == names.of("алиса@x")


@given(st.text())
def test_without_hashes_a_name_is_the_email(email: str) -> None:
    names = Names()
    assert names.are_emails
    assert names.of(email) == email and names.all_of(email) == (email,)
    assert names.renamed([email], [email], lambda _email: ("*",)) == {}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_email_has_a_hash(email: str) -> None:
    assert is_hash(Names(HASHED, KEY).hash(email))


def test_users_and_patterns_mean_the_same_users_by_their_hashes() -> None:
    written = parse_policy(TEXT, "policy.yml")
    names = Names(HASHED, KEY)
    policy = written.named(names)
    emails = ["alice", "adam", "bob.trial", "adam.trial", "carol"]
    assert not any(email in policy.users for email in emails)
    for email in emails:
        names.note(names.of(email), written.fitting(email))
    for email in emails:
        name = names.of(email)
        assert policy.limits(name) == written.limits(email), email
        assert policy.terms_of(name) == written.terms_of(email), email
        assert policy.rule(name).kind == written.rule(email).kind
    # Of nobody else is anything known.
    assert policy.limits(names.of("dave.trial")) == written.default


def test_a_pattern_for_all_fits_who_was_never_seen() -> None:
    names = Names(HASHED, KEY)
    text = b'match: [{pattern: "user-*", download: 7mbit}, {pattern: "*", download: 3mbit}]\n'
    policy = parse_policy(text, "policy.yml").named(names)
    # Patterns are for emails: the text of a hash is none.
    assert policy.limits(names.of("x")).download_bps == 3_000_000


def test_to_hashes_all_names_change_and_back_those_that_somebody_knows() -> None:
    fitting = parse_policy(TEXT, "policy.yml").fitting
    hashed = Names(HASHED, KEY)
    kept = [hashed.hash("carol"), "alice", "adam.trial"]
    renamed = hashed.renamed(kept, [], fitting)
    assert renamed == {email: hashed.hash(email) for email in ("alice", "adam.trial")}
    assert hashed.globs == {
        hashed.hash("alice"): ("a*",), hashed.hash("adam.trial"): ("a*", "*.trial"),
    }  # fmt: skip
    mixed = Names(MIXED, KEY, hashed.globs)
    back = mixed.renamed(renamed.values(), ["alice", "carol", hashed.hash("x")], fitting)
    assert back == {hashed.hash("alice"): "alice"}
    # Two records of one user cannot become one.
    assert mixed.renamed([hashed.hash("alice"), "alice"], ["alice"], fitting) == {}


def test_while_both_are_there_an_entry_of_the_policy_is_found_by_either() -> None:
    written = parse_policy(TEXT, "policy.yml")
    mixed = Names(MIXED, KEY)
    policy = written.named(mixed)
    assert policy.limits("alice") == policy.limits(mixed.hash("alice")) == written.limits("alice")
    assert policy.limits("adam") == written.limits("adam")
    mixed.note(mixed.hash("adam"), ("a*",))
    assert policy.limits(mixed.hash("adam")) == written.limits("adam")


def test_what_is_noted_is_shared_and_forgotten() -> None:
    names = Names(HASHED, KEY)
    assert names.note("user-1", ("a", "b")) and names.note("user-2", ("a", "b"))
    assert names.globs["user-1"] is names.globs["user-2"]
    assert not names.note("user-1", ("a", "b"))
    assert names.note("user-1", ()) and "user-1" not in names.globs
    assert not names.note("user-3", ())
