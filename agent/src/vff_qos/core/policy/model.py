"""Who gets what: ``policy.yml``, its drop-ins, and the limits that follow from them for an email.

The first rule that knows an email decides: its entry under ``users`` (a drop-in's before that of
``policy.yml``), the first pattern of ``match`` that fits, else ``default``.  What the rule does
not say comes from the plan it names, then from ``default``.  docs/POLICY.md explains it to people.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from ..document import Document
from ..htb import MAX_WEIGHT
from ..rates import parse_rate, parse_size
from ..settings import LEAVES
from .terms import KEYS as TERMS_KEYS
from .terms import Terms, parse_terms

#: An email is a label that the operator chose; the log's grammar bounds it the same way.
MAX_EMAIL_BYTES = 320
MAX_PATTERNS = 1_000
#: Both directions of a blocked user: connections live, and nothing can be done with them.
BLOCKED_BPS = 8_000

_PLAN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_YAML_WORDS = ("y", "yes", "n", "no", "on", "off", "true", "false", "null")
#: Emails are chosen by whoever writes a log line: what is remembered of them is bounded.
_MAX_CACHED = 16_384


class Limits(NamedTuple):
    """What one user may use.  Rates in bit/s; ``None`` is unlimited: only the node's ceiling holds.

    ``guaranteed_bps`` and ``burst_bytes``: None for what the class's other numbers give;
    ``leaf``: empty for the node's.
    """

    upload_bps: int | None
    download_bps: int | None
    guaranteed_bps: int | None = None
    weight: int = 1
    burst_bytes: int | None = None
    leaf: str = ""
    blocked: bool = False


def lowest_of(limits: Iterable[Limits]) -> Limits:
    """The lower of each; unlimited only if all are.  Guarantees, bursts and leaves are dropped."""
    known = list(limits)
    up = [limit.upload_bps for limit in known if limit.upload_bps is not None]
    down = [limit.download_bps for limit in known if limit.download_bps is not None]
    return Limits(
        min(up, default=None),
        min(down, default=None),
        weight=min((limit.weight for limit in known), default=1),
        blocked=any(limit.blocked for limit in known),
    )


DEFAULT_LIMITS = Limits(upload_bps=20_000_000, download_bps=50_000_000)

NO_TERMS = Terms()

#: The keys that one place of the policy gives, with their values: rates in bit/s, sizes in bytes.
Layer = dict[str, Any]


class Pattern(NamedTuple):
    """An entry of ``match``: a glob in the manner of fnmatch.fnmatchcase, what it gives, and the
    limits that follow."""

    glob: str
    fits: Callable[[str], object]
    layer: Layer
    limits: Limits


class Rule(NamedTuple):
    """What decides about an email: ``kind`` is user, pattern or default, ``name`` which one."""

    kind: str
    name: str
    layer: Layer
    limits: Limits


@dataclass(frozen=True)
class Policy:
    """The policy in force.  ``users`` holds the limits of exact emails."""

    default: Limits = DEFAULT_LIMITS
    users: dict[str, Limits] = field(default_factory=dict)
    plans: dict[str, Layer] = field(default_factory=dict)
    #: Fair use and quotas, of plans that have any.
    terms: dict[str, Terms] = field(default_factory=dict)
    patterns: tuple[Pattern, ...] = ()
    default_layer: Layer = field(default_factory=dict)
    user_layers: dict[str, Layer] = field(default_factory=dict)
    _matched: dict[str, Pattern | None] = field(default_factory=dict, compare=False, repr=False)

    def limits(self, email: str) -> Limits:
        """The limits of ``email`` without temporary overrides."""
        limits = self.users.get(email)
        if limits is not None:
            return limits
        pattern = self._match(email) if self.patterns else None
        return pattern.limits if pattern else self.default

    def rule(self, email: str) -> Rule:
        """The rule that decides about ``email``."""
        if email in self.users:
            return Rule("user", email, self.user_layers.get(email, {}), self.users[email])
        if pattern := self._match(email):
            return Rule("pattern", pattern.glob, pattern.layer, pattern.limits)
        return Rule("default", "default", self.default_layer, self.default)

    def layers(self, email: str) -> list[tuple[str, Layer]]:
        """What has a say about ``email``, weakest first: (``default``, ``plan gold``, ...)."""
        rule = self.rule(email)
        found = [*self._plan_of(self.default_layer), ("default", self.default_layer)]
        if rule.kind != "default":
            name = f"{rule.kind} {rule.name}"
            found += [*self._plan_of(rule.layer), (name, rule.layer)]
        return found

    def overlaid(self, email: str, layer: Layer) -> Limits:
        """The limits of ``email`` with ``layer`` (see `parse_layer`) above its own rule.

        It ends a block unless it says ``blocked`` itself.
        """
        rule = self.rule(email)
        below = rule.limits
        if below.blocked:
            own = [*self._plan_of(rule.layer), ("", rule.layer)]
            below = _merge(self._base, [_unblocked(found) for _name, found in own])
        return _merge(below, [*(plan for _name, plan in self._plan_of(layer)), layer])

    def terms_of(self, email: str) -> Terms:
        """The fair use and the quota of ``email``: those of the plan, whole.

        Who has none has that of ``default``, but for those who are unlimited by name.
        """
        if not self.terms:
            return NO_TERMS
        layer = self.rule(email).layer
        if "plan" not in layer and not layer.get("unlimited"):
            layer = self.default_layer
        return self.terms.get(layer.get("plan", ""), NO_TERMS)

    def lowest(self) -> Limits:
        """What everybody has at least: nobody gains by a claim that gives only this.

        Blocked users do not count, or blocking one would throttle all.
        """
        rules = [self.default, *self.users.values(), *(p.limits for p in self.patterns)]
        return lowest_of([limits for limits in rules if not limits.blocked] or [self.default])

    @cached_property
    def names_guarantees(self) -> bool:
        """Whether anybody may have a guaranteed rate that the policy names."""
        rules = [self.default, *self.users.values(), *(p.limits for p in self.patterns)]
        plans = any("guaranteed" in layer for layer in self.plans.values())
        return plans or any(limits.guaranteed_bps is not None for limits in rules)

    @cached_property
    def max_weight(self) -> int:
        """The largest weight that anybody may have."""
        rules = [self.default, *self.users.values(), *(p.limits for p in self.patterns)]
        plans: list[int] = [layer.get("weight", 1) for layer in self.plans.values()]
        return max([*plans, *(limits.weight for limits in rules)])

    @property
    def _base(self) -> Limits:
        """What is below all rules: the default, but where unknown users are blocked, those with a
        rule of their own are not."""
        if not self.default.blocked:
            return self.default
        return _base_limits(self.plans, self.default_layer)

    def _plan_of(self, layer: Layer) -> list[tuple[str, Layer]]:
        name = layer.get("plan")
        return [(f"plan {name}", self.plans.get(name, {}))] if name is not None else []

    def _match(self, email: str) -> Pattern | None:
        try:
            return self._matched[email]
        except KeyError:
            found = next((pattern for pattern in self.patterns if pattern.fits(email)), None)
        if len(self._matched) >= _MAX_CACHED:
            self._matched.clear()
        self._matched[email] = found
        return found


def _merge(base: Limits, layers: Iterable[Layer]) -> Limits:
    """``base``, which is not blocked, below ``layers``, of which the last is the strongest."""
    values: dict[str, Any] = base._asdict()
    for layer in layers:
        if layer.get("unlimited"):
            values["upload_bps"] = values["download_bps"] = None
        for key, name in _FIELDS.items():
            if key in layer:
                values[name] = layer[key]
    if values["blocked"]:
        return Limits(BLOCKED_BPS, BLOCKED_BPS, leaf=values["leaf"], blocked=True)
    return Limits(**values)


def _unblocked(layer: Layer) -> Layer:
    return {key: value for key, value in layer.items() if key != "blocked"}


def _base_limits(plans: dict[str, Layer], default_layer: Layer) -> Limits:
    plan = plans.get(default_layer.get("plan", ""), {})
    return _merge(DEFAULT_LIMITS, [_unblocked(plan), _unblocked(default_layer)])


def _weight(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_WEIGHT:
        raise ValueError(f"{value!r} is not a whole number from 1 to {MAX_WEIGHT}")
    return value


def _leaf(value: object) -> str:
    if value not in LEAVES:
        raise ValueError(f"{value!r} is not one of {', '.join(LEAVES)}")
    return str(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


#: Key of the file -> field of Limits.
_FIELDS = {
    "upload": "upload_bps",
    "download": "download_bps",
    "guaranteed": "guaranteed_bps",
    "weight": "weight",
    "burst": "burst_bytes",
    "leaf": "leaf",
    "blocked": "blocked",
}
#: What an entry may say, and how it is read; ``plan`` stands beside these everywhere but in plans.
_KEYS: dict[str, Callable[[object], Any]] = {
    "upload": parse_rate,
    "download": parse_rate,
    "guaranteed": parse_rate,
    "weight": _weight,
    "burst": parse_size,
    "leaf": _leaf,
    "unlimited": _flag,
    "blocked": _flag,
}
#: What a plan may say.
_PLAN_KEYS = (*_KEYS, *TERMS_KEYS)
_ENTRY_KEYS = ("plan", *_KEYS)


def parse_policy(text: bytes, where: str, drop_ins: Sequence[tuple[bytes, str]] = ()) -> Policy:
    """Policy from the text of a file and of its drop-ins, each with its name.

    A later drop-in wins over an earlier one, and all over the file.  Raises ConfigError, which
    names file, line, key and what is allowed.
    """
    doc = Document(text, where)
    data = doc.check_keys((), doc.data, ("default", "plans", "match", "users"))
    plans = _plans(doc, data.get("plans", {}))
    terms = _terms(doc, data.get("plans", {}))
    default_layer = _entry(doc, ("default",), data.get("default", {}), plans)
    builder = _Builder(plans, default_layer)
    patterns = _patterns(doc, data.get("match", []), builder)
    builder.users(doc, data.get("users", {}))
    for more, name in drop_ins:
        drop_in = Document(more, name)
        entries = drop_in.check_keys((), drop_in.data, ("users",))
        builder.users(drop_in, entries.get("users", {}))
    return Policy(
        builder.default, builder.limits, plans, terms, patterns, default_layer, builder.layers
    )


def parse_layer(entry: object, plans: Mapping[str, Layer]) -> Layer:
    """A temporary override from its JSON form; ValueError with one sentence if it is not allowed.

    The keys are those of an entry of ``users``; a plan must be in ``plans``.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r} is not a mapping of {', '.join(_ENTRY_KEYS)}")
    if unknown := [key for key in entry if key not in _ENTRY_KEYS]:
        raise ValueError(f"{unknown[0]}: unknown key; allowed: {', '.join(_ENTRY_KEYS)}")
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
        self.default = _merge(DEFAULT_LIMITS, [plan, default_layer])
        self._base = _base_limits(plans, default_layer)

    def resolve(self, layer: Layer) -> tuple[Layer, Limits]:
        """The layer and its limits."""
        key = tuple(layer.items())
        if key not in self._known:
            plan = self.plans.get(layer.get("plan", ""), {})
            self._known[key] = layer, _merge(self._base, [plan, layer])
        return self._known[key]

    def users(self, doc: Document, users: Any) -> None:
        """Add the entries of one file."""
        if not isinstance(users, dict):
            raise doc.fail(("users",), "must be a mapping of emails to limits")
        for email, value in users.items():
            check_email(doc, ("users", email), email)
            layer = _entry(doc, ("users", email), value, self.plans)
            self.layers[email], self.limits[email] = self.resolve(layer)


