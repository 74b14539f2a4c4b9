"""The host's settings: what ``/etc/vff-qos/settings.yml`` may hold, checked whole.

Longer than 400 lines: each key with its grammar, its default and its check, in one place.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..sources import kind_of, types
from .claims.email import KINDS, decode_email, qualified
from .document import Document
from .health.report import TEXT
from .htb import splits
from .layout import MAX_TREES, SHARED_CEIL_BPS, Layout, can_be_many
from .source_settings import (
    NAME,
    TAKEN_NAMES,
    Kind,
    SourceSettings,
    covers,
    first_twice,
    read_options,
)
from .units import format_rate, parse_rate

LEAVES = ("fq_codel", "pfifo", "cake")
UNKNOWN_UDP = ("pass", "restrict")
#: In place of a port in `hop`.
HOP_BY_ENGINE = "engine"
#: The ceiling of a node that names none: no line of today is faster.
UNLIMITED_BPS = 100_000_000_000
#: Keys of the short form, where there is one source, and what they are among its options.
_SHORT = {
    "xray_access_log_path": "path",
    "container": "container",
    "journal_unit": "journal_unit",
    "webhook_listen": "listen",
    "webhook_group": "group",
    "webhook_token": "token",
}
_SOURCE_KEYS = ("sources", "identity_source", *_SHORT)
_MOST_SOURCES = 16
#: Where the page is served unless somebody says otherwise.
WEB_BIND = "unix:/run/vff-qos-web.sock"
#: How usage is reported: our own JSON, or as proxy programs tell a ``traffic-url``.
REPORT_FORMATS = ("json", "traffic-url", "traffic-url-global")

#: Linux: '/', ':' and white space are not allowed.
_IFNAME = re.compile(r"[^\s/:]+")
#: IFNAMSIZ and ALTIFNAMSIZ, of alternative names, without the terminating zero: bytes, not letters.
_IFNAME_BYTES, _ALTNAME_BYTES = 15, 127
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
#: Printable, so that it can be a request's first line; without a name and a password in it.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?"
    r"(?:/[!\"$-~]*)?",
    re.ASCII,
)
#: Where the page may be served: a unix socket, or any address and port of this host.
_BIND = re.compile(
    r"unix:/[!-~]{1,106}|(?P<host>\d{1,3}(?:\.\d{1,3}){3}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>\d{1,5})",
    re.ASCII,
)
#: A name that a browser may have asked for.
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)
_LOOPBACK = re.compile(r"127(?:\.\d{1,3}){3}|\[::1\]|localhost", re.ASCII)
_FILE = re.compile(r"/[^\0\n]{1,4095}")
_GROUP = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")

PortRange = tuple[int, int]


class Hop(NamedTuple):
    """A closed range of UDP ports that are one to whoever comes; ``port`` is where the engine
    listens, 0: the engine redirects them by itself."""

    low: int
    high: int
    port: int


@dataclass(frozen=True)
class GcSettings:
    """When an idle user is collected; times in seconds.

    ``pool_min`` and ``pool_max``: how many parked classes there shall be, and may be.
    """

    idle_s: int = 14_400
    min_age_s: int = 600
    check_conntrack: bool = True
    pool_min: int = 1_024
    pool_max: int = 2_048


@dataclass(frozen=True)
class Settings:
    """All settings of a node; rates in bit/s.

    ``wan`` is an interface name or ``auto`` (the device of the default route).
    ``service_ports`` are closed ranges; empty means all ports.
    """

    wan: str = "auto"
    ifb: str = "vffqos0"
    major: int = 0x5100
    #: How many trees are wanted at most; 0: as many as are of use (`core.plan.trees`).
    trees_wanted: int = 1
    #: How many there are; not of this file.
    trees: int = 1
    service_ports: tuple[PortRange, ...] = ((443, 443),)
    node_ceil_bps: int = UNLIMITED_BPS
    #: Whether packets are split before they queue (`htb.splits`), also under the kill switch.
    split: bool = False
    unclassified_upload_bps: int = UNLIMITED_BPS
    unclassified_download_bps: int = UNLIMITED_BPS
    leaf: str = "fq_codel"
    take_foreign_root: bool = False
    #: Mark connections from addresses of one user at their first packet.
    early_shaping: bool = False
    #: Pace new connections from addresses that flood the node with them.
    flood_guard: bool = True
    #: What becomes of a new UDP flow of an address where several users live: ``pass`` or
    #: ``restrict``, until a word on it comes.
    unknown_udp: str = "pass"
    #: Follow QUIC connections that move, by their connection IDs (`plan.quic_rules`).
    follow_quic: bool = True
    #: Ranges of UDP ports among which clients move; they are service ports.
    hops: tuple[Hop, ...] = ()
    #: Keep keyed hashes of users' emails instead of the emails (`core.names`).
    hash_emails: bool = False
    #: Inbounds whose log lines hold names that the engine did not check.
    free_text_ports: tuple[PortRange, ...] = ()
    #: Where identities come from.
    sources: tuple[SourceSettings, ...] = (SourceSettings(),)
    #: Whether equal names of different sources are one user.
    same_names: bool = False
    #: How many days hours and days of accounts are kept.
    usage_hourly_days: int = 31
    usage_daily_days: int = 400
    #: Where usage is reported to, and how; empty: nowhere.
    report_url: str = ""
    report_format: str = "json"
    report_secret_file: str = ""
    report_ca_file: str = ""
    #: Where the page is served, by whom it may be asked for, and the file with its token.
    web_bind: str = WEB_BIND
    web_hosts: tuple[str, ...] = ()
    web_token_file: str = ""
    #: Of how many users there are metrics, those who move most first.
    metrics_users: int = 20
    #: Who may read them in a file; empty: everybody.
    metrics_group: str = ""
    gc: GcSettings = field(default_factory=GcSettings)
    #: Whether there are identities that ports and addresses tell, and ranges that hold all ports
    #: of services (`core.identities`); not of this file.
    has_static: bool = False
    static_ports: tuple[PortRange, ...] = ()

    @property
    def origin(self) -> str:
        """Where identities come from, for people."""
        return ", ".join(source.origin for source in self.sources)

    @property
    def reads_text(self) -> bool:
        """Whether what some source says can be forged."""
        return any(source.trust == TEXT for source in self.sources)

    @property
    def layout(self) -> Layout:
        """Which class is in which tree."""
        return Layout(self.major, self.trees)

    @property
    def tree_ceil_bps(self) -> int:
        """What all users of one tree share; several have equal parts of the node's ceiling."""
        return self.part_bps(self.node_ceil_bps)

    def part_bps(self, whole_bps: int) -> int:
        """The part of a rate that each tree has; where none is asked for there is nothing to
        divide."""
        return whole_bps if whole_bps >= UNLIMITED_BPS else whole_bps // self.trees

    def lifted(self) -> Settings:
        """The same under the kill switch: what people share has no limit either."""
        return replace(
            self,
            node_ceil_bps=UNLIMITED_BPS,
            unclassified_upload_bps=UNLIMITED_BPS,
            unclassified_download_bps=UNLIMITED_BPS,
            # Nobody has a mark then.
            follow_quic=False,
        )


