"""The users file, looked at with each login, and looks at slow hashes that cost no more than once.

With a mistake in it the last good one stays in force; the journal has a sentence.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import threading
import time
from collections.abc import Callable

from ..config import read_file
from ..core import events
from ..core.hooks.credentials import MAX_SECRET_BYTES, Credentials, Secret, parse_users
from ..errors import ConfigError
from ..journal import Journal

#: So many looks at slow hashes at once: each may take 64 MiB, and the processor is the node's.
_SLOW_AT_ONCE = 1
_SLOW_PATIENCE_S = 3.0
#: Wrong secrets from one address: so many at once, and one more after each so many seconds.
_WRONG, _WRONG_S = 8, 5.0
_MAX_ADDRESSES = 4_096


class TooMany(Exception):
    """Too many looks at slow hashes wait already."""


class Users:
    """Who may log in, as the file says at the moment."""

    def __init__(
        self,
        path: str,
        journal: Journal,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``changed`` is called when others are in force.

        Raises ConfigError: at the start there is no last good one.
        """
        self._path, self._journal, self._clock = path, journal, clock
        self._changed = changed
        self._lock = threading.Lock()
        self._slow = threading.Semaphore(_SLOW_AT_ONCE)
        # Secrets that have fitted a slow hash, as keyed digests of this process alone.
        self._key = os.urandom(32)
        self._fitted: dict[str, tuple[Secret, bytes]] = {}
        self._wrong: dict[str, tuple[float, float]] = {}
        self._stamp: tuple[object, ...] = _stamp(path)
        self._credentials = _read(path)
        #: Why the file on disk is not in force; empty if it is.
        self.refused = ""

    def __len__(self) -> int:
        return len(self._credentials.secrets)

    def who(self, given: str, address: str) -> str | None:
        """The user whose ``secret`` or ``name:secret`` this is; None if it is nobody's.

        ``address`` is where it comes from.  Raises TooMany.
        """
        credentials = self._current()
        for name, secret in credentials.candidates(given):
            if self._fits(name, credentials.secrets[name], secret, address):
                return name
        return None

    def is_right(self, name: str, given: str, address: str) -> bool:
        """Whether this is the secret of a user of that name.  Raises TooMany."""
        secret = self._current().secrets.get(name)
        text = given.encode("utf-8", "surrogatepass")
        return secret is not None and self._fits(name, secret, text, address)

    def _current(self) -> Credentials:
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            with self._lock:
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._renew()
        return self._credentials

    def _renew(self) -> None:
        try:
            self._credentials = _read(self._path)
        except ConfigError as error:
            # The journal of a node that keeps no names gets none by this way either.
            self.refused = error.nameless()
            self._journal.tell(
                events.HOOK_USERS_REFUSED, error=self.refused,
                effect="the last good users stay in force",
            )  # fmt: skip
            return
        self.refused = ""
        secrets = self._credentials.secrets
        # Who has another secret now must show it.
        self._fitted = {n: f for n, f in self._fitted.items() if secrets.get(n) == f[0]}
        self._changed()

    def _fits(self, name: str, secret: Secret, given: bytes, address: str) -> bool:
        if len(given) > MAX_SECRET_BYTES:
            return False
        if not secret.is_slow:
            return secret.fits(given)
        digest = hmac.digest(self._key, given, hashlib.sha256)
        known = self._fitted.get(name)
        if known is not None and known[0] == secret and hmac.compare_digest(known[1], digest):
            return True
        if not self._may_try(address):
            return False
        if not self._slow.acquire(timeout=_SLOW_PATIENCE_S):
            raise TooMany
        try:
            fits = secret.fits(given)
        finally:
            self._slow.release()
        if fits:
            self._fitted[name] = secret, digest
            with self._lock:
                self._wrong.pop(address, None)
        return fits

    def _may_try(self, address: str) -> bool:
        """A guess costs us more than whoever guesses: of one address they are few."""
        with self._lock:
            now = self._clock()
            room, since = self._wrong.pop(address, (float(_WRONG), now))
            room = min(_WRONG, room + (now - since) / _WRONG_S)
            if len(self._wrong) >= _MAX_ADDRESSES:
                del self._wrong[next(iter(self._wrong))]
            self._wrong[address] = max(room - 1, 0.0) if room >= 1 else room, now
            return room >= 1


def _stamp(path: str) -> tuple[object, ...]:
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.errno,)
    # The last one changes with the owner and the mode, too.
    return (status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns)


def _read(path: str) -> Credentials:
    """Raises ConfigError, also where others than this account may read the file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise ConfigError(
            path, f"has mode {mode:04o}, and holds secrets; 'chmod 0600 {path}' ends that"
        )
    return parse_users(read_file(path), path)
