"""Reads ``policy.yml`` and its drop-ins: what may be written, and one sentence for what may not.

What looks valid and cannot be meant is refused, too: a file that has been emptied, a pattern that
fits nobody, a guarantee that the limit does not allow.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ..claims.email import MAX_EMAIL_BYTES
from ..document import Document
from ..htb import MAX_WEIGHT
from ..settings import LEAVES
from ..units import format_rate, parse_duration, parse_rate, parse_size
from .model import DEFAULT_LIMITS, Layer, Limits, Pattern, Policy, base_limits, merge
from .terms import CUT, EVICT, REFUSE, RESTRICT, Terms, parse_terms
from .terms import KEYS as TERMS_KEYS

MAX_PATTERNS = 1_000
#: As many as one address has ports.
MAX_CONNECTIONS = 65_536
MAX_DEVICES = 64
_MIN_GRACE_S, _MAX_GRACE_S = 10, 86_400

_PLAN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_YAML_WORDS = ("y", "yes", "n", "no", "on", "off", "true", "false", "null")


def _number(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{value!r} is not a whole number from {low} to {high}")
        return value

    return read


def _one_of(*allowed: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")
        return str(value)

    return read


def _grace(value: object) -> int:
    seconds = parse_duration(str(value))
    if not _MIN_GRACE_S <= seconds <= _MAX_GRACE_S:
        raise ValueError(f"{value!r} is out of range; allowed: 10s to 1d")
    return seconds


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def _blocked(value: object) -> bool | str:
    if value == CUT:
        return CUT
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true, false or {CUT}")
    return value


#: What an entry may say, and how it is read; ``plan`` stands beside these everywhere but in plans.
_KEYS: dict[str, Callable[[object], Any]] = {
    "upload": parse_rate,
    "download": parse_rate,
    "guaranteed": parse_rate,
    "weight": _number(1, MAX_WEIGHT),
    "burst": parse_size,
    "leaf": _one_of(*LEAVES),
    "unlimited": _flag,
    "blocked": _blocked,
    "connections": _number(1, MAX_CONNECTIONS),
    "over_connections": _one_of(EVICT, REFUSE),
    "devices": _number(1, MAX_DEVICES),
    "grace": _grace,
    "over": _one_of(RESTRICT, REFUSE),
}
#: What a plan may say.
PLAN_KEYS = (*_KEYS, *TERMS_KEYS)
ENTRY_KEYS = ("plan", *_KEYS)


def parse_policy(text: bytes, where: str, drop_ins: Sequence[tuple[bytes, str]] = ()) -> Policy:
    """Policy from the text of a file and of its drop-ins, each with its name.

    A later drop-in wins over an earlier one, and all over the file.  Raises ConfigError, which
    names file, line, key and what is allowed.
    """
    doc = _document(text, where, "write 'default: {}' if everybody is to get the built-in limits")
    data = doc.check_keys((), doc.data, ("default", "plans", "match", "users"))
    plans = _plans(doc, data.get("plans", {}))
    terms = _terms(doc, data.get("plans", {}))
    default_layer = _entry(doc, ("default",), data.get("default", {}), plans)
    builder = _Builder(plans, default_layer)
    patterns = _patterns(doc, data.get("match", []), builder)
    for name, plan in plans.items():
        _check_guarantee(doc, ("plans", name), plan, builder.resolve({"plan": name})[1])
    _check_guarantee(doc, ("default",), default_layer, builder.default)
    builder.users(doc, data.get("users", {}))
    for more, name in drop_ins:
        drop_in = _document(more, name, "write 'users: {}' or delete the file if nobody is meant")
        entries = drop_in.check_keys((), drop_in.data, ("users",))
        builder.users(drop_in, entries.get("users", {}))
    return Policy(
        builder.default, builder.limits, plans, terms, patterns, default_layer, builder.layers
    )


def _document(text: bytes, where: str, remedy: str) -> Document:
    """The document; ConfigError if somebody has emptied the file, which cannot be meant."""
    doc = Document(text, where)
    if doc.is_empty:
        raise ConfigError(where, f"holds nothing, which is taken for a mistake; {remedy}")
    return doc


def parse_layer(entry: object, plans: Mapping[str, Layer]) -> Layer:
    """A temporary override from its JSON form; ValueError with one sentence if it is not allowed.

    The keys are those of an entry of ``users``; a plan must be in ``plans``.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r} is not a mapping of {', '.join(ENTRY_KEYS)}")
    if unknown := [key for key in entry if key not in ENTRY_KEYS]:
        raise ValueError(f"{unknown[0]}: unknown key; allowed: {', '.join(ENTRY_KEYS)}")
    try:
        return _read(entry, plans)
    except _Wrong as error:
        raise ValueError(f"{error.key}: {error.problem}" if error.key else error.problem) from error