#: What the file may hold: the role's variables without ``qos_``.
KEYS = (
    "if_wan",
    "if_ifb",
    "handle",
    "trees",
    "service_ports",
    "free_text_ports",
    "hash_emails",
    "wan_ceil",
    "unclassified_upload",
    "unclassified_download",
    "leaf",
    "take_foreign_root",
    "early_shaping",
    "flood_guard",
    "unknown_udp",
    "follow_quic",
    "hop",
    *_SOURCE_KEYS,
    "same_names",
    "usage_hourly_days",
    "usage_daily_days",
    "report_url",
    "report_format",
    "report_secret_file",
    "report_ca_file",
    "web_bind",
    "web_hosts",
    "web_token_file",
    "metrics_users",
    "metrics_group",
    "gc_idle_sec",
    "gc_min_age_sec",
    "gc_check_conntrack",
    "gc_pool_min",
    "gc_pool_max",
)


def parse_settings(text: bytes, where: str) -> Settings:
    """Settings from the text of a file; ConfigError names file, line, key and what is allowed."""
    doc = Document(text, where)
    settings = _read(doc, doc.check_keys((), doc.data, KEYS))
    _check_trees(doc, settings)
    _check_report(doc, settings)
    _check_web(doc, settings)
    return settings


def name_prefix(settings: Settings, source: SourceSettings) -> str:
    """How names of a source's users begin; empty where they are users' names as they are.

    They are where `Settings.same_names` says so, and those of the first source that has emails.
    """
    first = next((one for one in settings.sources if one.has_emails), None)
    return "" if settings.same_names or source == first else f"{source.name}:"


