"""What users have moved, in the state: meters of classes, totals of accounts, hours and days.

The agent, the gc and whoever takes a tree away book here, under the lock.  Rows are written where
they belong at once, and nothing of it is kept in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from .core.accounts import (
    Booking,
    Whose,
    booked_at,
    day_of,
    entries,
    first_entries,
    gone,
    hour_of,
    whose,
)
from .core.minor_table import MinorTable
from .core.owners import Owner
from .state_file import StateFile

_COLUMNS = ("upload", "download")
#: Classes in one transaction: what belongs together is never torn, and no list grows long.
_CHUNK = 1_000
#: At most so many hours and days are forgotten after one reading: a clock that is far ahead for a
#: while must not cost all of them, and nothing waits for it.
_FORGET = 2


class Account(NamedTuple):
    """What somebody has moved since ``since`` (seconds since the epoch), in bytes.

    ``last``: the number of the last day on which it was more.
    """

    number: int
    key: str
    since: float
    upload: int
    download: int
    last: int


#: (key of the account, number of the hour or day, bytes uploaded, bytes downloaded)
Amount = tuple[str, int, int, int]


class AccountBook:
    """Every method raises StateError."""

    def __init__(self, file: StateFile) -> None:
        self._file = file

    def read_at(self, direction: int) -> float | None:
        """When counters of a direction were booked last, in seconds since the epoch."""
        row = next(self._file.read("SELECT at FROM readings WHERE direction=?", (direction,)), None)
        return row[0] if row else None

    def read_until(self) -> float | None:
        """Until when both directions were booked; None if nothing was."""
        read = [at for direction in (0, 1) if (at := self.read_at(direction)) is not None]
        return min(read, default=None)

    def book(self, direction: int, sent: Mapping[int, int], accounts: Whose, now_s: float) -> int:
        """Book what the classes of a direction have sent: {minor: bytes}; returns how many moved.

        The caller holds the lock, and has read ``sent`` since another process wrote.
        """
        before_s = self.read_at(direction)
        if before_s is None:
            found = first_entries(sent)
        else:
            found = entries(sent, self._meters(direction), accounts)
        at_s = booked_at(before_s, now_s)
        hour, day = hour_of(at_s), day_of(at_s)
        booked = 0
        while chunk := list(islice(found, _CHUNK)):
            booked += len(chunk)
            self._write(_COLUMNS[direction], chunk, hour, day, at_s)
        self._file.write([("INSERT OR REPLACE INTO readings VALUES (?,?)", [(direction, now_s)])])
        return booked

    def book_all(
        self,
        owners: Iterable[Owner],
        sent: tuple[Mapping[int, int], Mapping[int, int]],
        now_s: float,
        over: Collection[int] | None = None,
        people: Mapping[str, str] | None = None,
    ) -> None:
        """Book both directions, for who is about to take classes away or to end.

        ``over``: minors of classes in doubt whose bytes wait for nobody any more; None: of all.
        ``people``: whose classes are others' now, as `Names.people`.
        """
        persons = people or {}
        by_minor = {owner.minor: owner for owner in owners}

        def accounts(minor: int) -> Sequence[str]:
            is_over = over is None or minor in over
            found = whose(minor, by_minor.get(minor), {}, is_over)
            return [persons.get(key, key) for key in found]

        for direction, counters in enumerate(sent):
            self.book(direction, counters, accounts, now_s)

    def _write(self, column: str, chunk: list[Booking], hour: int, day: int, at_s: float) -> None:
        amounts = [amount for entry in chunk for amount in entry.amounts]
        add = f"ON CONFLICT DO UPDATE SET {column}={column}+excluded.{column}"
        self._file.write(
            [
                (
                    f"INSERT INTO accounts (key, since, last, {column}) VALUES (?,?,?,?) "
                    f"{add}, last=max(last, excluded.last)",
                    [(key, at_s, day, moved) for key, moved in amounts],
                ),
                *(
                    (
                        f"INSERT INTO {table}s ({table}, account, {column}) "
                        f"SELECT ?, number, ? FROM accounts WHERE key=? {add}",
                        [(when, moved, key) for key, moved in amounts],
                    )
                    for table, when in (("hour", hour), ("day", day))
                ),
                (
                    f"INSERT INTO meters (minor, {column}) VALUES (?,?) "
                    f"ON CONFLICT DO UPDATE SET {column}=excluded.{column}",
                    [(entry.minor, entry.meter) for entry in chunk],
                ),
            ]
        )

    def _meters(self, direction: int) -> MinorTable:
        return MinorTable(self._file.read(f"SELECT minor, {_COLUMNS[direction]} FROM meters"))

    def close(self, there: tuple[Collection[int], Collection[int]]) -> None:
        """Classes that are not there count from 0 when they are made again: minors on (IFB, WAN).

        The caller holds the lock, and makes no class in between.
        """
        for direction, column in enumerate(_COLUMNS):
            if minors := gone(self._meters(direction), there[direction]):
                rows = [(minor,) for minor in minors]
                self._file.write([(f"UPDATE meters SET {column}=0 WHERE minor=?", rows)])

    def join(self, people: Mapping[str, str]) -> None:
        """What accounts have is others' from now on, {key: the other's}, hours and days, too."""
        numbers = {account.key: account.number for account in self.accounts()}
        renamed: list[tuple[Any, ...]] = []
        joined: list[tuple[Any, ...]] = []
        for key, person in people.items():
            number = numbers.pop(key, None)
            if number is None or key == person:
                continue
            if person in numbers:
                joined.append((number, numbers[person]))
            else:
                numbers[person] = number
                renamed.append((person, number))
        work = [("UPDATE accounts SET key=? WHERE number=?", renamed)] if renamed else []
        if joined:
            # All at once: rows are in the order of time, and none is found by its account.
            once: list[tuple[Any, ...]] = [()]
            work += [
                ("CREATE TEMP TABLE joined (old INTEGER PRIMARY KEY, new INTEGER)", once),
                ("INSERT INTO joined VALUES (?,?)", joined),
            ]
            for table in ("hour", "day"):
                work += [
                    (
                        f"INSERT INTO {table}s ({table}, account, upload, download) "
                        f"SELECT {table}, new, sum(upload), sum(download) FROM {table}s "
                        f"JOIN joined ON account=old WHERE true GROUP BY {table}, new "
                        "ON CONFLICT DO UPDATE SET upload=upload+excluded.upload, "
                        "download=download+excluded.download",
                        once,
                    ),
                    (f"DELETE FROM {table}s WHERE account IN (SELECT old FROM joined)", once),
                ]
            theirs = "FROM accounts AS a JOIN joined ON a.number=old WHERE new=accounts.number"
            work += [
                (
                    f"UPDATE accounts SET upload=upload+(SELECT sum(a.upload) {theirs}), "
                    f"download=download+(SELECT sum(a.download) {theirs}), "
                    f"since=min(since, (SELECT min(a.since) {theirs})), "
                    f"last=max(last, (SELECT max(a.last) {theirs})) "
                    "WHERE number IN (SELECT new FROM joined)",
                    once,
                ),
                ("DELETE FROM accounts WHERE number IN (SELECT old FROM joined)", once),
                ("DROP TABLE joined", once),
            ]
        if work:
            self._file.write(work)

    def deleted(self, minors: Iterable[int]) -> None:
        """Classes were booked and deleted."""
        self._file.write([("DELETE FROM meters WHERE minor=?", [(minor,) for minor in minors])])

    def forget(self, now_s: float, hourly_days: int, daily_days: int) -> None:
        """Drop the oldest hours and days that are older than so many days, some at a time."""
        today = day_of(now_s)
        for table, oldest in (
            ("hour", hour_of(now_s - hourly_days * 86_400)),
            ("day", today - daily_days),
        ):
            query = f"SELECT DISTINCT {table} FROM {table}s WHERE {table}<? ORDER BY 1 LIMIT ?"
            rows = list(self._file.read(query, (oldest, _FORGET)))
            if not rows:
                continue
            work = [(f"DELETE FROM {table}s WHERE {table}=?", rows)]
            if table == "day":
                last = today - max(hourly_days, daily_days)
                rest = "DELETE FROM accounts WHERE last<? AND last<(SELECT min(day) FROM days)"
                work.append((rest, [(last,)]))
            self._file.write(work)

    # -- reading it -------------------------------------------------------------------------------

    def accounts(self) -> Iterator[Account]:
        """All accounts, those of nobody included."""
        query = "SELECT number, key, since, upload, download, last FROM accounts"
        return map(Account._make, self._file.read(query))

    def sums(self, unit: str, start: int, end: int) -> Iterator[Amount]:
        """As `amounts` of all accounts, each in one row for the whole time."""
        query = (
            f"SELECT key, ?, moved.upload, moved.download FROM accounts JOIN (SELECT account, "
            f"sum(upload) AS upload, sum(download) AS download FROM {unit}s "
            f"WHERE {unit}>=? AND {unit}<? GROUP BY account) AS moved ON number=account"
        )
        yield from self._file.read(query, (start, start, end))

    def totals(
        self, unit: str, start: int, end: int, users: bool
    ) -> Iterator[tuple[int, int, int]]:
        """(number of the ``hour`` or ``day``, upload, download) of all users together, or of all
        accounts of nobody, whose keys begin with a control character."""
        query = (
            f"SELECT {unit}, sum({unit}s.upload), sum({unit}s.download) FROM {unit}s "
            f"WHERE {unit}>=? AND {unit}<? AND account {{}} IN "
            f"(SELECT number FROM accounts WHERE key<' ') GROUP BY {unit}"
        ).format("NOT" if users else "")
        yield from self._file.read(query, (start, end))

    def amounts(
        self, unit: str, start: int, end: int, numbers: Iterable[int] | None = None
    ) -> Iterator[Amount]:
        """What was moved in each ``hour`` or ``day`` from ``start`` to before ``end``.

        ``numbers``: of these accounts alone, which is faster for a few of them.
        """
        if numbers is None:
            query = (
                f"SELECT key, {unit}, {unit}s.upload, {unit}s.download FROM {unit}s "
                f"JOIN accounts ON number=account WHERE {unit}>=? AND {unit}<?"
            )
            yield from self._file.read(query, (start, end))
            return
        # Rows are in the order of time: each time is looked up by itself, for one account.
        query = (
            "WITH RECURSIVE times(t) AS (VALUES(?) UNION ALL SELECT t+1 FROM times WHERE t+1<?) "
            f"SELECT key, {unit}, {unit}s.upload, {unit}s.download FROM accounts CROSS JOIN times "
            f"CROSS JOIN {unit}s ON {unit}=t AND account=number WHERE number=?"
        )
        for number in numbers:
            yield from self._file.read(query, (start, end, number))