class _Builder:
    """Resolves entries to limits; equal ones are one object, for there may be 65,000."""

    def __init__(self, plans: dict[str, Layer], default_layer: Layer) -> None:
        self.plans = plans
        self.limits: dict[str, Limits] = {}
        self.layers: dict[str, Layer] = {}
        self._known: dict[tuple[tuple[str, Any], ...], tuple[Layer, Limits]] = {}
        plan = plans.get(default_layer.get("plan", ""), {})
        self.default = merge(DEFAULT_LIMITS, [plan, default_layer])
        self._base = base_limits(plans, default_layer)

    def resolve(self, layer: Layer) -> tuple[Layer, Limits]:
        """The layer and its limits."""
        key = tuple(layer.items())
        if key not in self._known:
            plan = self.plans.get(layer.get("plan", ""), {})
            self._known[key] = layer, merge(self._base, [plan, layer])
        return self._known[key]

    def users(self, doc: Document, users: Any) -> None:
        """Add the entries of one file."""
        if not isinstance(users, dict):
            raise doc.fail(("users",), "must be a mapping of emails to limits")
        for email, value in users.items():
            check_email(doc, ("users", email), email)
            layer = _entry(doc, ("users", email), value, self.plans)
            self.layers[email], self.limits[email] = self.resolve(layer)
            _check_guarantee(doc, ("users", email), layer, self.limits[email])


def check_email(doc: Document, path: tuple[str, ...], email: str) -> None:
    """Raises ConfigError about ``path`` if ``email`` cannot be one."""
    if problem := email_problem(email):
        raise doc.fail(path, problem)


def email_problem(email: str) -> str:
    """What is wrong with an email or a pattern of emails; empty if nothing is."""
    if email and len(email.encode(errors="replace")) <= MAX_EMAIL_BYTES and email.isprintable():
        return ""
    return f"must be 1 to {MAX_EMAIL_BYTES} bytes of printable text"


def pattern_problem(glob: str) -> str:
    """Why a pattern fits nobody whom its writer means; empty if nothing is wrong with it."""
    at = 0
    while (start := glob.find("[", at)) >= 0:
        # As fnmatch reads it: a "]" that comes first stands for itself.
        first = start + (2 if glob[start + 1 : start + 2] == "!" else 1)
        end = glob.find("]", first + 1)
        if end < 0:
            return f"{glob!r} has a '[' without its ']'; '[[]' stands for the character itself"
        for low, high in re.findall(r"(.)-(.)", glob[first:end]):
            if low > high:
                return f"{glob!r} has the range {low}-{high}, which is empty"
        at = end + 1
    return ""


def _check_guarantee(doc: Document, path: tuple[str, ...], layer: Layer, limits: Limits) -> None:
    """The place that names a guarantee must not promise more than its limits let through.

    Who lowers limits elsewhere lowers the guarantee, too: that is no mistake.
    """
    guaranteed_bps = layer.get("guaranteed")
    if guaranteed_bps is None or limits.blocked:
        return
    for direction, limit_bps in (("upload", limits.upload_bps), ("download", limits.download_bps)):
        if limit_bps is not None and guaranteed_bps > limit_bps:
            raise doc.fail(
                (*path, "guaranteed"),
                f"{format_rate(guaranteed_bps)} is above the {direction} limit of "
                f"{format_rate(limit_bps)}; it counts in each direction",
            )