def check_email(doc: Document, path: tuple[str, ...], email: str) -> None:
    """Raises ConfigError about ``path`` if ``email`` cannot be one."""
    if problem := email_problem(email):
        raise doc.fail(path, problem)


def email_problem(email: str) -> str:
    """What is wrong with an email or a pattern of emails; empty if nothing is."""
    if email and len(email.encode(errors="replace")) <= MAX_EMAIL_BYTES and email.isprintable():
        return ""
    return f"must be 1 to {MAX_EMAIL_BYTES} bytes of printable text"


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
    return _layer(doc, path, doc.check_keys(path, value, _PLAN_KEYS), {})


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
        entry = doc.check_keys(path, value, ("pattern", *_ENTRY_KEYS))
        glob = entry.get("pattern")
        if not isinstance(glob, str):
            raise doc.fail(path, 'needs a pattern in quotes such as "*.trial"')
        check_email(doc, (*path, "pattern"), glob)
        if glob in found:
            raise doc.fail((*path, "pattern"), f"{glob!r} stands twice; only the first counts")
        rest = {key: item for key, item in entry.items() if key != "pattern"}
        layer, limits = builder.resolve(_layer(doc, path, rest, builder.plans))
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
    return _layer(doc, path, doc.check_keys(path, value, _ENTRY_KEYS), plans)
