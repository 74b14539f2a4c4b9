"""People: what the file may say of them, and who is meant by a name then."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.document import Document
from vff_qos.core.names import HASHED, MIXED, PLAIN, Names, is_hash
from vff_qos.core.people import parse_people
from vff_qos.core.policy.parse import parse_policy
from vff_qos.core.settings import name_prefixes, parse_settings
from vff_qos.errors import ConfigError

STATIC = ("service:tunnel", "network:wg")
SOURCES = name_prefixes(
    parse_settings(
        b"sources: [{type: file}, {type: file, name: second, path: /b},"
        b" {type: webhook, name: hysteria, listen: 'unix:/run/h'}]",
        "",
    )
)
KEY = bytes(range(32))


def parse(text: str) -> dict[str, str]:
    doc = Document(f"people: {text}".encode(), "identities.yml")
    return parse_people(doc, doc.data["people"], STATIC, SOURCES)


def test_identities_of_all_kinds_are_one_person() -> None:
    assert SOURCES == {"file": "", "second": "second:", "hysteria": "hysteria:"}
    found = parse(
        "{alice: [alice@x, 'hysteria:alice', 'service:tunnel', 'network:wg', 'xray:second:a'], "
        "'second:bob': ['second:bob', bob@x]}"
    )
    assert found == {
        "alice@x": "alice", "hysteria:alice": "alice", "service:tunnel": "alice",
        "network:wg": "alice", "xray:second:a": "alice", "bob@x": "second:bob",
    }  # fmt: skip
    assert parse("{}") == {}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[alice]", "people: must be a mapping of people to lists of their identities"),
        ("{alice: a@x}", "people.alice: must be a list of identities such as 'alice@example.com'"),
        ("{alice: []}", "people.alice: must be a list of identities such as 'alice@example.com'"),
        ("{alice: [12]}", "people.alice.0: 12 is not text; put it in quotes"),
        ("{alice: ['']}", "people.alice.0: must be 1 to 320 bytes of printable text"),
        ('{"a\\nb": [a@x]}', "people.a\\nb: 'a\\nb' must be 1 to 320 bytes of printable text"),
        (
            "{alice: [a@x], bob: [b@x, a@x]}",
            "people.bob.1: 'a@x' is an identity of both 'alice' and 'bob'",
        ),
        ("{alice: [a@x, a@x]}", "people.alice.1: 'a@x' stands twice"),
        (
            "{alice: [a@x, bob], bob: [b@x]}",
            "people.alice.1: 'bob' is a person, and so cannot be an identity of 'alice'",
        ),
        ("{alice: ['service:web']}", "people.alice.0: 'service:web': there is no service 'web'"),
        ("{'network:x': [a@x]}", "people.network:x: 'network:x': there is no network 'x'"),
        (
            "{alice: ['hystera:a']}",
            "people.alice.0: 'hystera:a': no source is called 'hystera' (sources: file, second, "
            "hysteria), and service: and network: are what else may come before a colon",
        ),
        (
            "{alice: ['file:a@x']}",
            "people.alice.0: 'file:a@x': names of the source 'file' are without its own; write "
            "'a@x'",
        ),
        ("{alice: ['second:']}", "people.alice.0: 'second:' names nobody"),
        ("{alice: ['xray:a@x']}", "people.alice.0: 'xray:a@x' is called 'a@x' by its engine"),
    ],
)
def test_what_is_wrong_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(text)
    assert str(raised.value) == f"identities.yml:1: {complaint}"
    if raised.value.key != "people":
        # Where names are hashed, the journal has none.
        assert raised.value.nameless() == (
            "identities.yml:1: people: is refused; 'vff-qos check-config' says why"
        )


_NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(
    lambda name: not is_hash(name)
)


@given(st.dictionaries(_NAMES, _NAMES), _NAMES, st.sampled_from([PLAIN, MIXED, HASHED]))
def test_a_name_means_its_person_however_it_is_kept(
    people: dict[str, str], other: str, mode: str
) -> None:
    people = {identity: person for identity, person in people.items() if person not in people}
    names, bare = Names(mode, KEY), Names(mode, KEY)
    names.join(people)
    for email in (*people, other):
        person = people.get(email, email)
        assert names.of(email) == bare.of(person)
        assert names.written(email) == person
        # What is kept means the same, and needs no second look.
        assert names.of(names.of(email)) == names.of(email)
    # Another process knows of it what is kept, and JSON keeps it.
    kept = Names(mode, KEY, people=json.loads(json.dumps(names.people)))
    assert all(kept.of(email) == names.of(email) for email in people)
    if mode == HASHED:
        assert all(is_hash(name) for pair in names.people.items() for name in pair)
        assert [kept.written(email) for email in people] == [None] * len(people)


@pytest.mark.parametrize("mode", [PLAIN, MIXED, HASHED])
def test_the_policy_speaks_of_the_person(mode: str) -> None:
    names = Names(mode, KEY)
    names.join({"alice@x": "alice"})
    written = parse_policy(
        b"users: {alice: {download: 4mbit}, alice@x: {download: 9mbit}}", "policy.yml"
    )
    policy = written.named(names)
    assert policy.limits(names.of("alice@x")).download_bps == 4_000_000


def test_without_people_nothing_is_asked() -> None:
    names: Callable[[str], str] = Names().of
    assert names("second:alice") == "second:alice"
