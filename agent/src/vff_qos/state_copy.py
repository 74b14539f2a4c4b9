"""The state from one file into another: what goes along when a disk is full, and comes back."""

from __future__ import annotations

import sqlite3

#: Tables that may be large, and only grow: the spare directory, which is memory, takes no copy of
#: them.  What is entered there meanwhile is added at home afterwards.
_HISTORY = ("hours", "days")
#: Tables of SQLite's own are made by it.
_OURS = "FROM sqlite_master WHERE name NOT LIKE 'sqlite%'"


def copy_into(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Fill an empty file with what ``source`` holds, whatever its schema, but for the history."""
    with Transaction(target):
        for (statement,) in source.execute(f"SELECT sql {_OURS} AND sql IS NOT NULL").fetchall():
            target.execute(statement)
        for table in _tables(source):
            if table not in _HISTORY:
                _insert(source, target, table)
        (version,) = source.execute("PRAGMA user_version").fetchone()
        target.execute(f"PRAGMA user_version={version}")


def bring_back(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Have ``target`` hold what ``source`` holds; both have the present schema."""
    for table in _tables(source):
        if table in _HISTORY:
            add = ", ".join(f"{name}={name}+excluded.{name}" for name in ("upload", "download"))
            _insert(source, target, table, f"ON CONFLICT DO UPDATE SET {add}")
        else:
            target.execute(f"DELETE FROM {table}")
            _insert(source, target, table)


def _tables(db: sqlite3.Connection) -> list[str]:
    rows = db.execute(f"SELECT name {_OURS} AND type='table'").fetchall()
    return [str(name) for (name,) in rows]


def _insert(
    source: sqlite3.Connection, target: sqlite3.Connection, table: str, conflict: str = ""
) -> None:
    """Insert the rows of one table, one after the other: there may be many."""
    rows = source.execute(f"SELECT * FROM {table}")
    places = ",".join("?" * len(rows.description))
    target.executemany(f"INSERT INTO {table} VALUES ({places}) {conflict}", rows)


class Transaction:
    """All or nothing."""

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
