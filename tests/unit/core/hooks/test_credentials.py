"""The users file of the hooks: forms of secrets, mistakes, who is meant by a login's text."""

from __future__ import annotations

import hashlib

import pytest

from vff_qos.core.hooks.credentials import Credentials, Secret, hash_secret, parse_users
from vff_qos.errors import ConfigError

#: By werkzeug.security.generate_password_hash("right", method), 3.1.
WERKZEUG_SCRYPT = (
    "scrypt:16:8:1$q8iCwGBD$"
    + hashlib.scrypt(b"right", salt=b"q8iCwGBD", n=16, r=8, p=1, dklen=64).hex()
)
WERKZEUG_PBKDF2 = (
    "pbkdf2:sha256:1000$q8iCwGBD$"
    + hashlib.pbkdf2_hmac("sha256", b"right", b"q8iCwGBD", 1000).hex()
)


def users(text: str) -> Credentials:
    return parse_users(text.encode(), "users.yml")


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ("right", "plain"),
        ("sha256$" + hashlib.sha256(b"right").hexdigest(), "sha256"),
        (WERKZEUG_SCRYPT, "scrypt"),
        (WERKZEUG_PBKDF2, "pbkdf2"),
        (hash_secret("right", "c2FsdA"), "scrypt"),
    ],
)
def test_each_form_knows_its_secret_and_no_other(written: str, form: str) -> None:
    secret = users(f"alice@x: '{written}'").secrets["alice@x"]
    assert secret.form == form
    assert secret.fits(b"right")
    assert not secret.fits(b"wrong")
    assert not secret.fits(b"")
    assert not secret.fits(b"right\0")  # which HMAC takes for the same key


def test_who_is_meant_by_a_secret_alone_and_by_name_and_secret() -> None:
    digest = hashlib.sha256(b"b:ob").hexdigest()
    found = users(f"alice: s3cret\nbob: sha256${digest}\ncarol: '{WERKZEUG_SCRYPT}'")
    assert found.candidates("s3cret") == [("alice", b"s3cret")]
    assert found.candidates("alice:s3cret") == [("alice", b"s3cret")]
    assert found.candidates("bob:b:ob") == [("bob", b"b:ob")]
    assert found.candidates("b:ob") == [("bob", b"b:ob")]
    # A salted one is found by its name alone.
    assert found.candidates("carol:right") == [("carol", b"right")]
    assert found.candidates("right") == []
    assert found.candidates("") == []
    assert found.candidates("\ud800:x") == []


def test_numbers_as_names_are_text_and_as_secrets_a_mistake() -> None:
    assert users("12: 's3cret'").secrets.keys() == {"12"}
    with pytest.raises(ConfigError, match=r"^users.yml:2: users.bob: its secret must be text; put"):
        users("alice: s3cret\nbob: 007")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a:b: x", "users.yml:1: users.a:b: is not a name"),
        ("'a\\nb': x\n\"c\\x01\": y", "is not a name"),
        ("alice: ''", "its secret must have 1 to 1024 bytes"),
        ("alice: " + "x" * 1025, "its secret must have 1 to 1024 bytes"),
        (
            "alice: same\nbob: same",
            "users.yml:2: users.bob: has the same secret as the user of line 1",
        ),
        ("alice: x\nalice: y", "users.yml:2: alice: stands twice"),
        ("alice: sha256$12", "its hash is none of"),
        ("alice: $2b$12$abcdefghijklmnopqrstuv", "its hash is none of"),
        ("alice: scrypt:3:8:1$salt$" + "00" * 32, "its scrypt costs cannot be"),
        ("alice: scrypt:1048576:8:1$salt$" + "00" * 32, "its scrypt costs cannot be"),
        ("alice: pbkdf2:sha256:99999999$salt$" + "00" * 32, "its PBKDF2 must have"),
        ("- alice", "must be a mapping"),
        ("alice: {secret: x}", "its secret must be text"),
    ],
)
def test_mistakes_are_named_and_no_secret_is(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        users(text)
    assert sentence in str(refused.value)
    assert "same\n" not in str(refused.value)
    assert "$salt$" not in str(refused.value)


def test_an_empty_file_lets_nobody_in() -> None:
    assert users("").candidates("x") == []
    assert Credentials({"a": Secret("plain", b"x")}).candidates("x") == [("a", b"x")]
