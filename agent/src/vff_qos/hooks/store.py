"""What the hooks keep over restarts: whom the panel let in, and what engines have reported.

A file of their own (``StateDirectory=`` of systemd.exec(5)); without a directory it lives in this
process alone.  Secrets are kept as keyed digests.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping

from ..errors import QosError

_FILE = "hooks.db"
_MAKE = """
create table if not exists own (name text primary key, value blob) without rowid;
create table if not exists let_in
    (digest blob primary key, user text not null, at_s real not null) without rowid;
create table if not exists reported
    (user text primary key, bytes integer not null, reports integer not null, at_s real not null)
    without rowid;
"""
#: A row is written anew when it is so old: not with each login.
_RENEW_S = 3_600.0
_MOST_ROWS = 65_536


class Store:
    """Used by all threads; raises QosError where it cannot be opened, and nowhere else."""

    def __init__(self, directory: str) -> None:
        """``directory``: empty for none."""
        path = os.path.join(directory, _FILE) if directory else ":memory:"
        self._lock = threading.Lock()
        #: Why nothing can be written; empty while it can.
        self.trouble = ""
        try:
            if directory:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.executescript("pragma journal_mode=wal; pragma synchronous=off;" + _MAKE)
            self._db.execute("insert or ignore into own values ('key', ?)", (os.urandom(32),))
            ((self._key,),) = self._db.execute("select value from own where name = 'key'")
        except (sqlite3.Error, OSError) as error:
            raise QosError(f"{path}: cannot be opened: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # -- whom the panel let in --------------------------------------------------------------------

    def digest(self, *words: str) -> bytes:
        """What stands for a secret here."""
        text = "\0".join(words).encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, text, hashlib.sha256)

    def let_in(self, digest: bytes, user: str) -> None:
        """The panel has let somebody in."""
        now = time.time()
        with self._lock:
            row = self._row(digest)
            if row is None or row[0] != user or not 0 <= now - row[1] < _RENEW_S:
                self._write("insert or replace into let_in values (?, ?, ?)", [(digest, user, now)])

    def refused(self, digest: bytes) -> None:
        """The panel has refused somebody."""
        with self._lock:
            if self._row(digest) is not None:
                self._write("delete from let_in where digest = ?", [(digest,)])

    def was_let_in(self, digest: bytes, within_s: float) -> str | None:
        """Whom the panel let in with this last, if that is no longer ago; else None.

        As exact as an hour.
        """
        with self._lock:
            row = self._row(digest)
        return row[0] if row is not None and -1 < time.time() - row[1] < within_s else None

    def forget(self, older_s: float) -> None:
        """Rows that count no more, and the oldest where they are too many."""
        with self._lock:
            self._write("delete from let_in where at_s < ?", [(time.time() - older_s,)])
            for table in ("let_in", "reported"):
                self._write(
                    f"delete from {table} where at_s < (select at_s from {table} "
                    f"order by at_s desc limit 1 offset {_MOST_ROWS})",
                    [()],
                )

    def _row(self, digest: bytes) -> tuple[str, float] | None:
        found = self._db.execute("select user, at_s from let_in where digest = ?", (digest,))
        row: tuple[str, float] | None = found.fetchone()
        return row

    # -- what engines have reported ---------------------------------------------------------------

    def add_reported(self, moved: Mapping[str, tuple[int, int]]) -> None:
        """{user: (bytes, reports)} that an engine has told of."""
        now = time.time()
        rows = [(user, count, reports, now) for user, (count, reports) in moved.items()]
        with self._lock:
            self._write(
                "insert into reported values (?, ?, ?, ?) on conflict (user) do update set "
                "bytes = bytes + excluded.bytes, reports = reports + excluded.reports, "
                "at_s = excluded.at_s",
                rows,
            )

    def reported(self) -> dict[str, dict[str, float]]:
        """All that has been reported, by user."""
        with self._lock:
            rows = self._db.execute("select user, bytes, reports, at_s from reported").fetchall()
        return {user: {"bytes": b, "reports": n, "last_s": at} for user, b, n, at in rows}

    def _write(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        """What cannot be written is lost, and said: a full disk keeps nobody out."""
        try:
            self._db.execute("begin")
            self._db.executemany(statement, rows)
            self._db.execute("commit")
            self.trouble = ""
        except sqlite3.Error as error:
            self.trouble = str(error)
            if self._db.in_transaction:
                self._db.execute("rollback")