def name_prefixes(settings: Settings) -> dict[str, str]:
    """`name_prefix` of each source, by its name."""
    return {source.name: name_prefix(settings, source) for source in settings.sources}


def other_kinds(settings: Settings) -> tuple[bytes, ...]:
    """How names begin that no source without a prefix may give."""
    prefixes = (name_prefix(settings, source).encode() for source in settings.sources)
    return (*KINDS, *filter(None, prefixes))


def identity_of(settings: Settings, source: SourceSettings, raw: bytes) -> bytes:
    """What a source's name for a user is among those of all sources."""
    prefix = name_prefix(settings, source).encode()
    return prefix + raw if prefix else qualified(raw, other_kinds(settings))


def user_of(settings: Settings, source: SourceSettings, name: str) -> str:
    """The user who has this name in a source."""
    return decode_email(identity_of(settings, source, name.encode()))


def salvage_settings(text: bytes) -> Settings:
    """What can be read of a file that holds mistakes; defaults for the rest.

    Only for what lifts limits: that needs the names of our objects, and must not fail.
    """
    good: dict[str, Any] = {}
    # A key at the beginning of a line begins a part that can be read without the others.
    for part in re.split(rb"^(?=\w)", text, flags=re.MULTILINE):
        for key, value in _mapping(part) or _mapping(part.partition(b"\n")[0]):
            if key in _SOURCE_KEYS:
                continue  # right together or not at all, and of no use to whoever lifts limits
            try:
                _read(Document(b"", ""), {key: value})
            except ConfigError:
                continue
            good[key] = value
    return _read(Document(b"", ""), good)


def _mapping(text: bytes) -> list[tuple[str, Any]]:
    """Keys and values of a part of a file; none if it cannot be read."""
    try:
        return list(Document(text, "").data.items())
    except ConfigError:
        return []


