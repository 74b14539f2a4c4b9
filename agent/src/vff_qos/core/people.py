"""People: identities of different engines that are one user.

``people: {alice: [alice@example.com, "hysteria:alice", "service:alice-tunnel"]}`` stands in
``identities.yml``.  An identity is a user's name as a source tells it, with what the names of that
source begin with (`settings.name_prefix`), or a service or a network of the same file.  Where a
name becomes a user (`core.names`), an identity becomes its person; all that comes after that knows
people alone.  A person's own name is an identity of theirs, too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .claims.email import KINDS
from .document import Document
from .names import is_hash
from .policy.parse import email_problem

_ENGINE = "xray:"


def parse_people(
    doc: Document, entries: Any, static: Collection[str], prefixes: Mapping[str, str]
) -> dict[str, str]:
    """{identity: person}; ConfigError names both where two claim the same.

    ``static`` are the users that services and networks are, ``prefixes`` how names of each source
    begin, by its name.
    """
    if not isinstance(entries, dict):
        raise doc.fail(("people",), "must be a mapping of people to lists of their identities")
    found: dict[str, str] = {}
    for person, identities in entries.items():
        path = ("people", person)
        if problem := _problem(person, static, prefixes):
            raise doc.fail(path, problem)
        if not isinstance(identities, list) or not identities:
            raise doc.fail(path, "must be a list of identities such as 'alice@example.com'")
        for index, identity in enumerate(identities):
            place = (*path, str(index))
            if not isinstance(identity, str):
                raise doc.fail(place, f"{identity!r} is not text; put it in quotes")
            if problem := _problem(identity, static, prefixes):
                raise doc.fail(place, problem)
            if identity in found:
                raise doc.fail(place, f"{identity!r} {_twice(found[identity], person)}")
            if identity != person:
                found[identity] = person
            if identity != person and identity in entries:
                raise doc.fail(
                    place,
                    f"{identity!r} is a person, and so cannot be an identity of {person!r}",
                )
    return found


def _twice(one: str, other: str) -> str:
    return "stands twice" if one == other else f"is an identity of both {one!r} and {other!r}"


def _problem(name: str, static: Collection[str], prefixes: Mapping[str, str]) -> str:
    """Why no user can be called so; empty if one can."""
    if problem := email_problem(name):
        return f"{name!r} {problem}" if name else problem
    if is_hash(name):
        return ""
    kind, colon, rest = name.partition(":")
    if not colon:
        return ""
    if kind in ("service", "network"):
        return "" if name in static else f"{name!r}: there is no {kind} {rest!r}"
    if name.startswith(_ENGINE):
        begins = (*(k.decode() for k in KINDS), *filter(None, prefixes.values()))
        return "" if rest.startswith(begins) else f"{name!r} is called {rest!r} by its engine"
    if kind not in prefixes:
        sources = ", ".join(prefixes) or "none"
        return (
            f"{name!r}: no source is called {kind!r} (sources: {sources}), and service: and "
            "network: are what else may come before a colon"
        )
    if not prefixes[kind]:
        return f"{name!r}: names of the source {kind!r} are without its own; write {rest!r}"
    return "" if rest else f"{name!r} names nobody"
