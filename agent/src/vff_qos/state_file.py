"""Where the state is: its file, or while that cannot be written, a stand-in in another directory.

/run has room where /var has none, and lives as long as the kernel objects that the state is about.
All processes use the same of the two at any time: whoever writes holds a shared lock on the spare
directory, whoever moves the state an exclusive one, and each looks before it uses its connection.

Longer than 400 lines: opening, moving and upgrading are one protocol of all processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

from .errors import QosError
from .state_copy import Transaction, bring_back, copy_into

_FILE = "state.db"
#: What leads from each version of the schema to the next.
UPGRADES = (
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
    ("CREATE TABLE globs (key TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID",),
    # Accounting: `account_book`.  A zero takes no byte, and a number of bytes 1 to 6.
    (
        "CREATE TABLE accounts (number INTEGER PRIMARY KEY AUTOINCREMENT, "
        "key TEXT NOT NULL UNIQUE, since REAL NOT NULL, last INTEGER NOT NULL, "
        "upload INTEGER NOT NULL DEFAULT 0, download INTEGER NOT NULL DEFAULT 0)",
        "CREATE TABLE meters (minor INTEGER PRIMARY KEY, upload INTEGER NOT NULL DEFAULT 0, "
        "download INTEGER NOT NULL DEFAULT 0)",
        "CREATE TABLE readings (direction INTEGER PRIMARY KEY, at REAL NOT NULL)",
        "CREATE TABLE hours (hour INTEGER NOT NULL, account INTEGER NOT NULL, "
        "upload INTEGER NOT NULL DEFAULT 0, download INTEGER NOT NULL DEFAULT 0, "
        "PRIMARY KEY (hour, account)) WITHOUT ROWID",
        "CREATE TABLE days (day INTEGER NOT NULL, account INTEGER NOT NULL, "
        "upload INTEGER NOT NULL DEFAULT 0, download INTEGER NOT NULL DEFAULT 0, "
        "PRIMARY KEY (day, account)) WITHOUT ROWID",
    ),
)
SCHEMA_VERSION = len(UPGRADES)


class StateError(QosError):
    """The state cannot be read or written (disk full, wrong owner)."""


#: A statement, and the rows that it is for.
Batch = tuple[str, list[tuple[Any, ...]]]


class StateFile:
    """The database, wherever it is.  Every method raises StateError."""

    def __init__(self, directory: str, spare_directory: str = "") -> None:
        """Open or create; a damaged file is set aside (``moved_aside`` names it) and made anew.

        Without a spare directory what cannot be written is an error.
        """
        self._home = os.path.join(directory, _FILE)
        self._spare = os.path.join(spare_directory, _FILE) if spare_directory else ""
        self._gate = -1
        self.path = self._home
        self.moved_aside = ""
        #: Why the state is in the spare directory; empty while it is where it belongs.
        self.trouble = ""
        #: How often this process has changed between the two.
        self.moves = 0
        #: Of the file in the spare directory that is open; 0: it is the one at home.
        self._inode = 0
        self._db: sqlite3.Connection | None = None
        self._open_gate(spare_directory)
        try:
            with self._gated(fcntl.LOCK_SH):
                self._follow()
                if self._db is None:
                    self._db = self._open_home()
        except (sqlite3.Error, OSError) as error:
            with self._gated(fcntl.LOCK_EX):
                self._move(error)

    def _open_gate(self, spare_directory: str) -> None:
        if not spare_directory:
            return
        try:
            os.makedirs(spare_directory, mode=0o755, exist_ok=True)
            self._gate = os.open(spare_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._spare = ""

    @contextlib.contextmanager
    def _gated(self, how: int) -> Iterator[None]:
        if self._gate < 0:
            yield
            return
        fcntl.flock(self._gate, how)
        try:
            yield
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    # -- using it ---------------------------------------------------------------------------------

    def write(self, batches: list[Batch]) -> None:
        """All or nothing; in the spare directory if need be."""
        try:
            with self._gated(fcntl.LOCK_SH):
                self._follow()
                self._transact(batches)
            return
        except sqlite3.OperationalError as error:
            if self._inode:
                raise self._failed(error) from error
            failure = error
        except sqlite3.Error as error:
            raise self._failed(error) from error
        try:
            with self._gated(fcntl.LOCK_EX):
                self._move(failure)
                self._transact(batches)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _transact(self, batches: list[Batch]) -> None:
        with Transaction(self._connection):
            for statement, rows in batches:
                self._connection.executemany(statement, rows)

    def scrub(self) -> None:
        """Have nothing left in the file of what was deleted or changed (VACUUM), in its log, and in
        a copy from before an upgrade."""
        try:
            with self._gated(fcntl.LOCK_SH):
                self._follow()
                self._connection.execute("VACUUM")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                for copy in self._old_copies():
                    os.unlink(copy)
        except OSError as error:
            raise StateError(f"{self.path}: {os.strerror(error.errno or 0)}") from error
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def read(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """Rows."""
        try:
            self._follow()
            yield from self._connection.execute(query, values)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def version(self) -> int:
        """A number that changes when another process has written, and when the place changes."""
        (version,) = next(self.read("PRAGMA data_version"))
        return self.moves << 32 | int(version)

    def close(self) -> None:
        """Close the database."""
        if self._db is not None:
            self._db.close()
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._db is not None
        return self._db

    def _failed(self, error: sqlite3.Error) -> StateError:
        return StateError(f"{self.path}: {error}")

    # -- two places -------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Change to where the state is, if that is not where it was."""
        while (inode := self._spare_inode()) != self._inode:
            try:
                # The spare one is never made here: one that has just gone must not be empty.
                db = self._open_spare() if inode else self._open_home()
            except sqlite3.Error:
                if self._spare_inode() == inode:
                    raise
                continue
            if inode and self._spare_inode() != inode:
                db.close()
            else:
                self._change(db, inode, "cannot be written")

    def _spare_inode(self) -> int:
        if not self._spare:
            return 0
        try:
            return os.stat(self._spare).st_ino
        except FileNotFoundError:
            return 0

    def _change(self, db: sqlite3.Connection, inode: int, why: str = "") -> None:
        if self._db is not None:
            self._db.close()
        self._db, self._inode, self.moves = db, inode, self.moves + 1
        self.path, self.trouble = self._home, ""
        if inode:
            self.path = self._spare
            self.trouble = (
                f"{self._home}: {why}; until it can be written, the state is in "
                f"{os.path.dirname(self._spare)}, which a reboot empties"
            )

    def _open_spare(self) -> sqlite3.Connection:
        return _open(self._spare, "mode=rw")

    def _open_home(self) -> sqlite3.Connection:
        os.makedirs(os.path.dirname(self._home), mode=0o750, exist_ok=True)
        try:
            self._keep_old()
            db = _open(self._home)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self.moved_aside = f"{self._home}.damaged-{int(time.time())}"
            os.replace(self._home, self.moved_aside)
            db = _open(self._home)
        _let_group_read(self._home)
        return db

    def _keep_old(self) -> None:
        """Copy a file of an older schema before it is upgraded, as ``state.db.schema-5``: there is
        a way back to the program that made it.  Raises sqlite3.Error, OSError."""
        if not os.path.exists(self._home):
            return
        with contextlib.closing(sqlite3.connect(self._home, 5, isolation_level=None)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if not 0 < version < SCHEMA_VERSION:
                return
            made = f"{self._home}.{os.getpid()}"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made)  # of a process that had our number
            try:
                db.execute("VACUUM INTO ?", (made,))
                with contextlib.closing(sqlite3.connect(made)) as copy:
                    (copied,) = copy.execute("PRAGMA user_version").fetchone()
                if copied == version:  # else another process was first, and has the copy
                    self._hand_over(made)
                    for older in self._old_copies():
                        os.unlink(older)
                    os.replace(made, f"{self._home}.schema-{version}")
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(made)

    def _old_copies(self) -> list[str]:
        return glob.glob(f"{glob.escape(self._home)}.schema-*")

    def _move(self, error: sqlite3.Error | OSError) -> None:
        """Go on in the spare directory with what can be read; under the exclusive lock.

        Raises StateError about ``error`` if that is no remedy.
        """
        failed = StateError(f"{self._home}: {words_of(error)}")
        if not self._spare or "locked" in str(error):
            raise failed from error
        made = f"{self._spare}.{os.getpid()}"
        try:
            self._follow()
            if self._inode:  # another process was first
                return
            with contextlib.closing(sqlite3.connect(made)) as copy:
                source = self._db or open_to_read(self._home)
                if source is not None:
                    copy_into(source, copy)
                if source is not self._db and source is not None:
                    source.close()
            self._hand_over(made)
            os.replace(made, self._spare)
            self._change(self._open_spare(), self._spare_inode(), words_of(error))
        except (sqlite3.Error, OSError) as second:
            raise failed from second

    def _hand_over(self, path: str) -> None:
        """Give a file to the agent's account, whoever has made it."""
        if os.geteuid() == 0:
            directory = os.path.dirname(self._home)
            owner = os.stat(directory if os.path.isdir(directory) else os.path.dirname(path))
            os.chown(path, owner.st_uid, owner.st_gid)
        os.chmod(path, 0o640)

    def settle(self) -> bool:
        """Bring the state back from the spare directory; False if there is no room for it yet."""
        with self._gated(fcntl.LOCK_EX):
            try:
                self._follow()
                return not self._inode or self._go_home()
            except (sqlite3.Error, OSError):
                return False

    def _go_home(self) -> bool:
        directory = os.path.dirname(self._home)
        # The file, its log and its index.
        if _free_bytes(directory) < 3 * os.path.getsize(self._spare) + 65_536:
            return False
        home = self._open_home()
        try:
            with Transaction(home):
                bring_back(self._connection, home)
        except sqlite3.Error:
            home.close()
            raise
        self._change(home, 0)
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._spare + end)
        return True


