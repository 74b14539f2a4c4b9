"""Metrics of a real agent: the figures of ``status`` and ``usage``, read by the programs that are
meant to read them."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from checkout import DOCS
from vff_qos.core.health.findings import EXIT_CODES
from vff_qos.metrics.catalogue import COUNTER, NODE, PREFIX, USER

from .harness import Client, Node, eventually, is_found, look, status, user
from .prometheus import Prometheus, fetch, node_exporter, promtool
from .senders import Flood, send_through

FRAME = len(Flood.FRAME)
PAGE = "127.0.0.1:9470"
ODD = 'o"d\\d@x'
#: {labels as sorted text: value}
Values = dict[str, float]


def read(text: str) -> dict[str, Values]:
    """{metric: its values}, by prometheus_client's own parser."""
    found: dict[str, Values] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = json.dumps(sample.labels, sort_keys=True)
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def labelled(**labels: str) -> str:
    return json.dumps(labels, sort_keys=True)


def metrics(node: Node, *words: str) -> dict[str, Values]:
    return read(node.run("metrics", *words))


@pytest.fixture
def busy(node: Node) -> Iterator[tuple[Node, list[Client]]]:
    """Three users who have moved something that is booked, and whose connections live."""
    node.start()
    clients = [user(node, email) for email in ("alice@x", "bob@x", ODD)]
    for client, count in zip(clients, (30, 20, 10), strict=True):
        minor = (node.mark(client) or 0) & 0xFFFF
        send_through("vffqos0", minor, count)
        send_through("wan0", minor, 2 * count)
    eventually(lambda: status(node)["users"][0]["down_bytes"] >= 60 * FRAME)
    node.stop()  # its end books what was moved
    node.start()
    yield node, clients


def test_every_figure_of_a_user_is_that_of_status_and_usage(
    busy: tuple[Node, list[Client]],
) -> None:
    node, _clients = busy
    shown = metrics(node)
    rows = status(node)["users"]
    moved = {one["email"]: one for one in json.loads(node.run("usage", "--json"))["users"]}
    assert {row["email"] for row in rows} == {"alice@x", "bob@x", ODD} == moved.keys()
    for row in rows:
        name = row["email"]
        assert shown["vff_qos_user_connections"][labelled(user=name)] == row["flows"] == 1
        assert shown["vff_qos_user_addresses"][labelled(user=name)] == row["addresses"] == 1
        assert shown["vff_qos_user_dropped_packets_total"][labelled(user=name)] == row["drops"]
        for direction in ("upload", "download"):
            labels = labelled(user=name, direction=direction)
            limit = shown["vff_qos_user_limit_bytes_per_second"][labels]
            assert limit * 8 == row[f"{direction}_bps"] > 0
            total = shown["vff_qos_user_bytes_total"][labels]
            assert total == moved[name][f"{direction}_bytes"] > 0
    # What the classes have counted is booked whole.
    assert moved["alice@x"]["download_bytes"] == 60 * FRAME


def test_every_figure_of_the_node_is_that_of_status(busy: tuple[Node, list[Client]]) -> None:
    node, _clients = busy
    node.write_policy("users:\n  bob@x: {upload: 5mbps}\n")
    eventually(lambda: is_found(node, "policy"), 12)
    eventually(lambda: status(node)["follower"]["flows_claimed"] == 3, 12)
    shown, told = metrics(node), status(node)

    def value(name: str, **labels: str) -> float:
        return shown[PREFIX + name][labelled(**labels)]

    follower = told["follower"]
    assert value("health") == EXIT_CODES[told["verdict"]] == look(node)[0]
    kinds = {(one["kind"], one["level"]) for one in told["findings"]}
    assert ("policy", "DEGRADED") in kinds
    assert shown["vff_qos_finding"] == {labelled(kind=k, level=v): 1.0 for k, v in kinds}
    assert value("build_info", version=told["version"]) == 1
    assert value("users") == len(told["users"]) == 3
    assert value("users_active") == 3
    assert value("follower_up") == 1
    assert value("follower_start_time_seconds") == follower["started"]
    assert value("connections_known") == follower["flows_known"]
    assert value("connections_claimed") == follower["flows_claimed"] == 3
    assert value("source_lines_total", source="file") == follower["log"]["lines"]
    assert value("marks_not_set_total", reason="no_port") == follower["log"]["no_port"]
    assert value("ceiling_bytes_per_second") * 8 == told["ceil_bps"]
    for direction in ("upload", "download"):
        device = told["devices"][direction]
        # The devices' own packets (IPv6) go on.
        assert 0 < value("node_bytes_total", direction=direction) <= device["bytes"]
        nobodys = value("unclassified_bytes_total", direction=direction)
        assert nobodys <= device["unclassified_bytes"] < device["bytes"]
    usage = json.loads(node.run("usage", "--json"))
    assert value("accounts_read_timestamp_seconds") <= usage["read"] <= told["time"]


