"""The state as an account sees it that may read it and no more: that of the page."""

from __future__ import annotations

import os
import sqlite3

from .state_file import (
    SCHEMA_VERSION,
    Batch,
    StateError,
    StateFile,
    open_to_read,
    schema_of,
    words_of,
)


class ReadFile(StateFile):
    """One that another account has, and that is read alone: nothing is made, moved or changed."""

    def write(self, batches: list[Batch]) -> None:
        raise StateError(f"{self.path}: belongs to another account, and is read alone")

    def _open_home(self) -> sqlite3.Connection:
        return self._read_alone(self._home)

    def _open_spare(self) -> sqlite3.Connection:
        return self._read_alone(self._spare)

    def _read_alone(self, path: str) -> sqlite3.Connection:
        db = open_to_read(path)
        if db is None:
            raise sqlite3.OperationalError("cannot be read, or is not there yet")
        if (version := schema_of(db, path)) < SCHEMA_VERSION:
            db.close()
            raise sqlite3.OperationalError(f"has schema {version}: the agent has not started yet")
        return db

    def _move(self, error: sqlite3.Error | OSError) -> None:
        raise StateError(f"{self._home}: {words_of(error)}") from error


def is_anothers(directory: str) -> bool:
    """Whether a state directory is another account's, who alone may change what is in it."""
    try:
        return os.geteuid() not in (0, os.stat(directory).st_uid)
    except OSError:
        return False
