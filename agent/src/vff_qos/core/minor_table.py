"""Something for each minor, in 8 bytes: dictionaries of 10,000 classes would take megabytes."""

from __future__ import annotations

from array import array
from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

from .htb import LAST_USER_MINOR

_NONE = -1
#: A list grows by so many places at least.
_STEP = 256

_T = TypeVar("_T")


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
                numbers.extend([_NONE] * (missing + _STEP - 1))
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
        return (minor for minor, _number in self.pairs())

    def items(self) -> ItemsView[int, int]:
        """As that of a dictionary, and without a look-up for each."""
        return _Items(self)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(minor, number) of all, by minor."""
        for pair in enumerate(self._numbers):
            if pair[1] != _NONE:
                yield pair
        yield from sorted(self._shared.items())

    def __len__(self) -> int:
        return len(self._numbers) - self._numbers.count(_NONE) + len(self._shared)


class _Items(ItemsView[int, int]):
    _mapping: MinorTable

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self._mapping.pairs()


class ByMinor(MutableMapping[int, _T]):
    """{minor: an object}; iterates by minor, those that many share last."""

    __slots__ = ("_count", "_objects", "_shared")

    def __init__(self) -> None:
        self._objects: list[_T | None] = []
        # The few that many share have the highest minors.
        self._shared: dict[int, _T] = {}
        self._count = 0

    def get(self, minor: int, default: _T | None = None) -> _T | None:  # type: ignore[override]
        """As that of a dictionary, and without an exception inside."""
        if minor > LAST_USER_MINOR:
            return self._shared.get(minor, default)
        found = self._objects[minor] if 0 <= minor < len(self._objects) else None
        return default if found is None else found

    def __getitem__(self, minor: int) -> _T:
        found = self.get(minor)
        if found is None:
            raise KeyError(minor)
        return found

    def __setitem__(self, minor: int, what: _T) -> None:
        if minor > LAST_USER_MINOR:
            self._shared[minor] = what
            return
        missing = minor + 1 - len(self._objects)
        if missing > 0:
            self._objects.extend([None] * (missing + _STEP - 1))
        self._count += self._objects[minor] is None
        self._objects[minor] = what

    def __delitem__(self, minor: int) -> None:
        if minor > LAST_USER_MINOR:
            del self._shared[minor]
            return
        self[minor]  # raises KeyError
        self._objects[minor] = None
        self._count -= 1

    def __iter__(self) -> Iterator[int]:
        for minor, what in enumerate(self._objects):
            if what is not None:
                yield minor
        yield from sorted(self._shared)

    def __len__(self) -> int:
        return self._count + len(self._shared)

    def values(self) -> list[_T]:  # type: ignore[override]
        """As they are now: what changes meanwhile is not seen."""
        return [what for what in self._objects if what is not None] + [
            self._shared[minor] for minor in sorted(self._shared)
        ]
