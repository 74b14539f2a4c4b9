"""Who gets what: ``/etc/vff-qos/policy.yml`` and the limits that follow from it for an email."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .document import Document
from .rates import parse_rate

#: An email is a label that the operator chose; the log's grammar bounds it the same way.
MAX_EMAIL_BYTES = 320


class Limits(NamedTuple):
    """What one user may use, in bit/s.  ``None`` is unlimited: only the node's ceiling holds."""

    upload_bps: int | None
    download_bps: int | None


def lowest_of(limits: Iterable[Limits]) -> Limits:
    """The lower of each direction; unlimited only if all are."""
    known = list(limits)
    up = [limit.upload_bps for limit in known if limit.upload_bps is not None]
    down = [limit.download_bps for limit in known if limit.download_bps is not None]
    return Limits(min(up, default=None), min(down, default=None))


DEFAULT_LIMITS = Limits(upload_bps=20_000_000, download_bps=50_000_000)


@dataclass(frozen=True)
class Policy:
    """The limits in force.  ``users`` holds overrides by exact email."""

    default: Limits = DEFAULT_LIMITS
    users: dict[str, Limits] = field(default_factory=dict)

    def limits(self, email: str) -> Limits:
        """The limits of ``email``: its own entry, else the default."""
        return self.users.get(email, self.default)

    def lowest(self) -> Limits:
        """What everybody has at least: nobody gains by a claim that gives only this."""
        return lowest_of([self.default, *self.users.values()])


def parse_policy(text: bytes, where: str) -> Policy:
    """Policy from the text of a file; ConfigError names file, line, key and what is allowed."""
    doc = Document(text, where)
    data = doc.check_keys((), doc.data, ("default", "users"))
    default = _limits(doc, ("default",), data.get("default", {}), Policy().default)
    users = data.get("users", {})
    if not isinstance(users, dict):
        raise doc.fail(("users",), "must be a mapping of emails to limits")
    parsed = {}
    for email, value in users.items():
        if not email or len(email.encode()) > MAX_EMAIL_BYTES or not email.isprintable():
            raise doc.fail(
                ("users", email), f"must be 1 to {MAX_EMAIL_BYTES} bytes of printable text"
            )
        parsed[email] = _limits(doc, ("users", email), value, default)
    return Policy(default, parsed)


def _limits(doc: Document, path: tuple[str, ...], value: Any, default: Limits) -> Limits:
    entry = doc.check_keys(path, value, ("upload", "download", "unlimited"))
    unlimited = entry.get("unlimited", False)
    if not isinstance(unlimited, bool):
        raise doc.fail((*path, "unlimited"), f"{unlimited!r} is not true or false")
    if unlimited:
        if len(entry) > 1:
            raise doc.fail(path, "unlimited stands beside a rate; keep one of them")
        return Limits(None, None)
    rates: list[int | None] = []
    for key, fallback in (("upload", default.upload_bps), ("download", default.download_bps)):
        if key not in entry:
            rates.append(fallback)
            continue
        try:
            rates.append(parse_rate(entry[key]))
        except ValueError as error:
            raise doc.fail((*path, key), str(error)) from error
    return Limits(*rates)