def _plans(doc: Document, plans: Any) -> dict[str, Layer]:
    if not isinstance(plans, dict):
        raise doc.fail(("plans",), "must be a mapping of names to limits")
    return {name: _plan(doc, name, value) for name, value in plans.items()}


def _plan(doc: Document, name: str, value: Any) -> Layer:
    path = ("plans", name)
    if name.lower() in _YAML_WORDS:
        raise doc.fail(path, f"{name!r} means true, false or nothing to YAML; choose another name")
    if not _PLAN_NAME.fullmatch(name):
        raise doc.fail(path, "the name of a plan is 1 to 64 letters, digits or _ . -")
    return _layer(doc, path, doc.check_keys(path, value, PLAN_KEYS), {})


def _terms(doc: Document, plans: dict[str, Any]) -> dict[str, Terms]:
    """Fair use and quotas of the plans that have any; a penalty leads to another plan."""
    found = {
        name: parse_terms(doc, ("plans", name), entry, [other for other in plans if other != name])
        for name, entry in plans.items()
    }
    return {name: terms for name, terms in found.items() if terms}


def _patterns(doc: Document, entries: Any, builder: _Builder) -> tuple[Pattern, ...]:
    if not isinstance(entries, list):
        raise doc.fail(("match",), 'must be a list such as [{pattern: "*.trial", plan: trial}]')
    if len(entries) > MAX_PATTERNS:
        raise doc.fail(("match",), f"has {len(entries)} patterns; allowed: {MAX_PATTERNS}")
    found: dict[str, Pattern] = {}
    for index, value in enumerate(entries):
        path = ("match", str(index))
        entry = doc.check_keys(path, value, ("pattern", *ENTRY_KEYS))
        glob = entry.get("pattern")
        if not isinstance(glob, str):
            raise doc.fail(path, 'needs a pattern in quotes such as "*.trial"')
        check_email(doc, (*path, "pattern"), glob)
        if glob in found:
            raise doc.fail((*path, "pattern"), f"{glob!r} stands twice; only the first counts")
        rest = {key: item for key, item in entry.items() if key != "pattern"}
        if problem := pattern_problem(glob):
            raise doc.fail((*path, "pattern"), problem)
        if "*" in found:
            raise doc.fail(path, "never counts: the pattern '*' before it fits everybody")
        layer, limits = builder.resolve(_layer(doc, path, rest, builder.plans))
        _check_guarantee(doc, path, layer, limits)
        fits = re.compile(fnmatch.translate(glob)).match
        found[glob] = Pattern(glob, fits, layer, limits)
    return tuple(found.values())


class _Wrong(Exception):
    """What is wrong with the value of ``key``, or with all of them (no key)."""

    def __init__(self, key: str, problem: str) -> None:
        self.key, self.problem = key, problem


def _read(entry: Mapping[str, Any], plans: Mapping[str, Layer]) -> Layer:
    """The values of ``entry``, whose keys are known; those of plans alone are left out.

    Raises _Wrong.
    """
    layer: Layer = {}
    for key, value in entry.items():
        try:
            if key == "plan":
                layer[key] = _plan_name(value, plans)
            elif key in _KEYS:
                layer[key] = _KEYS[key](value)
        except ValueError as error:
            raise _Wrong(key, str(error)) from error
    if layer.get("unlimited") and ("upload" in layer or "download" in layer):
        raise _Wrong("", "unlimited stands beside a rate; keep one of them")
    return layer


def _plan_name(value: object, plans: Mapping[str, Layer]) -> str:
    # `plan: 100` is a number to YAML; the name of a plan is text.
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(name, str) or name not in plans:
        raise ValueError(f"there is no plan {value!r}; there are: {', '.join(plans) or 'none'}")
    return name


def _layer(
    doc: Document, path: tuple[str, ...], entry: dict[str, Any], plans: Mapping[str, Layer]
) -> Layer:
    try:
        return _read(entry, plans)
    except _Wrong as error:
        raise doc.fail((*path, error.key) if error.key else path, error.problem) from error


def _entry(doc: Document, path: tuple[str, ...], value: Any, plans: Mapping[str, Layer]) -> Layer:
    return _layer(doc, path, doc.check_keys(path, value, ENTRY_KEYS), plans)
