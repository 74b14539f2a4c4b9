"""What must survive a restart: owners of minors, checkpoints, small values.  SQLite in WAL mode."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from sys import intern
from typing import Any

from .core.owners import Owner
from .core.policy.overrides import Override
from .errors import QosError

#: What leads from each version of the schema to the next.
_UPGRADES = (
    (
        "CREATE TABLE owners (key TEXT PRIMARY KEY, minor INTEGER NOT NULL UNIQUE, "
        "state TEXT NOT NULL, since REAL NOT NULL, moved REAL NOT NULL, "
        "up_seen INTEGER NOT NULL, down_seen INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE TABLE vals (name TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID",
    ),
    (
        "ALTER TABLE owners ADD COLUMN up_bps INTEGER",
        "ALTER TABLE owners ADD COLUMN down_bps INTEGER",
    ),
    (
        "CREATE TABLE overrides (email TEXT NOT NULL, origin TEXT NOT NULL, entry TEXT NOT NULL, "
        "until REAL, who TEXT NOT NULL, why TEXT NOT NULL, created REAL NOT NULL, "
        "PRIMARY KEY (email, origin)) WITHOUT ROWID",
    ),
    (
        "CREATE TABLE usage (key TEXT PRIMARY KEY, minor INTEGER NOT NULL, "
        "up_seen INTEGER NOT NULL, down_seen INTEGER NOT NULL, json TEXT NOT NULL) WITHOUT ROWID",
    ),
)
SCHEMA_VERSION = len(_UPGRADES)


class StateError(QosError):
    """The state cannot be read or written (disk full, wrong owner)."""


class State:
    """``state.db`` in the state directory.  Every method raises StateError."""

    def __init__(self, directory: str) -> None:
        """Open or create; a damaged file is set aside (``moved_aside`` names it) and made anew.

        The kernel still knows marks and classes, so that little is lost with it.
        """
        self.path = os.path.join(directory, "state.db")
        self.moved_aside = ""
        try:
            os.makedirs(directory, mode=0o750, exist_ok=True)
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise self._failed(error) from error
            self.moved_aside = f"{self.path}.damaged-{int(time.time())}"
            os.replace(self.path, self.moved_aside)
            try:
                self._db = self._open()
            except sqlite3.Error as second:
                raise self._failed(second) from second
        except OSError as error:
            raise StateError(f"{directory}: {os.strerror(error.errno or 0)}") from error

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=5, isolation_level=None)
        # WAL readers do not block the writer; NORMAL loses nothing to a crash of ours, and to a
        # power cut only what a reboot makes void anyway.
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA cache_size=-1024")
        if self._schema(db) < SCHEMA_VERSION:
            with _Transaction(db):
                # Another process may have been first.
                for statements in _UPGRADES[self._schema(db) :]:
                    for statement in statements:
                        db.execute(statement)
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        return db

    def _schema(self, db: sqlite3.Connection) -> int:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise StateError(
                f"{self.path}: schema {version} is newer than this program (knows {SCHEMA_VERSION})"
            )
        return version

    def _failed(self, error: sqlite3.Error) -> StateError:
        return StateError(f"{self.path}: {error}")

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def owners(self) -> list[Owner]:
        """All owners of minors."""
        try:
            return [
                # One string for all: 10,000 of them would take half a megabyte.
                Owner(key, minor, intern(state), *rest)
                for key, minor, state, *rest in self._db.execute("SELECT * FROM owners")
            ]
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def save_owners(self, owners: Iterable[Owner], gone: Iterable[Owner] = ()) -> None:
        """Write owners and drop those that are ``gone``, all or nothing."""
        try:
            with self._transaction():
                self._db.executemany(
                    "DELETE FROM owners WHERE key=?", [(owner.key,) for owner in gone]
                )
                self._db.executemany(
                    "INSERT OR REPLACE INTO owners VALUES (?,?,?,?,?,?,?,?,?)",
                    [astuple(owner) for owner in owners],
                )
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def overrides(self) -> list[Override]:
        """All temporary overrides, those whose time is over included."""
        try:
            return [
                Override(email, origin, json.loads(entry), *rest)
                for email, origin, entry, *rest in self._db.execute(
                    "SELECT email, origin, entry, until, who, why, created FROM overrides"
                )
            ]
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def save_overrides(self, overrides: Iterable[Override]) -> None:
        """Write overrides, each in the place of the one of the same email and origin.

        The caller holds the lock; the agent puts them in force within a second.
        """
        rows = [(*o[:2], json.dumps(o.entry), *o[3:]) for o in overrides]
        try:
            with self._transaction():
                self._db.executemany(
                    "INSERT OR REPLACE INTO overrides VALUES (?,?,?,?,?,?,?)", rows
                )
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def delete_overrides(self, overrides: Iterable[Override]) -> None:
        """Drop overrides, by email and origin.  The caller holds the lock."""
        try:
            with self._transaction():
                self._db.executemany(
                    "DELETE FROM overrides WHERE email=? AND origin=?", [o[:2] for o in overrides]
                )
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def usage(self, key: str | None = None) -> Iterator[tuple[str, int, int, int, Any]]:
        """(email, minor, upload and download counters, usage as JSON) of all, or of one."""
        where, values = ("", ()) if key is None else (" WHERE key=?", (key,))
        try:
            for row in self._db.execute(
                f"SELECT key, minor, up_seen, down_seen, json FROM usage{where}", values
            ):
                yield *row[:4], json.loads(row[4])
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def save_usage(self, rows: Iterable[tuple[str, int, int, int, Any]]) -> None:
        """Write what ``usage`` gives."""
        try:
            with self._transaction():
                self._db.executemany(
                    "INSERT OR REPLACE INTO usage VALUES (?,?,?,?,?)",
                    [(*row[:4], json.dumps(row[4])) for row in rows],
                )
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def delete_usage(self, keys: Iterable[str]) -> None:
        """Forget the usage of some users."""
        try:
            with self._transaction():
                self._db.executemany("DELETE FROM usage WHERE key=?", [(key,) for key in keys])
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def get_value(self, key: str) -> Any:
        """A small value by name; None if there is none."""
        try:
            row = self._db.execute("SELECT json FROM vals WHERE name=?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return json.loads(row[0]) if row else None

    def set_value(self, key: str, value: Any) -> None:
        """Write a small value (anything JSON has); None removes it."""
        try:
            if value is None:
                self._db.execute("DELETE FROM vals WHERE name=?", (key,))
            else:
                self._db.execute(
                    "INSERT OR REPLACE INTO vals VALUES (?,?)", (key, json.dumps(value))
                )
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def version(self) -> int:
        """A number that changes when another process has written."""
        try:
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_rest: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")
