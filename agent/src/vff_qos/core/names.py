"""Names of users as they are kept: their emails, or keyed hashes of them (``qos_hash_emails``).

With hashes, an email is in memory and in the policy's files alone: matching with patterns happens
when the proxy names the user, and what is kept is the hash, with the patterns that fitted.

BLAKE2b with a key (RFC 7693) is a message authentication code: who has no key can neither compute
a name nor try guesses.  80 bits: two of 65,000 users have the same name once in 10^14 nodes.
"""

from __future__ import annotations

import re
from _blake2 import blake2b
from collections.abc import Callable, Collection, Iterable, Mapping

#: What names are: emails; hashes; emails, and hashes of users who were not seen since hashing was
#: switched off.
PLAIN, HASHED, MIXED = "plain", "hashed", "mixed"

KEY_BYTES = 32
_PREFIX = "user-"
_DIGEST_BYTES = 10
_SHAPE = re.compile(rf"{_PREFIX}[0-9a-f]{{{2 * _DIGEST_BYTES}}}")


def is_hash(name: str) -> bool:
    """Whether a name looks as a hash does."""
    return _SHAPE.fullmatch(name) is not None


class Names:
    """How emails become names.  ``globs`` says which patterns fit whom, as far as that is known."""

    def __init__(
        self,
        mode: str = PLAIN,
        key: bytes = b"",
        globs: dict[str, tuple[str, ...]] | None = None,
        people: Mapping[str, str] | None = None,
    ) -> None:
        """``key`` is needed but for PLAIN; ``people`` as the property is."""
        self.mode = mode
        #: Whose each identity is that was joined with others (`core.people`): the person's name, of
        #: all others nothing.  Both as they are kept, so that with hashes both are hashes.
        self.people: Mapping[str, str] = people or {}
        # The same as it was written.
        self._written: Mapping[str, str] = {}
        self.globs = globs if globs is not None else {}
        self._key = key
        # Shared, for most users fit the same few.
        self._same: dict[tuple[str, ...], tuple[str, ...]] = {}

    @property
    def are_emails(self) -> bool:
        """Whether all names are emails."""
        return self.mode == PLAIN

    @property
    def fingerprint(self) -> str:
        """Tells one key from another."""
        return self.hash("")

    def hash(self, email: str) -> str:
        """The hash of an email."""
        digest = blake2b(email.encode(), key=self._key, digest_size=_DIGEST_BYTES)
        return f"{_PREFIX}{digest.hexdigest()}"

    def join(self, people: Mapping[str, str]) -> None:
        """Whose identities are whose from now on, {identity: person}, as it was written."""
        self._written = people
        self.people = self.joined(people)

    def joined(self, people: Mapping[str, str]) -> dict[str, str]:
        """The same as it is kept."""
        return {self.alone(identity): self.alone(person) for identity, person in people.items()}

    def alone(self, email: str) -> str:
        """What is kept of an email, or of a hash, whoever's identity it is."""
        return email if self.mode != HASHED or is_hash(email) else self.hash(email)

    def of(self, email: str) -> str:
        """The name of the user who is meant by an email, an identity or a hash."""
        name = self.alone(email)
        return self.people.get(name, name)

    def written(self, email: str) -> str | None:
        """The user's name as people write it; None if only its hash is known."""
        if (person := self._written.get(email)) is not None:
            return person
        is_hashed = self.people and self.mode == HASHED
        return None if is_hashed and self.alone(email) in self.people else email

    def all_of(self, email: str) -> tuple[str, ...]:
        """Every name that an email of a policy's file may have."""
        if self.mode != MIXED or is_hash(email):
            return (self.alone(email),)
        return email, self.hash(email)

    def note(self, name: str, globs: tuple[str, ...]) -> bool:
        """Remember which patterns fit a hash; whether that is news."""
        if self.globs.get(name, ()) == globs:
            return False
        if globs:
            self.globs[name] = self._same.setdefault(globs, globs)
        else:
            del self.globs[name]
        return True

    def forget_others(self, known: Collection[str]) -> None:
        """Forget which patterns fit whoever is not ``known`` any more."""
        for name in self.globs.keys() - known:
            del self.globs[name]

    def renamed(
        self, known: Iterable[str], emails: Iterable[str], fitting: Callable[[str], tuple[str, ...]]
    ) -> dict[str, str]:
        """What names that are kept become in this mode, those that change.

        To hashes all do; back from hashes those of the ``emails`` that somebody knows.  ``fitting``
        gives the patterns that fit an email.
        """
        if self.mode == HASHED:
            found = {name: self.hash(name) for name in known if not is_hash(name)}
            for email, name in found.items():
                self.note(name, fitting(email))
            return found
        if self.mode == MIXED:
            have = set(known)
            hashes = {self.hash(email): email for email in emails if not is_hash(email)}
            return {n: hashes[n] for n in have if n in hashes and hashes[n] not in have}
        return {}