def _read(doc: Document, data: dict[str, Any]) -> Settings:
    base = Settings()
    pool_max = _whole(doc, "gc_pool_max", data, base.gc.pool_max, 0, 65_000)
    pool_min = _whole(doc, "gc_pool_min", data, base.gc.pool_min, 0, 65_000)
    ceil_bps = _rate(doc, "wan_ceil", data, base.node_ceil_bps)
    hops = _hops(doc, data)
    service_ports = _with_hops(_ports(doc, "service_ports", data, base.service_ports), hops)
    return Settings(
        wan=_ifname(doc, "if_wan", data, base.wan, _ALTNAME_BYTES),
        ifb=_ifname(doc, "if_ifb", data, base.ifb, _IFNAME_BYTES),
        major=_major(doc, data, base.major),
        trees_wanted=_trees(doc, data, base.trees_wanted),
        service_ports=service_ports,
        free_text_ports=_ports(doc, "free_text_ports", data, ()),
        hash_emails=_flag(doc, "hash_emails", data, base.hash_emails),
        node_ceil_bps=ceil_bps,
        split=splits(ceil_bps),
        unclassified_upload_bps=_rate(doc, "unclassified_upload", data, ceil_bps),
        unclassified_download_bps=_rate(doc, "unclassified_download", data, ceil_bps),
        leaf=_choice(doc, "leaf", data, LEAVES, base.leaf),
        take_foreign_root=_flag(doc, "take_foreign_root", data, base.take_foreign_root),
        early_shaping=_flag(doc, "early_shaping", data, base.early_shaping),
        flood_guard=_flag(doc, "flood_guard", data, base.flood_guard),
        unknown_udp=_choice(doc, "unknown_udp", data, UNKNOWN_UDP, base.unknown_udp),
        follow_quic=_flag(doc, "follow_quic", data, base.follow_quic),
        hops=hops,
        sources=_sources(doc, data, service_ports),
        same_names=_flag(doc, "same_names", data, base.same_names),
        usage_hourly_days=_whole(doc, "usage_hourly_days", data, base.usage_hourly_days, 1, 400),
        usage_daily_days=_whole(doc, "usage_daily_days", data, base.usage_daily_days, 1, 4_000),
        report_url=_text(
            doc, "report_url", data, _URL, "a URL such as 'https://billing.example.com/usage'"
        ),
        report_format=_choice(doc, "report_format", data, REPORT_FORMATS, base.report_format),
        report_secret_file=_text(doc, "report_secret_file", data, _FILE, "an absolute path"),
        report_ca_file=_text(doc, "report_ca_file", data, _FILE, "an absolute path"),
        web_bind=_text(
            doc, "web_bind", data, _BIND, "'unix:/absolute/path', '127.0.0.1:port' or '[::1]:port'"
        )
        or base.web_bind,
        web_hosts=_hosts(doc, data),
        web_token_file=_text(doc, "web_token_file", data, _FILE, "an absolute path"),
        metrics_users=_whole(doc, "metrics_users", data, base.metrics_users, 0, 65_000),
        metrics_group=_text(doc, "metrics_group", data, _GROUP, "the name of a group"),
        gc=GcSettings(
            idle_s=_whole(doc, "gc_idle_sec", data, base.gc.idle_s, 1, 10**9),
            min_age_s=_whole(doc, "gc_min_age_sec", data, base.gc.min_age_s, 0, 10**9),
            check_conntrack=_flag(doc, "gc_check_conntrack", data, base.gc.check_conntrack),
            # Who has made the pool small gets no larger one by a default.
            pool_min=min(pool_min, pool_max),
            pool_max=pool_max,
        ),
    )


def _check_trees(doc: Document, settings: Settings) -> None:
    """Several trees have a ceiling that they can keep, and a handle with room for them."""
    wanted = settings.trees_wanted
    if wanted < 2:
        return
    if settings.node_ceil_bps <= SHARED_CEIL_BPS:
        raise doc.fail(
            ("trees",),
            f"{wanted} trees cannot share wan_ceil {format_rate(settings.node_ceil_bps)}: each "
            "would keep a part of it for its own users; one tree shares it exactly and is fast "
            f"enough up to {format_rate(SHARED_CEIL_BPS)}; set trees to 1 or auto",
        )
    if not can_be_many(settings.major):
        raise doc.fail(
            ("trees",),
            f"{wanted} trees need a handle that ends in 00, such as 5100, not {settings.major:x}: "
            "the lower byte is the number of the tree",
        )