def test_there_is_every_metric_of_the_catalogue_and_no_other(
    busy: tuple[Node, list[Client]],
) -> None:
    node, _clients = busy
    node.run("limit", "bob@x", "--connections", "500", "--devices", "5", "--for", "1h")
    node.run("gc")
    node.write(b"2026/11/26 10:00:00.000000 from 192.0.2.9:5 accepted tcp:a:1 [a >> b] email: z\n")
    eventually(lambda: status(node)["follower"]["sources"][0]["last_claim_s"], 12)
    declared = {m.full_name: m for m in (*NODE, *USER)}
    shown = metrics(node)
    # Nothing was repaired.
    assert declared.keys() - shown.keys() == {"vff_qos_last_repair_timestamp_seconds"}
    assert shown.keys() <= declared.keys()
    for name, metric in declared.items():
        assert name.endswith("_total") == (metric.kind == COUNTER), name


def test_promtool_finds_nothing_to_say(busy: tuple[Node, list[Client]]) -> None:
    node, _clients = busy
    assert promtool("check", "metrics", stdin=node.run("metrics")) == ""


def test_the_top_users_are_those_who_moved_most(busy: tuple[Node, list[Client]]) -> None:
    node, _clients = busy
    names = [
        {json.loads(labels)["user"] for labels in metrics(node, *words)["vff_qos_user_connections"]}
        for words in (["--users", "2"], ["--users", "1"], [])
    ]
    assert names == [{"alice@x", "bob@x"}, {"alice@x"}, {"alice@x", "bob@x", ODD}]
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text() + "metrics_users: 0\n")
    shown = metrics(node)
    assert shown["vff_qos_users"] == {"{}": 3.0}
    assert not any("user_" in name for name in shown)


def test_hashed_names_are_hashed_here_too(node: Node) -> None:
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text() + "hash_emails: true\n")
    node.start()
    _client = user(node, "alice@x")
    text = node.run("metrics")
    assert "alice" not in text
    (row,) = status(node)["users"]
    assert read(text)["vff_qos_user_connections"] == {labelled(user=row["email"]): 1.0}


def test_a_node_that_does_not_work_says_so(node: Node) -> None:
    """No agent, and settings that cannot be read: whoever is on call sees it there, too."""
    (node.directory / "settings.yml").write_text("if_wan: [\n")
    shown = metrics(node)
    assert shown["vff_qos_health"] == {"{}": 2.0}
    assert shown["vff_qos_follower_up"] == {"{}": 0.0}
    assert labelled(kind="not_set_up", level="TROUBLE") in shown["vff_qos_finding"]
    assert "vff_qos_users" not in shown
    assert "vff_qos_node_bytes_total" not in shown


# -- a Prometheus that asks ------------------------------------------------------------------------

#: What Grafana puts in the place of its variables.
VARIABLES = {
    "$__rate_interval": "5m", "$job": ".*", "$instance": ".*", "$user": ".*",
}  # fmt: skip


@contextlib.contextmanager
def served(node: Node, *within: str) -> Iterator[None]:
    """The node's page."""
    process = subprocess.Popen([*within, *node.command("web")])
    try:
        fetch(f"http://{PAGE}/healthz")
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture
def page(busy: tuple[Node, list[Client]]) -> Iterator[Node]:
    """A node with its page, a finding, and a user who has just come."""
    node, clients = busy
    clients.append(user(node, "carol@x"))
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text() + f"web_bind: {PAGE}\n")
    node.write_policy("users:\n  bob@x: {upload: 5mbps}\n")
    eventually(lambda: status(node)["follower"]["sources"][0]["last_claim_s"], 12)
    with served(node):
        yield node


