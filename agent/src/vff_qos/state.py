"""What must survive a restart: owners of minors, checkpoints, small values.  SQLite in WAL mode."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple
from sys import intern
from typing import Any

from .account_book import AccountBook
from .core.names import is_hash
from .core.owners import Owner
from .core.policy.overrides import Override
from .state_file import MemoryFile, StateError, StateFile
from .state_reader import ReadFile, is_anothers

__all__ = ["BARRED", "KERNEL_RECORD", "STATIC_MINORS", "State", "StateError"]

#: Name of the value that holds what the last bootstrap made, and what was there before it.
KERNEL_RECORD = "kernel"
#: Name of the one with the minors of static identities, which are never collected.
STATIC_MINORS = "static_minors"
#: Name of the value with users who are kept out from an address (core/policy/barred.py).
BARRED = "barred"
#: Names of values, each before an email; and what is after all of them.
_FORGIVEN, _AFTER_FORGIVEN = "forgiven ", "forgiven!"
#: Tables that hold users, and where.
_NAMED = (("owners", "key"), ("overrides", "email"), ("usage", "key"), ("accounts", "key"))


class State:
    """``state.db`` in the state directory.  Every method raises StateError."""

    def __init__(
        self, directory: str, spare_directory: str = "", file: StateFile | None = None
    ) -> None:
        """As `StateFile`, of another account as `ReadFile`; or with one that is open."""
        if file is None:
            kind = ReadFile if is_anothers(directory) else StateFile
            file = kind(directory, spare_directory)
        self._file = file
        #: What users have moved.
        self.accounts = AccountBook(self._file)

    @classmethod
    def forgetful(cls) -> State:
        """One that lives in this process alone, for what must work where nothing can be kept."""
        return cls("", file=MemoryFile())

    @property
    def is_forgetful(self) -> bool:
        """Whether nothing can be kept."""
        return isinstance(self._file, MemoryFile)

    @property
    def path(self) -> str:
        """Where it is at the moment."""
        return self._file.path

    @property
    def trouble(self) -> str:
        """Why it is not where it belongs; empty while it is."""
        return self._file.trouble

    @property
    def moved_aside(self) -> str:
        """Where a damaged file is now; empty if there was none."""
        return self._file.moved_aside

    def settle(self) -> bool:
        """Bring it back where it belongs; False if there is no room for it yet."""
        return self._file.settle()

    def version(self) -> int:
        """A number that changes when another process has written."""
        return self._file.version()

    def close(self) -> None:
        """Close the database."""
        self._file.close()

    def _write(self, *work: tuple[str, Iterable[tuple[Any, ...]]]) -> None:
        """Statements with their rows, all or nothing."""
        self._file.write([(statement, list(rows)) for statement, rows in work])

    def owners(self, known: Mapping[str, Owner] | None = None) -> list[Owner]:
        """All owners of minors; the ``known`` record of one who is the same in the state.

        10,000 new ones each time that somebody has written would leave megabytes in pieces.
        """
        owners = []
        for key, minor, state, *rest in self._file.read("SELECT * FROM owners"):
            # One string for all: 10,000 of them would take half a megabyte.
            owner = Owner(key, minor, intern(state), *rest)
            before = known.get(key) if known else None
            owners.append(before if before == owner and before is not None else owner)
        return owners

    def save_owners(self, owners: Iterable[Owner], gone: Iterable[Owner] = ()) -> None:
        """Write owners and drop those that are ``gone``, all or nothing."""
        self._write(
            ("DELETE FROM owners WHERE key=?", ((owner.key,) for owner in gone)),
            ("INSERT OR REPLACE INTO owners VALUES (?,?,?,?,?,?,?,?,?)", map(astuple, owners)),
        )

    def overrides(self) -> list[Override]:
        """All temporary overrides, those whose time is over included."""
        return [
            Override(email, origin, json.loads(entry), *rest)
            for email, origin, entry, *rest in self._file.read(
                "SELECT email, origin, entry, until, who, why, created FROM overrides"
            )
        ]

    def save_overrides(self, overrides: Iterable[Override]) -> None:
        """Write overrides, each in the place of the one of the same email and origin.

        The caller holds the lock; the agent puts them in force within a second.
        """
        rows = ((*o[:2], json.dumps(o.entry), *o[3:]) for o in overrides)
        self._write(("INSERT OR REPLACE INTO overrides VALUES (?,?,?,?,?,?,?)", rows))

    def delete_overrides(self, overrides: Iterable[Override]) -> None:
        """Drop overrides, by email and origin.  The caller holds the lock."""
        rows = (override[:2] for override in overrides)
        self._write(("DELETE FROM overrides WHERE email=? AND origin=?", rows))

    def usage(self, key: str | None = None) -> Iterator[tuple[str, int, int, int, Any]]:
        """(email, minor, upload and download counters, usage as JSON) of all, or of one."""
        where, values = ("", ()) if key is None else (" WHERE key=?", (key,))
        query = f"SELECT key, minor, up_seen, down_seen, json FROM usage{where}"
        for row in self._file.read(query, values):
            yield row[0], row[1], row[2], row[3], json.loads(row[4])

    def save_usage(self, rows: Iterable[tuple[str, int, int, int, Any]]) -> None:
        """Write what ``usage`` gives."""
        packed = ((*row[:4], json.dumps(row[4])) for row in rows)
        self._write(("INSERT OR REPLACE INTO usage VALUES (?,?,?,?,?)", packed))

    def delete_usage(self, keys: Iterable[str]) -> None:
        """Forget the usage of some users."""
        self._write(("DELETE FROM usage WHERE key=?", ((key,) for key in keys)))

    def join_usage(
        self, rows: Iterable[tuple[str, int, int, int, Any]], gone: Iterable[str]
    ) -> None:
        """Write what `usage` gives and forget others, all or nothing."""
        packed = ((*row[:4], json.dumps(row[4])) for row in rows)
        self._write(
            ("INSERT OR REPLACE INTO usage VALUES (?,?,?,?,?)", packed),
            ("DELETE FROM usage WHERE key=?", ((key,) for key in gone)),
        )

    def join_overrides(self, overrides: Iterable[Override], gone: Iterable[Override]) -> None:
        """Write overrides and drop others, by email and origin, all or nothing."""
        rows = ((*o[:2], json.dumps(o.entry), *o[3:]) for o in overrides)
        self._write(
            ("INSERT OR REPLACE INTO overrides VALUES (?,?,?,?,?,?,?)", rows),
            ("DELETE FROM overrides WHERE email=? AND origin=?", (o[:2] for o in gone)),
        )

    def forgive(self, email: str) -> None:
        """Have the agent forget what a user has used, for quota and fair use."""
        self.set_value(_FORGIVEN + email, True)

    def forgiven(self) -> list[str]:
        """Emails that `forgive` was asked for."""
        query = "SELECT name FROM vals WHERE name>=? AND name<?"
        names = self._file.read(query, (_FORGIVEN, _AFTER_FORGIVEN))
        return [name[len(_FORGIVEN) :] for (name,) in names]

    def forgotten(self, emails: Iterable[str]) -> None:
        """The agent has done it."""
        self._write(("DELETE FROM vals WHERE name=?", ((_FORGIVEN + e,) for e in emails)))

    def names(self) -> set[str]:
        """All users of whom anything is kept."""
        named = {
            name
            for table, column in _NAMED
            for (name,) in self._file.read(f"SELECT {column} FROM {table}")
            if name >= " "  # other owners of minors have control characters
        }
        return named | {email for email, *_rest in self.get_value(BARRED) or ()}

    def hashes(self) -> set[str]:
        """Those of them that are hashes."""
        return {name for name in self.names() if is_hash(name)}

    def globs(self) -> dict[str, tuple[str, ...]]:
        """Which patterns of the policy fit whom, of users whose names are hashes."""
        rows = self._file.read("SELECT key, json FROM globs")
        return {key: tuple(json.loads(globs)) for key, globs in rows}

    def save_globs(self, globs: Mapping[str, tuple[str, ...]]) -> None:
        """Write what `globs` gives, of some users."""
        rows = ((key, json.dumps(found)) for key, found in globs.items())
        self._write(("INSERT OR REPLACE INTO globs VALUES (?,?)", rows))

    def rename(self, names: Mapping[str, str], globs: Mapping[str, tuple[str, ...]]) -> None:
        """Give users other names ({old: new}), and forget the old ones for good; ``globs`` are all
        that there are from now on.  The caller holds the lock."""
        pairs = [(new, old) for old, new in names.items()]
        rows = [(key, json.dumps(found)) for key, found in globs.items()]
        self.rename_barred(names)
        self._write(
            *(
                (f"UPDATE OR REPLACE {table} SET {column}=? WHERE {column}=?", pairs)
                for table, column in _NAMED
            ),
            ("DELETE FROM globs", [()]),
            ("INSERT INTO globs VALUES (?,?)", rows),
        )
        if names:
            self.scrub()

    def rename_barred(self, names: Mapping[str, str]) -> None:
        """The same of who is kept out from an address."""
        barred = self.get_value(BARRED) or []
        renamed = [[names.get(email, email), *rest] for email, *rest in barred]
        if renamed != barred:
            self.set_value(BARRED, renamed)

    def scrub(self) -> None:
        """Have nothing left in the file of what it held before."""
        self._file.scrub()

    def get_value(self, key: str) -> Any:
        """A small value by name; None if there is none."""
        row = next(self._file.read("SELECT json FROM vals WHERE name=?", (key,)), None)
        return json.loads(row[0]) if row else None

    def set_value(self, key: str, value: Any) -> None:
        """Write a small value (anything JSON has); None removes it."""
        if value is None:
            self._write(("DELETE FROM vals WHERE name=?", [(key,)]))
        else:
            self._write(("INSERT OR REPLACE INTO vals VALUES (?,?)", [(key, json.dumps(value))]))