def _sources(
    doc: Document, data: dict[str, Any], service_ports: tuple[PortRange, ...]
) -> tuple[SourceSettings, ...]:
    """The list of them, or the one of the short form."""
    if not data.get("sources"):
        return (_only_source(doc, data),)
    short = [key for key in _SOURCE_KEYS[1:] if key in data]
    if short:
        raise doc.fail(
            ("sources",), f"stands beside {', '.join(short)}, the short form of one source; "
            "leave one of the two out",
        )  # fmt: skip
    entries = data["sources"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MOST_SOURCES:
        raise doc.fail(
            ("sources",), f"must be a list of 1 to {_MOST_SOURCES} sources, each with its type"
        )
    found = tuple(
        _source(doc, str(index), entry, service_ports) for index, entry in enumerate(entries)
    )
    for what, values in (
        ("name", [source.name for source in found]), ("origin", [s.origin for s in found])
    ):  # fmt: skip
        if twice := first_twice(values):
            one, other = twice
            problem = f"sources {one + 1} and {other + 1} of the list are both " + (
                f"called {values[other]!r}; give one a name" if what == "name" else values[other]
            )
            raise doc.fail(("sources", str(other)), problem)
    return found


def _source(
    doc: Document, index: str, entry: Any, service_ports: tuple[PortRange, ...]
) -> SourceSettings:
    """One of the list."""
    path = ("sources", index)
    if not isinstance(entry, dict) or entry.get("type") not in types():
        given = repr(entry.get("type", "")) if isinstance(entry, dict) else "the source"
        raise doc.fail(path, f"its type {given} is not one of {', '.join(types())}")
    kind = kind_of(entry["type"])
    doc.check_keys(path, entry, ("type", "name", "ports", *(o.name for o in kind.options)))
    name = entry.get("name", kind.type)
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in TAKEN_NAMES:
        raise doc.fail(
            (*path, "name"),
            f"{name!r} is not a name: a letter, then letters, digits, _ and -, 32 at most, and "
            f"none of {', '.join(TAKEN_NAMES)}",
        )
    ports: tuple[PortRange, ...] = ()
    if "ports" in entry:
        ports = parse_ports(doc, (*path, "ports"), entry["ports"])
        if not covers(service_ports, ports):
            raise doc.fail((*path, "ports"), "are not all among service_ports")
    return _wanted(kind, name, ports, entry, lambda option, problem: doc.fail(
        (*path, option), problem
    ))  # fmt: skip


def short_forms() -> tuple[str, ...]:
    """Kinds that may be the only source by ``identity_source``: Xray's."""
    return tuple(name for name in types() if kind_of(name).has_emails)


def _only_source(doc: Document, data: dict[str, Any]) -> SourceSettings:
    """The source of the short form, whose options have longer names."""
    kind = kind_of(_choice(doc, "identity_source", data, short_forms(), "file"))
    names = {option: key for key, option in _SHORT.items()}
    known = [option.name for option in kind.options]
    # Others may be set, too, but not this one: it says that somebody means another source.
    if data.get("container") and "container" not in known:
        raise doc.fail(
            ("container",), f"is read by the sources container and journal, not {kind.type}"
        )
    given = {option: data[key] for key, option in _SHORT.items() if key in data}
    return _wanted(kind, kind.type, (), given, lambda option, problem: doc.fail(
        (names.get(option, option),), problem
    ))  # fmt: skip


def _wanted(
    kind: Kind,
    name: str,
    ports: tuple[PortRange, ...],
    given: dict[str, Any],
    fail: Callable[[str, str], ConfigError],
) -> SourceSettings:
    options = read_options(kind, given, fail)
    origin = kind.origin(options)
    return SourceSettings(kind.type, name, ports, options, origin, kind.trust, kind.has_emails)


def _check_report(doc: Document, settings: Settings) -> None:
    """What is reported, and the secret with it, is nobody else's to read."""
    found = _URL.fullmatch(settings.report_url)
    if found and not 1 <= int(found["port"] or 443) <= 65_535:
        raise doc.fail(("report_url",), f"{found['port']} is not a port (1 to 65535)")
    if found and found["scheme"] == "http" and not _LOOPBACK.fullmatch(found["host"]):
        raise doc.fail(
            ("report_url",),
            "must begin with https://; http:// is for an address of this host (127.0.0.1, [::1])",
        )


def _check_web(doc: Document, settings: Settings) -> None:
    """The page is for whoever is on this host, or who has its token."""
    found = _BIND.fullmatch(settings.web_bind)
    if found is None or found["host"] is None:
        return
    if not 1 <= int(found["port"]) <= 65_535:
        raise doc.fail(("web_bind",), f"{found['port']} is not a port (1 to 65535)")
    try:
        address = ipaddress.ip_address(found["host"].strip("[]"))
    except ValueError as error:
        raise doc.fail(("web_bind",), f"{found['host']} is not an address") from error
    if not address.is_loopback and not settings.web_token_file:
        raise doc.fail(
            ("web_token_file",),
            f"is needed where web_bind is not of this host alone ({found['host']} is not): a file "
            "with the token that whoever asks must know",
        )


def _hosts(doc: Document, data: dict[str, Any]) -> tuple[str, ...]:
    """Names that the page may be asked for by, besides those of this host."""
    value = data.get("web_hosts", [])
    if not isinstance(value, list):
        raise doc.fail(("web_hosts",), "must be a list of names such as qos.example.com")
    for index, name in enumerate(value):
        if not isinstance(name, str) or not _HOST.fullmatch(name):
            raise doc.fail(("web_hosts", str(index)), f"{name!r} is not a host's name")
    return tuple(name.lower() for name in value)


def _text(
    doc: Document, key: str, data: dict[str, Any], grammar: re.Pattern[str], what: str
) -> str:
    """A string that matches ``grammar``; empty if the key is missing or empty."""
    value = data.get(key, "")
    if value != "" and (not isinstance(value, str) or not grammar.fullmatch(value)):
        # Never the value itself: it may be a secret.
        shown = "the value" if key.endswith(("token", "url")) else repr(value)
        raise doc.fail((key,), f"{shown} is not {what}")
    return str(value)


def _rate(doc: Document, key: str, data: dict[str, Any], default: int) -> int:
    if key not in data:
        return default
    try:
        return parse_rate(data[key])
    except ValueError as error:
        raise doc.fail((key,), str(error)) from error


def _ifname(doc: Document, key: str, data: dict[str, Any], default: str, most: int) -> str:
    """The name of an interface of at most so many bytes."""
    value = data.get(key, default)
    known = isinstance(value, str) and _IFNAME.fullmatch(value) and value not in (".", "..")
    if not known or len(value.encode(errors="surrogateescape")) > most:
        raise doc.fail((key,), f"{value!r} is not an interface name (1 to {most} bytes)")
    return str(value)


def _major(doc: Document, data: dict[str, Any], default: int) -> int:
    if "handle" not in data:
        return default
    text = str(data["handle"]).rstrip(":")
    # Handles from 8000: on are those that the kernel hands out by itself.
    if not re.fullmatch(r"[0-9a-fA-F]{1,4}", text) or not 0x10 <= int(text, 16) < 0x8000:
        raise doc.fail(("handle",), f"{data['handle']!r} is not a hex number from 10 to 7fff")
    return int(text, 16)


def _trees(doc: Document, data: dict[str, Any], default: int) -> int:
    value = data.get("trees", default)
    if value == "auto":
        return 0
    text = "" if isinstance(value, bool) else str(value)
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MAX_TREES:
        raise doc.fail(("trees",), f"{value!r} is not auto or a whole number from 1 to {MAX_TREES}")
    return int(text)


def _ports(
    doc: Document, key: str, data: dict[str, Any], default: tuple[PortRange, ...]
) -> tuple[PortRange, ...]:
    """Port ranges; empty for ``all`` service ports, every port for all free text ports."""
    if key not in data:
        return default
    value = data[key]
    if value == "all":
        return () if key == "service_ports" else ((1, 65_535),)
    if value == [] and key != "service_ports":
        return ()
    return parse_ports(doc, (key,), value, "'all' or ")


def _hops(doc: Document, data: dict[str, Any]) -> tuple[Hop, ...]:
    """``{20000-50000: 20000}``; ``engine`` in place of the port: the engine redirects them."""
    value = data.get("hop", {})
    if not isinstance(value, dict):
        raise doc.fail(("hop",), "must be a mapping of UDP port ranges, {20000-50000: 20000}")
    found: list[Hop] = []
    for name, target in value.items():
        low, high = _hop_range(doc, name)
        is_port = isinstance(target, int) and not isinstance(target, bool)
        if target != HOP_BY_ENGINE and not (is_port and 1 <= target <= 65_535):
            raise doc.fail(
                ("hop", name), f"{target!r} is neither a port (1 to 65535) nor '{HOP_BY_ENGINE}'"
            )
        found.append(Hop(low, high, 0 if target == HOP_BY_ENGINE else target))
    found.sort()
    for one, next_ in pairwise(found):
        if next_.low <= one.high:
            raise doc.fail(
                ("hop",), f"port {next_.low} is in two ranges, of {one.low} and of {next_.low}"
            )
    for hop in found:
        other = next((o for o in found if o.low <= hop.port <= o.high and o.port != hop.port), None)
        if other is not None:
            # What is redirected is not redirected again.
            raise doc.fail(
                ("hop",),
                f"port {hop.port}, to which {hop.low}-{hop.high} are redirected, is in the range "
                f"{other.low}-{other.high}, which goes elsewhere",
            )
    return tuple(found)


def _hop_range(doc: Document, name: str) -> PortRange:
    found = _PORTS.fullmatch(name)
    low = int(found[1]) if found else 0
    high = int(found[2] or low) if found else 0
    if not 1 <= low <= high <= 65_535:
        raise doc.fail(("hop", name), f"{name!r} is not a range of ports such as '20000-50000'")
    return low, high


def _with_hops(ports: tuple[PortRange, ...], hops: tuple[Hop, ...]) -> tuple[PortRange, ...]:
    """Service ports, among them those where clients hop; none still means all."""
    if not ports or not hops:
        return ports
    targets = [(hop.port, hop.port) for hop in hops if hop.port]
    return merge_ranges([*ports, *((hop.low, hop.high) for hop in hops), *targets])


def parse_ports(
    doc: Document, path: tuple[str, ...], value: Any, or_else: str = ""
) -> tuple[PortRange, ...]:
    """Port ranges from a list of ports and ranges; ConfigError names what is none."""
    if not isinstance(value, list) or not value:
        raise doc.fail(path, f"must be {or_else}a list of ports and ranges")
    ranges = []
    for index, item in enumerate(value):
        found = _PORTS.fullmatch(str(item))
        low = int(found[1]) if found else 0
        high = int(found[2] or low) if found else 0
        if isinstance(item, bool) or not 1 <= low <= high <= 65_535:
            raise doc.fail(
                (*path, str(index)),
                f"{item!r} is not a port (1 to 65535) or a range such as '20000-20100'",
            )
        ranges.append((low, high))
    return merge_ranges(ranges)


def merge_ranges(ranges: list[PortRange]) -> tuple[PortRange, ...]:
    """Sorted, without overlap: two filters for one packet would shape it twice."""
    merged: list[PortRange] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _choice(
    doc: Document, key: str, data: dict[str, Any], allowed: tuple[str, ...], default: str
) -> str:
    value = data.get(key, default)
    if value not in allowed:
        raise doc.fail((key,), f"{value!r} is not one of {', '.join(allowed)}")
    return str(value)


def _flag(doc: Document, key: str, data: dict[str, Any], default: bool) -> bool:
    value = data.get(key, default)
    if not isinstance(value, bool):
        raise doc.fail((key,), f"{value!r} is not true or false")
    return value


def _whole(doc: Document, key: str, data: dict[str, Any], default: int, low: int, high: int) -> int:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise doc.fail((key,), f"{value!r} is not a whole number from {low} to {high}")
    return value
