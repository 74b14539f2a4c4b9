"""Xray's own configuration, as far as limits depend on it.  Pure: texts in, findings out.

Longer than 400 lines: each rule with what it looks at, for all kinds of sources of an Xray.

Source: docs of Xray's "log", "inbounds" and "sockopt", and its JSON reader, which takes comments
and trailing commas (infra/conf/serial/loader.go).
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..settings import PortRange, Settings
from ..source_settings import ACCESS_LOG, SourceSettings, sources_of
from .findings import DEGRADED, OK, SHOW_CLIENTS, Finding

#: A string, or a comment: what stands in a string is none.
_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|/\*.*?\*/|#[^\n]*', re.DOTALL)
_TRAILING = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])')
#: Protocols whose users have an email, and where the list of them stands.
_WITH_USERS = {
    "vless": "clients", "vmess": "clients", "trojan": "clients", "shadowsocks": "clients",
    "hysteria": "clients",
}  # fmt: skip
_NO_LOG = "none"
#: Types of sources that read what Xray writes.
_TEXTS = ("file", "container", "journal")
#: All that it is heard of by.
SOURCES = (*_TEXTS, "webhook")
_ALL: tuple[PortRange, ...] = ((0, 65_535),)
#: Names in findings; the rest is a number.
_NAMED = 3


@dataclass(frozen=True)
class Inbound:
    """One inbound.  ``ports`` are closed ranges; ``without_email`` counts users."""

    tag: str
    protocol: str
    listen: str
    ports: tuple[PortRange, ...]
    users: int = 0
    without_email: int = 0
    #: Whether names that its users choose are logged unchecked within accepted lines.
    forgeable: bool = False
    proxy_protocol: bool = False
    trusted_headers: tuple[str, ...] = ()

    @property
    def is_public(self) -> bool:
        """Whether it listens for others than this host."""
        return not self.listen.startswith(("127.", "::1", "[::1]", "/", "@", "localhost"))


@dataclass(frozen=True)
class Webhook:
    """What a rule of its routing posts where; ``place`` as ``routing.rules[2]``."""

    place: str
    url: str
    authorization: str = ""
    deduplicates: bool = False


@dataclass(frozen=True)
class Reach:
    """What became of a connection to the webhook's socket, made as the engine would make it.

    ``error`` is an errno, 0 if it was made; ``user`` and ``groups`` are the engine's, ``group`` is
    the socket's ("" if there is none here); ``own_mounts``: it may see other files than we do.
    """

    error: int
    user: str = ""
    groups: tuple[str, ...] = ()
    group: str = ""
    own_mounts: bool = False


@dataclass(frozen=True)
class Engine:
    """A running Xray and what its files say."""

    pid: int
    files: tuple[str, ...] = ()
    #: Why they cannot be read; empty if they were.
    problem: str = ""
    log: dict[str, Any] = field(default_factory=dict)
    inbounds: tuple[Inbound, ...] = ()
    webhooks: tuple[Webhook, ...] = ()
    #: The last rule, where no other fits; "" if there are no rules.
    last_rule: str = ""
    #: By the socket's path, those that were tried.
    reaches: Mapping[str, Reach] = field(default_factory=dict)


def parse_config(text: str) -> dict[str, Any]:
    """Xray's dialect of JSON; ValueError if it is none, or no object."""
    bare = _COMMENT.sub(lambda m: m[0] if m[0].startswith('"') else " ", text)
    data = json.loads(_TRAILING.sub(lambda m: m[1] or "", bare))
    if not isinstance(data, dict):
        raise ValueError("no object")
    return data


def read_engine(pid: int, configs: list[tuple[str, dict[str, Any]]]) -> Engine:
    """What the files of one process say together; later ones replace "log", add inbounds."""
    log: dict[str, Any] = {}
    inbounds: list[Inbound] = []
    rules: list[Any] = []
    for _path, config in configs:
        if isinstance(config.get("log"), dict):
            log = {**log, **config["log"]}
        inbounds += [_inbound(i) for i in _list(config, "inbounds") if isinstance(i, dict)]
        rules = _list(_dict(config, "routing"), "rules") or rules
    places = [(f"routing.rules[{number}]", rule) for number, rule in enumerate(rules)]
    return Engine(
        pid,
        tuple(path for path, _config in configs),
        "",
        log,
        tuple(inbounds),
        tuple(_webhook(place, rule["webhook"]) for place, rule in places if _posts(rule)),
        places[-1][0] if places else "",
    )


