"""From a connection through the real engine to a mark: what a user does, not what a test writes.

The node is the test's own namespace; its customers share one address in another, as behind a NAT.
So protocol, IP version and port of our end tell the users' flows apart without the agent's word."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from checkout import ROOT
from lab import engine
from lab.users import devices
from vff_qos.core.flow import Flow
from vff_qos.core.health import xray
from vff_qos.core.settings import parse_settings

from .engine_node import (
    ATTACKER_IPV4,
    FORGERS,
    RACER,
    SOCKS_PORT,
    USERS,
    WITHIN_S,
    EngineNode,
    forged_name,
    vless_request,
)
from .harness import eventually

pytestmark = [
    pytest.mark.xdist_group("processes"),
    pytest.mark.skipif(
        importlib.util.find_spec("xray") is None, reason="needs the engine of tests/lab/xray.txt"
    ),
]


@pytest.fixture
def node(tmp_path: Path, trees: tuple[str, str]) -> Iterator[EngineNode]:
    made = EngineNode(tmp_path)
    try:
        made.link()
        yield made
    finally:
        made.close()


def check_all_users(node: EngineNode) -> None:
    """All users connect, twice; each flow gets its user's class, and no other flow gets any."""
    node.connect(engine.client(devices(USERS), node.fingerprint))
    assert not any(node.flows().values())
    for device in devices(USERS):
        node.talk(device)
        eventually(partial(node.is_marked, device.user), WITHIN_S)
    for device in devices(USERS):
        node.talk(device)
    eventually(lambda: not any(0 in node.marks(user) for user in USERS), WITHIN_S)
    up, down = node.classes()
    minors = {}
    for user in USERS:
        (mark,) = node.marks(user)
        minors[user.email] = minor = mark & 0xFFFF
        assert (up[minor], down[minor]) == (user.upload, user.download)
    assert len(set(minors.values())) == len(USERS)
    others = [mark for flow, mark in node.flows().items() if flow.dport == engine.ECHO_PORT]
    assert others
    assert not any(others)


def role_hint(source: str, **variables: str) -> str:
    """What the role tells an operator to write into the engine's config."""
    for file in ("defaults/main.yml", "vars/main.yml"):
        variables = {**yaml.safe_load((ROOT / "roles/qos" / file).read_text()), **variables}
    variables["qos_identity_source"] = source
    templar = Templar(DataLoader(), {name: _trust(value) for name, value in variables.items()})
    return str(templar.template(trust_as_template("{{ __qos_source_hints[qos_identity_source] }}")))


def _trust(value: object) -> object:
    if isinstance(value, dict):
        return {key: _trust(part) for key, part in value.items()}
    return trust_as_template(value) if isinstance(value, str) else value


def log_config(hint: str, error_log: Path) -> engine.Config:
    """The engine's config with the hint's "log"."""
    log = re.search(r'"log": (\{.*?\})', hint)
    assert log, hint
    return {**engine.server(USERS), "log": json.loads(re.sub(r"\(.*?\)", str(error_log), log[1]))}


def webhook_config(hint: str, token: str) -> engine.Config:
    """The engine's config with the hint's routing rule, and no log."""
    webhook = re.search(r'"webhook": (\{.*\});', hint)
    rule = re.search(r"the last one: (\{.*\})\.", hint)
    assert webhook and rule, hint
    text = rule[1].replace("(as above)", webhook[1]).replace("(your default)", "direct")
    rules = [json.loads(text.replace("(qos_webhook_token)", token))]
    return {**engine.server(USERS), "log": {"access": "none"}, "routing": {"rules": rules}}


def test_the_log_of_the_real_engine_marks_each_users_flows(node: EngineNode) -> None:
    hint = role_hint("file", qos_xray_access_log_path=str(node.log))
    node.serve(log_config(hint, node.directory / "error.log"))
    node.start()
    check_all_users(node)


@pytest.mark.parametrize(
    ("listen", "token"),
    [("unix:{directory}/hook.sock", ""), ("127.0.0.1:9999", "0123456789abcdef")],
    ids=["unix", "port"],
)
def test_the_webhook_of_the_real_engine_marks_each_users_flows(
    node: EngineNode, listen: str, token: str
) -> None:
    listen = listen.format(directory=node.directory)
    hint = role_hint("webhook", qos_webhook_listen=listen, qos_webhook_token=token)
    node.configure("webhook", webhook_listen=listen, webhook_token=token)
    node.start()
    config = webhook_config(hint, token)
    node.serve(config)
    check_all_users(node)
    # What the hint says, and what works, is what `status --engine` wants to see.
    settings = parse_settings((node.directory / "settings.yml").read_bytes(), "")
    read = [xray.read_engine(1, [("/c.json", dict(config))])]
    assert [f.kind for f in xray.examine(read, settings) if "webhook" in f.kind] == []


def test_the_journal_of_the_real_engine_marks_each_users_flows(node: EngineNode) -> None:
    unit = node.start_journald()
    node.configure("journal", journal_unit=unit)
    hint = role_hint("journal", qos_journal_unit=unit)
    node.serve(log_config(hint, node.directory / "error.log"))
    node.start()
    check_all_users(node)


def test_lines_forged_through_the_real_engine_gain_nothing(node: EngineNode) -> None:
    """The forgers' stock client takes any name from SOCKS4a and sends it on as it is."""
    alice, users = USERS[0], (USERS[0], RACER, *FORGERS)
    node.serve(engine.server(users))
    node.start()
    config = engine.client(devices(users), node.fingerprint)
    for device, outbound in zip(devices(users), config["outbounds"], strict=True):
        if device.user != alice:
            outbound["sendThrough"] = ATTACKER_IPV4
        socks = {"tag": f"socks-{device.number}", "protocol": "socks", "listen": "127.0.0.1"}
        config["inbounds"].append({**socks, "port": SOCKS_PORT + device.number})
        rule = {"inboundTag": [socks["tag"]], "outboundTag": device.uplink}
        config["routing"]["rules"].append(rule)
    node.connect(config)
    marks = {}
    for device in devices(users):
        node.talk(device)
        eventually(partial(node.is_marked, device.user), WITHIN_S)
        (marks[device.user],) = node.marks(device.user)
    flows = {user: _only(f for f, m in node.flows().items() if m == marks[user]) for user in marks}
    for device in devices(users)[2:]:
        racing, sock = node.open_silent(ATTACKER_IPV4, RACER.server_port)
        for flow, email in (
            (flows[alice], device.user.email),
            (flows[device.user], alice.email),
            (racing, alice.email),
        ):
            node.ask_for(device, forged_name(flow, email))
        eventually(partial(node.mark_of, racing), WITHIN_S)
        assert node.flows()[racing] not in marks.values()
        sock.sendall(vless_request(RACER))
        eventually(partial(node.is_slower, racing, RACER), WITHIN_S)
        node.talk(devices(users)[0])
        eventually(lambda: node.marks(alice) == {marks[alice]}, WITHIN_S)
        assert {user: node.flows()[flow] for user, flow in flows.items()} == marks


def _only(flows: Iterable[Flow]) -> Flow:
    (flow,) = flows
    return flow