class MemoryFile(StateFile):
    """One that lives in this process alone, for what must work where nothing can be kept."""

    def __init__(self) -> None:
        super().__init__("")

    def _open_home(self) -> sqlite3.Connection:
        return _prepared(sqlite3.connect(":memory:", isolation_level=None), self.path)


def _open(path: str, how: str = "mode=rwc") -> sqlite3.Connection:
    uri = f"file:{_escaped(path)}?{how}"
    return _prepared(sqlite3.connect(uri, 5, isolation_level=None, uri=True), path)


def _prepared(db: sqlite3.Connection, path: str) -> sqlite3.Connection:
    """A connection as all of ours are, with the present schema."""
    # WAL readers do not block the writer; NORMAL loses nothing to a crash of ours, and to a
    # power cut only what a reboot makes void anyway.
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA cache_size=-256")
    if schema_of(db, path) < SCHEMA_VERSION:
        with Transaction(db):
            # Another process may have been first.
            for statements in UPGRADES[schema_of(db, path) :]:
                for statement in statements:
                    db.execute(statement)
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    return db


def schema_of(db: sqlite3.Connection, path: str) -> int:
    """The version of a file's schema.  Raises StateError if it is younger than this program."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise StateError(
            f"{path}: schema {version} is newer than this program (knows {SCHEMA_VERSION}); take "
            f"the version that made it, or move {path}.schema-{SCHEMA_VERSION} there if it exists"
        )
    return version


def _let_group_read(path: str) -> None:
    """The page's account is in the agent's group, whatever mask the file was made with.

    SQLite makes log and index with the file's own mode; those of before may be there.
    """
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path + end)
            if status.st_uid == os.geteuid() and not status.st_mode & 0o040:
                os.chmod(path + end, 0o640)


def open_to_read(path: str) -> sqlite3.Connection | None:
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


def words_of(error: sqlite3.Error | OSError) -> str:
    """What has failed, for people."""
    return os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
