"""A number for each minor, in 8 bytes: dictionaries of 10,000 classes would take megabytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .htb import LAST_USER_MINOR

_NONE = -1


class MinorTable(Mapping[int, int]):
    """{minor: a number from 0 to 2^63-1}, filled once; iterates by minor."""

    __slots__ = ("_numbers", "_shared")

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        numbers = array("q")
        # The few that many share have the highest minors.
        shared: dict[int, int] = {}
        for minor, number in pairs:
            if minor > LAST_USER_MINOR:
                shared[minor] = number
                continue
            missing = minor + 1 - len(numbers)
            if missing > 0:
                numbers.extend([_NONE] * (missing + 255))
            numbers[minor] = number
        self._numbers, self._shared = numbers, shared

    def __getitem__(self, minor: int) -> int:
        if minor > LAST_USER_MINOR:
            return self._shared[minor]
        number = self._numbers[minor] if 0 <= minor < len(self._numbers) else _NONE
        if number == _NONE:
            raise KeyError(minor)
        return number

    def get(self, minor: int, default: Any = None) -> Any:
        """As that of a dictionary, and without an exception inside."""
        if minor > LAST_USER_MINOR:
            return self._shared.get(minor, default)
        number = self._numbers[minor] if 0 <= minor < len(self._numbers) else _NONE
        return default if number == _NONE else number

    def __iter__(self) -> Iterator[int]:
        for minor, number in enumerate(self._numbers):
            if number != _NONE:
                yield minor
        yield from sorted(self._shared)

    def __len__(self) -> int:
        return len(self._numbers) - self._numbers.count(_NONE) + len(self._shared)
