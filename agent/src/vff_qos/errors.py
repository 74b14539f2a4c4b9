"""The errors of this program.  Each message is one sentence for a person."""

from __future__ import annotations

import errno
import os


class QosError(Exception):
    """Base of all errors that end a command with one line instead of a traceback."""

    exit_code = 1


class ConfigError(QosError):
    """A file that people write holds something that is not allowed; nothing was changed."""

    exit_code = 2

    def __init__(self, where: str, problem: str, line: int = 0, key: str = "") -> None:
        """``where`` is the file, ``line`` counts from 1 (0: no line), ``key`` is dotted."""
        self.where, self.problem, self.line, self.key = where, problem, line, key
        place = f"{where}:{line}" if line else where
        if not key.isprintable():
            key = key.encode("unicode_escape").decode()
        super().__init__(f"{place}: {key}: {problem}" if key else f"{place}: {problem}")
        self._place = place

    def nameless(self) -> str:
        """The message without a user's name: file and line say whose entry it is."""
        if self.key.startswith("people."):
            # What is wrong are names.
            return f"{self._place}: people: is refused; 'vff-qos check-config' says why"
        return (
            f"{self._place}: users: {self.problem}" if self.key.startswith("users.") else str(self)
        )


class Refused(QosError):
    """The host is not in a state in which we may act (preflight); nothing was changed."""

    exit_code = 2


class Exhausted(QosError):
    """No free minor is left."""


class SourceError(QosError):
    """The identity source cannot be read."""


class KernelRefused(QosError):
    """The kernel answered a request with an error.

    ``code`` is a positive errno (``errno.ENOENT`` ...); ``what`` says what was attempted on what.
    """

    def __init__(self, code: int, what: str) -> None:
        self.code, self.what = code, what
        name = errno.errorcode.get(code, str(code))
        super().__init__(f"{what}: {os.strerror(code)} ({name})")
