"""Who may log in with which secret: the users file of the hooks, checked whole.

A mapping of names to secrets, each in one of these forms::

    alice: 8f2kQpW7                                       as it is
    bob: sha256$9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    carol: scrypt:32768:8:1$c2FsdA$3f...                  as werkzeug writes them
    dave: pbkdf2:sha256:600000$c2FsdA$9c...

A plain SHA-256 is for long random secrets alone: short ones are guessed from it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import NamedTuple

from ...errors import ConfigError
from ..claims.webhook_event import read_email
from ..document import Document

#: A secret comes with each login; nobody types a longer one.
MAX_SECRET_BYTES = 1_024
#: What one look at a slow hash may cost: memory of scrypt (128 * N * r), rounds of PBKDF2.
_MAX_SCRYPT_BYTES = 64 << 20
_MAX_ROUNDS = 4_000_000
_MOST_USERS = 65_000

_SHA256 = re.compile(r"sha256\$([0-9a-f]{64})", re.ASCII)
_SCRYPT = re.compile(r"scrypt:(\d{1,8}):(\d{1,3}):(\d{1,3})\$([!#-~]{1,128})\$([0-9a-f]{32,256})")
_PBKDF2 = re.compile(r"pbkdf2:(sha256|sha512):(\d{1,8})\$([!#-~]{1,128})\$([0-9a-f]{32,256})")
#: What looks like one of these forms and is none is a mistake, not a secret.
_HASHED = re.compile(r"(?:sha256\$|scrypt:|pbkdf2:|\$[a-z0-9-]{1,16}\$)")
_NAME_END = ":"


class Secret(NamedTuple):
    """A secret as the file has it.  ``form`` is plain, sha256, scrypt or pbkdf2."""

    form: str
    #: Digest, or the secret itself.
    value: bytes
    salt: bytes = b""
    #: scrypt: N, r, p; PBKDF2: the hash's name and rounds.
    cost: tuple[str | int, ...] = ()

    @property
    def is_slow(self) -> bool:
        """Whether a look at it is meant to cost time."""
        return self.form in ("scrypt", "pbkdf2")

    def fits(self, given: bytes) -> bool:
        """Whether it is this one; takes the same time wherever they differ."""
        # HMAC pads its key with zeros: to a slow hash "secret" and "secret\0" are the same.
        return b"\0" not in given and hmac.compare_digest(self._made_of(given), self.value)

    def _made_of(self, given: bytes) -> bytes:
        if self.form == "sha256":
            return hashlib.sha256(given).digest()
        if self.form == "scrypt":
            n, r, p = map(int, self.cost)
            return hashlib.scrypt(
                given, salt=self.salt, n=n, r=r, p=p, dklen=len(self.value),
                maxmem=2 * _MAX_SCRYPT_BYTES,
            )  # fmt: skip
        if self.form == "pbkdf2":
            name, rounds = str(self.cost[0]), int(self.cost[1])
            return hashlib.pbkdf2_hmac(name, given, self.salt, rounds, len(self.value))
        return given


class Credentials:
    """All users of a file."""

    def __init__(self, secrets: Mapping[str, Secret]) -> None:
        self.secrets = dict(secrets)
        # Who comes with a secret alone is looked up by its digest: that tells nothing by its time.
        self._by_digest: dict[bytes, str] = {}
        for name, secret in secrets.items():
            if not secret.is_slow:
                digest = secret.value if secret.form == "sha256" else _digest(secret.value)
                self._by_digest[digest] = name

    def candidates(self, given: str) -> list[tuple[str, bytes]]:
        """Whom a login may mean that has one text, ``secret`` or ``name:secret``: names, each with
        the secret that would have to be theirs."""
        found = []
        text = given.encode("utf-8", "surrogatepass")
        if (name := self._by_digest.get(_digest(text))) is not None:
            found.append((name, text))
        name, mark, secret = given.partition(_NAME_END)
        if mark and name in self.secrets:
            found.append((name, secret.encode("utf-8", "surrogatepass")))
        return found


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def parse_users(text: bytes, where: str) -> Credentials:
    """The users of a file; ConfigError names file, line, user and what is allowed.

    Never a secret: the sentence goes into the journal.
    """
    doc = Document(text, where)
    if len(doc.data) > _MOST_USERS:
        raise ConfigError(where, f"holds more than {_MOST_USERS} users")
    secrets: dict[str, Secret] = {}
    owners: dict[bytes, str] = {}
    for name, value in doc.data.items():
        if read_email(name) is None or _NAME_END in name:
            raise _fail(doc, name, "is not a name: printable, without a colon, 255 bytes at most")
        secret = _secret(doc, name, value)
        if not secret.is_slow:
            digest = secret.value if secret.form == "sha256" else _digest(secret.value)
            if digest in owners:
                other = doc.line((owners[digest],))
                raise _fail(doc, name, f"has the same secret as the user of line {other}")
            owners[digest] = name
        secrets[name] = secret
    return Credentials(secrets)


def _fail(doc: Document, name: str, problem: str) -> ConfigError:
    return ConfigError(doc.where, problem, doc.line((name,)), f"users.{name}")


def _secret(doc: Document, name: str, value: object) -> Secret:
    if isinstance(value, bool) or value is None or not isinstance(value, str):
        raise _fail(doc, name, "its secret must be text; put it in quotes")
    if found := _SHA256.fullmatch(value):
        return Secret("sha256", bytes.fromhex(found[1]))
    if (found := _SCRYPT.fullmatch(value)) and len(found[5]) % 2 == 0:
        n, r, p = (int(number) for number in found.group(1, 2, 3))
        if n < 2 or n & (n - 1) or not r or not p or 128 * n * r * p > _MAX_SCRYPT_BYTES:
            raise _fail(
                doc,
                name,
                "its scrypt costs cannot be: N a power of 2, and 128*N*r*p at most 64 MiB",
            )
        return Secret("scrypt", bytes.fromhex(found[5]), found[4].encode(), (n, r, p))
    if (found := _PBKDF2.fullmatch(value)) and len(found[4]) % 2 == 0:
        rounds = int(found[2])
        if not 1 <= rounds <= _MAX_ROUNDS:
            raise _fail(doc, name, f"its PBKDF2 must have 1 to {_MAX_ROUNDS} rounds")
        return Secret("pbkdf2", bytes.fromhex(found[4]), found[3].encode(), (found[1], rounds))
    if _HASHED.match(value):
        raise _fail(
            doc,
            name,
            "its hash is none of sha256$HEX, scrypt:N:r:p$SALT$HEX, pbkdf2:sha256:ROUNDS$SALT$HEX",
        )
    plain = value.encode("utf-8", "surrogatepass")
    if not 1 <= len(plain) <= MAX_SECRET_BYTES:
        raise _fail(doc, name, f"its secret must have 1 to {MAX_SECRET_BYTES} bytes")
    return Secret("plain", plain)


def hash_secret(given: str, salt: str) -> str:
    """A secret as the file may have it: scrypt, 32 MiB and some 60 ms a look."""
    n, r, p = 32_768, 8, 1
    digest = hashlib.scrypt(
        given.encode(), salt=salt.encode(), n=n, r=r, p=p, dklen=64, maxmem=2 * _MAX_SCRYPT_BYTES
    )
    return f"scrypt:{n}:{r}:{p}${salt}${digest.hex()}"
