"""What must survive a restart: owners of minors, checkpoints, small values.  SQLite in WAL mode."""

from __future__ import annotations

import contextlib
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
_FILE = "state.db"
#: Name of the value that holds what the last bootstrap made, and what was there before it.
KERNEL_RECORD = "kernel"


class StateError(QosError):
    """The state cannot be read or written (disk full, wrong owner)."""


class State:
    """``state.db`` in the state directory.  Every method raises StateError.

    Where that cannot be written (disk full, file system read-only), a copy in the spare directory
    takes its place for every process, until `settle` brings it back: /run has room where /var has
    none, and lives as long as the kernel objects that the state is about.
    """

    def __init__(self, directory: str, spare_directory: str = "") -> None:
        """Open or create; a damaged file is set aside (``moved_aside`` names it) and made anew.

        The kernel still knows marks and classes, so that little is lost with it.
        """
        self._home = os.path.join(directory, _FILE)
        self._spare = os.path.join(spare_directory, _FILE) if spare_directory else ""
        self.moved_aside = ""
        #: Why the state is in the spare directory; empty while it is where it belongs.
        self.trouble = ""
        self.path = ""
        #: How often this process has changed between the two.
        self._moves = 0
        self.is_forgetful = False
        if (spare := self._join_spare()) is not None:
            self._db = spare
            return
        try:
            os.makedirs(directory, mode=0o750, exist_ok=True)
            self.path, self._db = self._home, self._open_home()
        except (sqlite3.Error, OSError) as error:
            self._db = self._leave_home(error, None)

    @classmethod
    def forgetful(cls) -> State:
        """One that lives in this process alone, for what must work where nothing can be kept."""
        state = cls.__new__(cls)
        state._home = state.path = ":memory:"
        state._spare = state.moved_aside = ""
        state._moves, state.trouble = 0, "nothing can be kept"
        state.is_forgetful = True
        state._db = _prepared(sqlite3.connect(":memory:", isolation_level=None), state.path)
        return state

    def _open_home(self) -> sqlite3.Connection:
        try:
            return self._open(self._home)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
        self.moved_aside = f"{self._home}.damaged-{int(time.time())}"
        os.replace(self._home, self.moved_aside)
        return self._open(self._home)

    def _open(self, path: str, how: str = "mode=rwc") -> sqlite3.Connection:
        uri = f"file:{_escaped(path)}?{how}"
        return _prepared(sqlite3.connect(uri, 5, isolation_level=None, uri=True), path)

    # -- where it cannot be written ---------------------------------------------------------------

    def _leave_home(
        self, error: sqlite3.Error | OSError, db: sqlite3.Connection | None
    ) -> sqlite3.Connection:
        """Go on in the spare directory with what ``db``, or the file, still tells.

        Raises StateError about ``error`` if that is no remedy.
        """
        failed = StateError(f"{self._home}: {_words(error)}")
        if not self._spare or self.trouble or "locked" in str(error):
            raise failed from error
        made = f"{self._spare}.{os.getpid()}"
        try:
            os.makedirs(os.path.dirname(self._spare), mode=0o755, exist_ok=True)
            with contextlib.closing(sqlite3.connect(made)) as copy:
                source = db or _open_to_read(self._home)
                if source is not None:
                    source.backup(copy)
            self._hand_over(made)
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(made, self._spare)
            os.unlink(made)
            spare = self._open_spare(_words(error))
        except (sqlite3.Error, OSError) as second:
            raise failed from second
        if source is not None:
            source.close()
        return spare

    def _hand_over(self, path: str) -> None:
        """Give a file to the agent's account, whoever has made it."""
        if os.geteuid() == 0:
            directory = os.path.dirname(self._home)
            owner = os.stat(directory if os.path.isdir(directory) else os.path.dirname(path))
            os.chown(path, owner.st_uid, owner.st_gid)
        os.chmod(path, 0o640)

    def _open_spare(self, why: str) -> sqlite3.Connection:
        # Never made here: one that has just gone must not come back empty.
        db = self._open(self._spare, "mode=rw")
        self.path, self._moves = self._spare, self._moves + 1
        self.trouble = (
            f"{self._home}: {why}; until it can be written, the state is in "
            f"{os.path.dirname(self._spare)}, which a reboot empties"
        )
        return db

    def settle(self) -> bool:
        """Bring the state back from the spare directory; False if there is no room for it yet.

        The caller holds the lock.
        """
        self._follow_others()
        if not self.trouble:
            return True
        directory = os.path.dirname(self._home)
        try:
            os.makedirs(directory, mode=0o750, exist_ok=True)
            # The file, its log and its index.
            if _free_bytes(directory) < 3 * os.path.getsize(self._spare) + 65_536:
                return False
            home = self._open_home()
        except (sqlite3.Error, OSError):
            return False
        try:
            with _Transaction(home):
                _copy_rows(self._db, home)
        except sqlite3.Error:
            home.close()
            return False
        self._db.close()
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._spare + end)
        self.path, self._db, self.trouble, self._moves = self._home, home, "", self._moves + 1
        return True

    def _follow_others(self) -> None:
        """Change to the spare directory if another process has; back if it went back."""
        if not self._spare or os.path.exists(self._spare) == bool(self.trouble):
            return
        if self.trouble:
            home = self._open_home()
            self._db.close()
            self._db, self.path, self.trouble = home, self._home, ""
            self._moves += 1
        elif (spare := self._join_spare()) is not None:
            self._db.close()
            self._db = spare

    def _join_spare(self) -> sqlite3.Connection | None:
        """The state in the spare directory if another process has brought it there."""
        if not self._spare or not os.path.exists(self._spare):
            return None
        try:
            return self._open_spare("cannot be written")
        except sqlite3.Error as error:
            if not os.path.exists(self._spare):
                return None  # it has gone home at this moment
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> StateError:
        return StateError(f"{self.path or self._spare}: {error}")

    def _write(self, *work: tuple[str, Iterable[tuple[Any, ...]]]) -> None:
        """Statements with their rows, all or nothing; in the spare directory if need be."""
        batches = [(statement, list(rows)) for statement, rows in work]
        try:
            self._follow_others()
            try:
                self._transact(batches)
            except sqlite3.OperationalError as error:
                self._db = self._leave_home(error, self._db)
                self._transact(batches)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _transact(self, batches: list[tuple[str, list[tuple[Any, ...]]]]) -> None:
        with _Transaction(self._db):
            for statement, rows in batches:
                self._db.executemany(statement, rows)

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        try:
            self._follow_others()
            yield from self._db.execute(query, values)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    # -- what it holds ----------------------------------------------------------------------------

    def owners(self) -> list[Owner]:
        """All owners of minors."""
        return [
            # One string for all: 10,000 of them would take half a megabyte.
            Owner(key, minor, intern(state), *rest)
            for key, minor, state, *rest in self._read("SELECT * FROM owners")
        ]

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
            for email, origin, entry, *rest in self._read(
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
        for row in self._read(query, values):
            yield row[0], row[1], row[2], row[3], json.loads(row[4])

    def save_usage(self, rows: Iterable[tuple[str, int, int, int, Any]]) -> None:
        """Write what ``usage`` gives."""
        packed = ((*row[:4], json.dumps(row[4])) for row in rows)
        self._write(("INSERT OR REPLACE INTO usage VALUES (?,?,?,?,?)", packed))

    def delete_usage(self, keys: Iterable[str]) -> None:
        """Forget the usage of some users."""
        self._write(("DELETE FROM usage WHERE key=?", ((key,) for key in keys)))

    def get_value(self, key: str) -> Any:
        """A small value by name; None if there is none."""
        row = next(self._read("SELECT json FROM vals WHERE name=?", (key,)), None)
        return json.loads(row[0]) if row else None

    def set_value(self, key: str, value: Any) -> None:
        """Write a small value (anything JSON has); None removes it."""
        if value is None:
            self._write(("DELETE FROM vals WHERE name=?", [(key,)]))
        else:
            self._write(("INSERT OR REPLACE INTO vals VALUES (?,?)", [(key, json.dumps(value))]))

    def version(self) -> int:
        """A number that changes when another process has written."""
        try:
            self._follow_others()
            version = int(self._db.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return self._moves << 32 | version


def _prepared(db: sqlite3.Connection, path: str) -> sqlite3.Connection:
    """A connection as all of ours are, with the present schema."""
    # WAL readers do not block the writer; NORMAL loses nothing to a crash of ours, and to a
    # power cut only what a reboot makes void anyway.
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA cache_size=-1024")
    if _schema(db, path) < SCHEMA_VERSION:
        with _Transaction(db):
            # Another process may have been first.
            for statements in _UPGRADES[_schema(db, path) :]:
                for statement in statements:
                    db.execute(statement)
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    return db


def _schema(db: sqlite3.Connection, path: str) -> int:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise StateError(
            f"{path}: schema {version} is newer than this program (knows {SCHEMA_VERSION})"
        )
    return version


def _copy_rows(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Have ``target`` hold what ``source`` holds; both have the present schema."""
    tables = source.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
    for (table,) in tables:
        rows = source.execute(f"SELECT * FROM {table}").fetchall()
        target.execute(f"DELETE FROM {table}")
        if rows:
            places = ",".join("?" * len(rows[0]))
            target.executemany(f"INSERT INTO {table} VALUES ({places})", rows)


def _open_to_read(path: str) -> sqlite3.Connection | None:
    """What a file that cannot be written holds; None if there is none, or nothing can be read."""
    # The second way ignores what stands in the log alone; where the first fails, there is none.
    for how in ("mode=ro", "mode=ro&immutable=1"):
        try:
            db = sqlite3.connect(f"file:{_escaped(path)}?{how}", uri=True)
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except (sqlite3.Error, OSError):
            continue
        return db
    return None


def _escaped(path: str) -> str:
    """A path in a URI of SQLite."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _free_bytes(directory: str) -> int:
    """What this account may still write to a file system."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _words(error: sqlite3.Error | OSError) -> str:
    return os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_rest: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            # What fails for lack of room may have been rolled back by SQLite itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