def _posts(rule: object) -> bool:
    return (
        isinstance(rule, dict) and isinstance(rule.get("webhook"), dict) and rule["webhook"] != {}
    )


def _webhook(place: str, data: dict[str, Any]) -> Webhook:
    headers = {str(key).lower(): value for key, value in _dict(data, "headers").items()}
    url, authorization = str(data.get("url", "")), str(headers.get("authorization", ""))
    return Webhook(place, url, authorization, bool(data.get("deduplication")))


def _inbound(data: dict[str, Any]) -> Inbound:
    settings, stream = _dict(data, "settings"), _dict(data, "streamSettings")
    protocol = str(data.get("protocol", "")).lower()
    users = [u for u in _list(settings, _WITH_USERS.get(protocol, "")) if isinstance(u, dict)]
    if protocol == "shadowsocks" and not users and "password" in settings:
        users = [settings]  # the only user stands in the settings themselves
    sockopt = _dict(stream, "sockopt")
    nested = [value for value in stream.values() if isinstance(value, dict)]
    method = str(settings.get("method", ""))
    return Inbound(
        tag=str(data.get("tag", "")),
        protocol=protocol,
        listen=str(data.get("listen") or "0.0.0.0"),
        ports=_ports(data.get("port")),
        users=len(users),
        without_email=sum(not user.get("email") for user in users),
        forgeable=(protocol == "shadowsocks" and method.startswith("2022-"))
        or protocol in ("hysteria", "socks", "mixed"),
        proxy_protocol=any(part.get("acceptProxyProtocol") is True for part in nested),
        trusted_headers=tuple(map(str, _list(sockopt, "trustedXForwardedFor"))),
    )


