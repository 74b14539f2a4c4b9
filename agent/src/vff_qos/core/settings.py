"""The host's settings: what ``/etc/vff-qos/settings.yml`` may hold, checked whole."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from .document import Document
from .htb import splits
from .rates import parse_rate

LEAVES = ("fq_codel", "pfifo", "cake")
UNKNOWN_UDP = ("pass", "restrict")
SOURCES = ("file", "container", "journal", "webhook")

#: Linux: IFNAMSIZ is 16 with the terminating zero; '/' and white space are not allowed.
_IFNAME = re.compile(r"[^\s/:]{1,15}")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
#: What Docker and Podman accept.
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]{1,247}\.(?:service|scope)")
_LISTEN = re.compile(
    r"unix:/[!-~]{1,106}|(?:127(?:\.\d{1,3}){3}|\[::1\]):(?P<port>\d{1,5})", re.ASCII
)
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}")
_GROUP = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")

PortRange = tuple[int, int]


@dataclass(frozen=True)
class GcSettings:
    """When an idle user is collected; times in seconds, ``pool_max`` in parked classes."""

    idle_s: int = 14_400
    min_age_s: int = 600
    check_conntrack: bool = True
    pool_max: int = 256


@dataclass(frozen=True)
class Settings:
    """All settings of a node; rates in bit/s.

    ``wan`` is an interface name or ``auto`` (the device of the default route).
    ``service_ports`` are closed ranges; empty means all ports.
    """

    wan: str = "auto"
    ifb: str = "vffqos0"
    major: int = 0x5100
    service_ports: tuple[PortRange, ...] = ((443, 443),)
    node_ceil_bps: int = 100_000_000_000
    #: Whether packets are split before they queue (`htb.splits`), also under the kill switch.
    split: bool = False
    unclassified_upload_bps: int = 100_000_000_000
    unclassified_download_bps: int = 100_000_000_000
    leaf: str = "fq_codel"
    take_foreign_root: bool = False
    #: Mark connections from addresses of one user at their first packet.
    early_shaping: bool = False
    #: Pace new connections from addresses that flood the node with them.
    flood_guard: bool = True
    #: What becomes of a new UDP flow of an address where several users live: ``pass`` or
    #: ``restrict``, until a word on it comes.
    unknown_udp: str = "pass"
    #: Inbounds whose log lines hold names that the engine did not check.
    free_text_ports: tuple[PortRange, ...] = ()
    source: str = "file"
    access_log: str = "/var/log/xray/access.log"
    container: str = ""
    journal_unit: str = ""
    #: ``unix:/path`` or ``127.0.0.1:port``.
    webhook_listen: str = ""
    webhook_group: str = ""
    webhook_mode: int = 0o660
    webhook_token: str = ""
    gc: GcSettings = field(default_factory=GcSettings)

    @property
    def origin(self) -> str:
        """Where identities come from, for people."""
        if self.source == "container":
            return f"{self.access_log} in container {self.container}"
        if self.source == "journal":
            return f"the journal of {self.journal_unit or 'container ' + self.container}"
        if self.source == "webhook":
            return f"the webhook at {self.webhook_listen}"
        return self.access_log

    def lifted(self) -> Settings:
        """The same under the kill switch: what people share has no limit either."""
        free = Settings.node_ceil_bps
        return replace(
            self,
            node_ceil_bps=free,
            unclassified_upload_bps=free,
            unclassified_download_bps=free,
        )


def parse_settings(text: bytes, where: str) -> Settings:
    """Settings from the text of a file; ConfigError names file, line, key and what is allowed."""
    doc = Document(text, where)
    data = doc.check_keys(
        (),
        doc.data,
        (
            "wan",
            "ifb",
            "handle",
            "service_ports",
            "free_text_ports",
            "node_ceil",
            "unclassified",
            "leaf",
            "take_foreign_root",
            "early_shaping",
            "flood_guard",
            "unknown_udp",
            "source",
            "access_log",
            "container",
            "journal_unit",
            "webhook_listen",
            "webhook_group",
            "webhook_mode",
            "webhook_token",
            "gc",
        ),
    )
    base = Settings()
    node_ceil_bps = _rate(doc, ("node_ceil",), data, base.node_ceil_bps)
    unclassified = doc.check_keys(
        ("unclassified",), data.get("unclassified", {}), ("upload", "download")
    )
    gc = doc.check_keys(
        ("gc",), data.get("gc", {}), ("idle_s", "min_age_s", "check_conntrack", "pool_max")
    )
    access_log = data.get("access_log", base.access_log)
    if not isinstance(access_log, str) or not access_log.startswith("/"):
        raise doc.fail(("access_log",), f"{access_log!r} is not an absolute path")
    source = _choice(doc, "source", data, SOURCES, base.source)
    webhook_mode = data.get("webhook_mode", "0660")
    # Without quotes YAML makes another number of it.
    if not isinstance(webhook_mode, str) or not re.fullmatch(r"0?[0-7]{3}", webhook_mode):
        raise doc.fail(
            ("webhook_mode",), f"{webhook_mode!r} is not a mode in quotes such as '0660'"
        )
    settings = Settings(
        wan=_ifname(doc, "wan", data, base.wan),
        ifb=_ifname(doc, "ifb", data, base.ifb),
        major=_major(doc, data, base.major),
        service_ports=_ports(doc, "service_ports", data, base.service_ports),
        free_text_ports=_ports(doc, "free_text_ports", data, ()),
        node_ceil_bps=node_ceil_bps,
        split=splits(node_ceil_bps),
        unclassified_upload_bps=_rate(doc, ("unclassified", "upload"), unclassified, node_ceil_bps),
        unclassified_download_bps=_rate(
            doc, ("unclassified", "download"), unclassified, node_ceil_bps
        ),
        leaf=_choice(doc, "leaf", data, LEAVES, base.leaf),
        take_foreign_root=_flag(doc, ("take_foreign_root",), data, base.take_foreign_root),
        unknown_udp=_choice(doc, "unknown_udp", data, UNKNOWN_UDP, base.unknown_udp),
        early_shaping=_flag(doc, ("early_shaping",), data, base.early_shaping),
        flood_guard=_flag(doc, ("flood_guard",), data, base.flood_guard),
        source=source,
        access_log=access_log,
        container=_text(doc, "container", data, _CONTAINER, "the name of a container"),
        journal_unit=_text(doc, "journal_unit", data, _UNIT, "a unit such as 'xray.service'"),
        webhook_listen=_text(
            doc, "webhook_listen", data, _LISTEN, "'unix:/absolute/path' or '127.0.0.1:port'"
        ),
        webhook_group=_text(doc, "webhook_group", data, _GROUP, "the name of a group"),
        webhook_mode=int(webhook_mode, 8),
        webhook_token=_text(
            doc, "webhook_token", data, _TOKEN, "16 to 256 letters, digits or ._~+/=-"
        ),
        gc=GcSettings(
            idle_s=_whole(doc, ("gc", "idle_s"), gc, base.gc.idle_s, 1, 10**9),
            min_age_s=_whole(doc, ("gc", "min_age_s"), gc, base.gc.min_age_s, 0, 10**9),
            check_conntrack=_flag(doc, ("gc", "check_conntrack"), gc, base.gc.check_conntrack),
            pool_max=_whole(doc, ("gc", "pool_max"), gc, base.gc.pool_max, 0, 65_000),
        ),
    )
    _check_source(doc, settings)
    return settings


def _check_source(doc: Document, settings: Settings) -> None:
    """The chosen source has what it needs."""
    if settings.source == "container" and not settings.container:
        raise doc.fail(("container",), "is needed by 'source: container': the container's name")
    if settings.source == "journal" and bool(settings.journal_unit) == bool(settings.container):
        raise doc.fail(
            ("journal_unit",),
            "'source: journal' needs either journal_unit or container, to know whose entries",
        )
    if settings.container and settings.source in ("file", "webhook"):
        raise doc.fail(
            ("container",), f"is read by the sources container and journal, not {settings.source}"
        )
    if settings.source != "webhook":
        return
    if not settings.webhook_listen:
        raise doc.fail(
            ("webhook_listen",),
            "is needed by 'source: webhook': 'unix:/run/vff-qos/webhook.sock' or '127.0.0.1:port'",
        )
    found = _LISTEN.fullmatch(settings.webhook_listen)
    if found and found["port"]:
        if not 1 <= int(found["port"]) <= 65_535:
            raise doc.fail(("webhook_listen",), f"{found['port']} is not a port (1 to 65535)")
        if not settings.webhook_token:
            # A customer's connection through the proxy to 127.0.0.1 comes from a local process.
            raise doc.fail(
                ("webhook_token",),
                "is needed where webhook_listen is a port: without it every customer can post "
                "through the proxy itself; a unix socket needs none",
            )


def _text(
    doc: Document, key: str, data: dict[str, Any], grammar: re.Pattern[str], what: str
) -> str:
    """A string that matches ``grammar``; empty if the key is missing or empty."""
    value = data.get(key, "")
    if value != "" and (not isinstance(value, str) or not grammar.fullmatch(value)):
        # Never the value itself: it may be a secret.
        shown = "the value" if key.endswith("token") else repr(value)
        raise doc.fail((key,), f"{shown} is not {what}")
    return str(value)


def _rate(doc: Document, path: tuple[str, ...], data: dict[str, Any], default: int) -> int:
    if path[-1] not in data:
        return default
    try:
        return parse_rate(data[path[-1]])
    except ValueError as error:
        raise doc.fail(path, str(error)) from error


def _ifname(doc: Document, key: str, data: dict[str, Any], default: str) -> str:
    value = data.get(key, default)
    if not isinstance(value, str) or not _IFNAME.fullmatch(value) or value in (".", ".."):
        raise doc.fail((key,), f"{value!r} is not an interface name (1 to 15 characters)")
    return value


def _major(doc: Document, data: dict[str, Any], default: int) -> int:
    if "handle" not in data:
        return default
    text = str(data["handle"]).rstrip(":")
    # Handles from 8000: on are those that the kernel hands out by itself.
    if not re.fullmatch(r"[0-9a-fA-F]{1,4}", text) or not 0x10 <= int(text, 16) < 0x8000:
        raise doc.fail(("handle",), f"{data['handle']!r} is not a hex number from 10 to 7fff")
    return int(text, 16)


def _ports(
    doc: Document, key: str, data: dict[str, Any], default: tuple[PortRange, ...]
) -> tuple[PortRange, ...]:
    """Port ranges; empty for ``all`` service ports, every port for all free text ports."""
    if key not in data:
        return default
    value = data[key]
    if value == "all":
        return () if key == "service_ports" else ((1, 65_535),)
    if not isinstance(value, list) or (key == "service_ports" and not value):
        raise doc.fail((key,), "must be 'all' or a list of ports and ranges")
    ranges = []
    for index, item in enumerate(value):
        found = _PORTS.fullmatch(str(item))
        low = int(found[1]) if found else 0
        high = int(found[2] or low) if found else 0
        if isinstance(item, bool) or not 1 <= low <= high <= 65_535:
            raise doc.fail(
                (key, str(index)),
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


def _flag(doc: Document, path: tuple[str, ...], data: dict[str, Any], default: bool) -> bool:
    value = data.get(path[-1], default)
    if not isinstance(value, bool):
        raise doc.fail(path, f"{value!r} is not true or false")
    return value


def _whole(
    doc: Document, path: tuple[str, ...], data: dict[str, Any], default: int, low: int, high: int
) -> int:
    value = data.get(path[-1], default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise doc.fail(path, f"{value!r} is not a whole number from {low} to {high}")
    return value
