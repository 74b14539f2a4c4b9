"""What is to be reported and was not yet: a file of its own, so that it wakes no agent."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from .core.usage_reports import Record, Told, Total, join_told, new_records
from .state_copy import Transaction
from .state_file import StateError

_FILE = "reports.db"
_TABLES = (
    "CREATE TABLE IF NOT EXISTS told (username TEXT PRIMARY KEY, began REAL NOT NULL, "
    "upload INTEGER NOT NULL, download INTEGER NOT NULL, until REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS parts (number INTEGER PRIMARY KEY AUTOINCREMENT, "
    "records TEXT NOT NULL, sent INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE IF NOT EXISTS vals (name TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID",
)
#: Users in one part, and so in one request.
PART = 500
#: While so many bytes wait, nothing is added: the next report is then of a longer time, and
#: nothing is lost.
MAX_BYTES = 8 << 20


class Part(NamedTuple):
    """A part of a report: the requests before ``sent`` were accepted."""

    number: int
    key: str
    records: list[Record]
    sent: int


class ReportQueue:
    """``reports.db`` in the state directory.  Every method raises StateError."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, _FILE)
        with self._errors():
            self._db = sqlite3.connect(self._path, 5, isolation_level=None)
            for statement in _TABLES:
                self._db.execute(statement)
            if os.geteuid() == 0:
                # Whoever has made it, the unit's account must be able to write it.
                owner = os.stat(directory)
                os.chown(self._path, owner.st_uid, owner.st_gid)
        # Numbers begin anew with a new file, and keys must not.
        self._name = self.get("name") or self._named()

    def _named(self) -> str:
        name = uuid.uuid4().hex
        self.set("name", name)
        return name

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"{self._path}: {error}") from error

    def get(self, name: str) -> Any:
        """A small value by name; None if there is none."""
        with self._errors():
            row = self._db.execute("SELECT json FROM vals WHERE name=?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def set(self, name: str, value: Any) -> None:
        """Write a small value."""
        with self._errors():
            self._db.execute("INSERT OR REPLACE INTO vals VALUES (?,?)", (name, json.dumps(value)))

    def cut(
        self,
        totals: Iterable[Total],
        until_s: float,
        node: str,
        people: Mapping[str, str] | None = None,
    ) -> bool:
        """Queue what was moved since the last time; False if there is no room for it now.

        ``people``: who has the account of those who have none any more, by `Names.people`.

        What is queued counts as told, in the same transaction.
        """
        with self._errors(), Transaction(self._db):
            (waiting,) = self._db.execute(
                "SELECT coalesce(sum(length(records)), 0) FROM parts"
            ).fetchone()
            if waiting >= MAX_BYTES:
                return False
            rows = self._db.execute("SELECT username, began, upload, download, until FROM told")
            told = {username: Told(*rest) for username, *rest in rows}
            known = {total.username: total for total in totals}
            # Who has no account any more, or is called otherwise: `qos_hash_emails`.
            gone = [(username,) for username in told.keys() - known.keys()]
            joined = join_told(told, known, people or {})
            records = new_records(known.values(), told, until_s)
            self._db.executemany("DELETE FROM told WHERE username=?", gone)
            rows_of = [(username, *told[username]) for username in joined]
            self._db.executemany("INSERT OR REPLACE INTO told VALUES (?,?,?,?,?)", rows_of)
            for start in range(0, len(records), PART):
                self._add(records[start : start + PART], node)
            self._db.executemany(
                "INSERT OR REPLACE INTO told VALUES (?,?,?,?,?)",
                [
                    (r["username"], r["began"], r["upload_total"], r["download_total"], until_s)
                    for r in records
                ],
            )
        return True

    def _add(self, records: list[Record], node: str) -> None:
        cursor = self._db.execute("INSERT INTO parts (records) VALUES ('')")
        number = cursor.lastrowid
        for index, record in enumerate(records):
            record["node"], record["id"] = node, f"{self._name}-{number}-{index}"
        told = [{k: v for k, v in record.items() if k != "began"} for record in records]
        self._db.execute("UPDATE parts SET records=? WHERE number=?", (json.dumps(told), number))

    def parts(self) -> Iterator[Part]:
        """What waits, the oldest first."""
        with self._errors():
            numbers = self._db.execute("SELECT number FROM parts ORDER BY number").fetchall()
        for (number,) in numbers:
            with self._errors():
                records, sent = self._db.execute(
                    "SELECT records, sent FROM parts WHERE number=?", (number,)
                ).fetchone()
            yield Part(number, f"{self._name}-{number}", json.loads(records), sent)

    @property
    def waiting(self) -> int:
        """How many parts wait."""
        with self._errors():
            (count,) = self._db.execute("SELECT count(*) FROM parts").fetchone()
        return int(count)

    def accepted(self, part: Part, sent: int, of: int) -> None:
        """The first ``sent`` of so many requests of a part were accepted."""
        with self._errors():
            if sent == of:
                self._db.execute("DELETE FROM parts WHERE number=?", (part.number,))
            else:
                self._db.execute("UPDATE parts SET sent=? WHERE number=?", (sent, part.number))