def _dict(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _list(data: dict[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    return value if isinstance(value, list) else []


def _ports(value: object) -> tuple[PortRange, ...]:
    """``443``, ``"443"``, ``"1000-2000,3000"``; what is none (``env:PORT``) is left out."""
    found = []
    for part in str(value if value is not None else "").split(","):
        low, _dash, high = part.strip().partition("-")
        if low.isascii() and low.isdigit() and (not high or (high.isascii() and high.isdigit())):
            found.append((int(low), int(high or low)))
    return tuple(found)


def examine(engines: Iterable[Engine], settings: Settings) -> Iterator[Finding]:
    """What keeps limits from holding, with the line of the configuration that does."""
    for engine in engines:
        where = f"Xray (pid {engine.pid}, {', '.join(engine.files) or 'no file found'})"
        if engine.problem:
            yield Finding(OK, "xray", f"{where}: {engine.problem}; its settings are not checked")
            for source in _hooks_of(engine, settings):
                yield from _examine_reach(engine, source, where)
            continue
        found = [
            *_examine_log(engine, settings, where),
            *_examine_inbounds(engine, settings, where),
        ]
        yield from found
        if not found:
            public = sum(inbound.is_public for inbound in engine.inbounds)
            yield Finding(
                OK, "xray", f"{where}: log and {public} public inbounds are as they should be"
            )


def _examine_log(engine: Engine, settings: Settings, where: str) -> Iterator[Finding]:
    log = engine.log
    access, error = str(log.get("access", "")), str(log.get("error", ""))
    hooks = _hooks_of(engine, settings)
    if hooks:
        for hook in hooks:
            yield from _examine_webhook(engine, hook, where)
        return
    texts = sources_of(settings.sources, *_TEXTS)
    if not texts:
        return  # nothing here listens to an Xray
    paths = [source.options.get("path", ACCESS_LOG) for source in texts]
    in_files = all(source.type == "file" for source in texts)
    if access == _NO_LOG:
        yield Finding(
            DEGRADED, "xray_no_log", f'{where}: "access" is "none": it names no users',
            f'set "log": {{"access": "{paths[0]}"}} and restart it',
        )  # fmt: skip
    elif in_files and access and access not in paths:
        yield Finding(
            DEGRADED, "xray_log_path",
            f"{where}: it writes its access log to {access}, the agent reads {', '.join(paths)}",
            f"set xray_access_log_path, or path under sources, to {access} "
            "(qos_xray_access_log_path, qos_sources)",
        )  # fmt: skip
    elif in_files and not access:
        yield Finding(
            DEGRADED, "xray_log_path",
            f"{where}: it writes its access log to standard output, the agent reads "
            f"{', '.join(paths)}",
            f'set "log": {{"access": "{paths[0]}"}}, or read the journal '
            "(identity_source, or type under sources: journal)",
        )  # fmt: skip
    if mask := str(log.get("maskAddress", "")):
        yield Finding(
            DEGRADED, "xray_masked", f'{where}: "maskAddress" is "{mask}": nobody can be limited',
            'remove "maskAddress" from "log" and restart it',
        )  # fmt: skip
    level = str(log.get("loglevel", "warning")).lower()
    if access == error and _NO_LOG not in (access, level):
        yield Finding(
            DEGRADED, "xray_mixed",
            f"{where}: access and error log go to the same place, in which strangers can forge "
            "lines",
            'give "error" a file of its own',
        )  # fmt: skip


def _hooks_of(engine: Engine, settings: Settings) -> list[SourceSettings]:
    """The webhooks by which an engine tells, or has to because nothing else is read."""
    hooks = sources_of(settings.sources, "webhook")
    told = [
        source
        for source in hooks
        if any(_leads_to(hook.url, *_place(source)) for hook in engine.webhooks)
    ]
    return told or ([] if sources_of(settings.sources, *_TEXTS) else hooks[:1])


def _place(source: SourceSettings) -> tuple[str, str]:
    """Path of the unix socket, empty if there is none, and where it listens as the settings say."""
    listen = source.options["listen"]
    return listen.removeprefix("unix:") if listen.startswith(("unix:", "@")) else "", listen


def _examine_webhook(engine: Engine, source: SourceSettings, where: str) -> Iterator[Finding]:
    path, listen = _place(source)
    token = source.options["token"]
    wanted = f"{path}:/" if path else f"http://{listen}/"
    ours = [hook for hook in engine.webhooks if _leads_to(hook.url, path, listen)]
    if not ours:
        others = ", ".join(f'{hook.place} to "{hook.url}"' for hook in engine.webhooks[:_NAMED])
        yield Finding(
            DEGRADED, "xray_webhook",
            f"{where}: no rule has a webhook that leads to the agent, so it tells of nobody"
            + (f"; there is {others}" if others else ""),
            f'give each rule of "routing" that carries users\' traffic "webhook": {{"url": '
            f'"{wanted}"}} and restart it',
        )  # fmt: skip
        return
    if engine.last_rule != ours[-1].place:
        yield Finding(
            DEGRADED, "xray_webhook_last",
            f"{where}: {engine.last_rule}, its last rule, has no webhook that leads to the agent: "
            "it tells nothing of connections that no other rule with one fits",
            'add a last rule {"type": "field", "network": "tcp,udp", "outboundTag": '
            f'"(your default)", "webhook": {{"url": "{wanted}"}}}} and restart it',
        )  # fmt: skip
    for hook in ours:
        if hook.deduplicates:
            yield Finding(
                DEGRADED, "xray_webhook_drops",
                f'{where}: {hook.place} has "deduplication", which drops events of connections',
                'remove "deduplication" from its "webhook" and restart it',
            )  # fmt: skip
        if token and hook.authorization != f"Bearer {token}":
            yield Finding(
                DEGRADED, "xray_webhook_token",
                f"{where}: {hook.place} does not bear the token, so its events are refused",
                '"headers": {"Authorization": "Bearer (qos_webhook_token)"} in its "webhook"',
            )  # fmt: skip
    yield from _examine_reach(engine, source, where)


def _leads_to(url: str, path: str, listen: str) -> bool:
    """Xray writes a unix socket as ``/path:/request`` (its app/router/webhook.go)."""
    if path:
        return url == path or url.startswith(f"{path}:")
    port = listen.rpartition(":")[2]
    return any(
        url == f"http://{host}" or url.startswith(f"http://{host}/")
        for host in (listen, f"localhost:{port}")
    )


def _examine_reach(engine: Engine, source: SourceSettings, where: str) -> Iterator[Finding]:
    """Why no event comes through the socket, and what to change where."""
    path, _listen = _place(source)
    reach = engine.reaches.get(path)
    if reach is None or not reach.error:
        return
    who = f"user {reach.user}, groups {', '.join(reach.groups)}"
    if reach.error in (errno.ENOENT, errno.ENOTDIR) and reach.group and reach.own_mounts:
        remedy = f"mount the socket into its container ({path}:{path}), and restart it"
    elif reach.error in (errno.EACCES, errno.EPERM):
        remedy = (
            f"set qos_webhook_group to {reach.groups[0] if reach.groups else 'its group'} and run "
            f"the role, or add {reach.user} to the group {reach.group or source.options['group']} "
            "and restart it"
        )
    elif reach.group and reach.own_mounts:
        remedy = "restart its container: it has the socket of before the last restart mounted"
    else:
        remedy = "'systemctl restart vff-qos-webhook.socket vff-qos-follow'"
    yield Finding(
        DEGRADED, "xray_webhook_reach",
        f"{where}: it cannot connect to {path} ({os.strerror(reach.error)}), so no event comes",
        remedy,
        [f"it runs as {who}", f"the socket is of group {reach.group or '(there is none)'}"],
    )  # fmt: skip


def _examine_inbounds(engine: Engine, settings: Settings, where: str) -> Iterator[Finding]:
    text = settings.reads_text and not _hooks_of(engine, settings)
    for inbound in engine.inbounds:
        name = f"{where}: inbound {inbound.tag or inbound.protocol}"
        if inbound.without_email:
            yield Finding(
                DEGRADED, "xray_no_email",
                f"{name}: {inbound.without_email} of {inbound.users} users have no email, so they "
                "are not limited",
                'give each an "email"',
            )  # fmt: skip
        if not inbound.is_public:
            if inbound.users and not inbound.proxy_protocol:
                yield Finding(
                    DEGRADED, "xray_front",
                    f"{name}: it listens on {inbound.listen} and takes no PROXY protocol: a front "
                    f"before it hides the clients, and none of its {inbound.users} users can be "
                    "limited",
                    SHOW_CLIENTS,
                )  # fmt: skip
            continue
        if text and inbound.forgeable and not _covered(inbound.ports, settings.free_text_ports):
            yield Finding(
                DEGRADED, "xray_forgeable",
                f"{name} ({inbound.protocol}): its users can forge log lines that name others",
                "use the webhook (identity_source, or type under sources: webhook), or name its "
                "port in free_text_ports (qos_free_text_ports)",
            )  # fmt: skip
        if inbound.proxy_protocol:
            yield Finding(
                DEGRADED, "xray_proxy_protocol",
                f"{name}: it believes PROXY headers and listens on {inbound.listen}: strangers can "
                "come under any address",
                'have it "listen" on 127.0.0.1, behind a front on this node that sends the header; '
                "clients of a front elsewhere cannot be limited here",
            )  # fmt: skip
        if inbound.trusted_headers:
            yield Finding(
                DEGRADED, "xray_forwarded",
                f"{name}: it believes {', '.join(inbound.trusted_headers)}: lines name an address "
                "and port 0, and no connection",
                "take trustedXForwardedFor out of its sockopt",
            )  # fmt: skip
        if (
            inbound.users
            and inbound.ports
            and not _covered(inbound.ports, settings.service_ports or _ALL)
        ):
            shown = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in inbound.ports[:_NAMED])
            yield Finding(
                DEGRADED, "xray_port",
                f"{name}: its port {shown} is none of service_ports: its users are not limited",
                f"add {shown} to service_ports (qos_service_ports)",
            )  # fmt: skip


def _covered(ports: tuple[PortRange, ...], by: tuple[PortRange, ...]) -> bool:
    """Whether all ports are in ``by``."""
    return all(any(low <= a and b <= high for low, high in by) for a, b in ports)