def test_it_is_asked_by_http(page: Node) -> None:
    with urllib.request.urlopen(f"http://{PAGE}/metrics", timeout=20) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        shown = read(answer.read().decode())
    mine = metrics(page)
    assert shown.keys() == mine.keys()
    for name in ("vff_qos_users", "vff_qos_user_limit_bytes_per_second", "vff_qos_build_info"):
        assert shown[name] == mine[name]


def test_a_look_that_fails_is_no_answer(busy: tuple[Node, list[Client]]) -> None:
    """Not an old one, nor one that looks as if there were no users."""
    node, _clients = busy
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text() + f"web_bind: {PAGE}\n")
    # The kernel lists connections to CAP_NET_ADMIN alone.
    without = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"]
    with served(node, *without), pytest.raises(urllib.error.HTTPError) as failed:
        urllib.request.urlopen(f"http://{PAGE}/metrics", timeout=20)
    assert failed.value.code == 503
    assert b"Operation not permitted" in failed.value.read()


def test_every_query_of_the_dashboard_has_an_answer(page: Node, tmp_path: Path) -> None:
    """By a real Prometheus that asks a real agent's page."""
    board = json.loads((DOCS / "grafana" / "vff-qos.json").read_text())
    eventually(lambda: is_found(page, "policy"), 12)
    prometheus = Prometheus(tmp_path, PAGE)
    try:
        prometheus.wait_for("count_over_time(vff_qos_finding[5m]) >= 2")
        asked = 0
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"]
                for name, value in VARIABLES.items():
                    expression = expression.replace(name, value)
                assert "$" not in expression
                assert prometheus.query(expression), f"{panel['title']}: {expression}"
                asked += 1
        assert asked > 30
        (verdict,) = prometheus.query("vff_qos_health")
        assert verdict["value"][1] == "1"
        (alice,) = prometheus.query("sum by (user) (vff_qos_user_bytes_total{user='alice@x'})")
        assert float(alice["value"][1]) >= 90 * FRAME
    finally:
        prometheus.close()


# -- the file -------------------------------------------------------------------------------------


def test_a_real_node_exporter_reads_the_file(busy: tuple[Node, list[Client]]) -> None:
    """Through a link in a directory of its own, as the account that it runs as."""
    node, _clients = busy
    node.directory.chmod(0o755)
    for parent in node.directory.parents[:-2]:
        parent.chmod(0o755)
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text() + "metrics_group: prometheus\n")
    file, theirs = node.directory / "vff_qos.prom", node.directory / "theirs"
    theirs.mkdir()
    (theirs / "vff_qos.prom").symlink_to(file)
    with node_exporter(theirs) as url:
        assert read(fetch(url))["node_textfile_scrape_error"] == {"{}": 1.0}
        inodes = set()
        for _ in range(2):
            node.run("metrics", "--textfile", str(file))
            inodes.add(file.stat().st_ino)
            shown = read(fetch(url))
            assert shown["node_textfile_scrape_error"] == {"{}": 0.0}
            assert shown["vff_qos_user_connections"][labelled(user=ODD)] == 1
    assert len(inodes) == 2  # replaced, and not written into
    about = file.stat()
    assert about.st_mode & 0o777 == 0o640
    assert about.st_gid == grp.getgrnam("prometheus").gr_gid
    assert sorted(node.directory.glob("vff_qos.prom*")) == [file]


def test_without_a_group_everybody_may_read_it(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "vff_qos.prom"
    node.run("metrics", "--textfile", str(file))
    assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("more", "words", "code", "sentence"),
    [
        ("metrics_group: nobody-here\n", ["--textfile", "{}/a.prom"], 2,
         "vff-qos metrics: metrics_group: there is no group 'nobody-here'\n"),
        ("", ["--textfile", "{}/none/a.prom"], 1,
         "vff-qos metrics: {}/none/a.prom: No such file or directory\n"),
        ("", ["--textfile", "{}"], 1, "vff-qos metrics: {}: Is a directory\n"),
        ("", ["--users", "-1"], 2, "vff-qos metrics: --users: -1 is less than none\n"),
        ("", ["--users", "many"], 2, "vff-qos metrics: --users: invalid int value: 'many'; "
         "'vff-qos metrics --help' says what is allowed\n"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line(
    node: Node, tmp_path: Path, more: str, words: list[str], code: int, sentence: str
) -> None:
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text() + more)
    here = tmp_path / "here"
    here.mkdir()
    command = node.command("metrics", *(word.format(here) for word in words))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, sentence.format(here))
    assert os.listdir(here) == []
