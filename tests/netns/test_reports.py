"""``vff-qos report`` against a real receiver that fails in all ways."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from vff_qos.commands import usage_report as report_module
from vff_qos.commands.node import Node
from vff_qos.commands.usage_report import NotAccepted, report
from vff_qos.config import Paths
from vff_qos.errors import ConfigError, Refused
from vff_qos.state import State

from .harness import run


class Receiver:
    """What it is told, and how it answers: a status, or a function that does as it likes."""

    def __init__(self, tls: Path | None = None) -> None:
        self.heard: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers: list[int | Callable[[BaseHTTPRequestHandler], None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(size)
                outer.heard.append((self.command, self.path, dict(self.headers), body))
                answer = outer.answers.pop(0) if outer.answers else 204
                if callable(answer):
                    answer(self)
                    return
                self.send_response(answer)
                if answer == 503:
                    self.send_header("Retry-After", "777")
                if answer == 302:
                    self.send_header("Location", "http://127.0.0.1:1/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET

            def log_message(self, *_args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_port}/usage?token=geheim"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [record for *_head, body in self.heard for record in json.loads(body)]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


class Scene:
    """A node's files, and users who move."""

    def __init__(self, directory: Path, url: str, more: str = "") -> None:
        self.paths = Paths(
            str(directory / "settings.yml"), str(directory / "policy.yml"),
            str(directory / "policy.d"), str(directory / "state"), str(directory / "run"),
        )  # fmt: skip
        (directory / "run").mkdir(exist_ok=True)
        self.set(url, more)
        (directory / "policy.yml").write_text("default: {}\n")
        self.state = State(self.paths.state_dir, self.paths.run_dir)
        self.sent = ({}, {})  # type: tuple[dict[int, int], dict[int, int]]
        self.move()

    def set(self, url: str, more: str = "") -> None:
        Path(self.paths.settings).write_text(f"if_wan: wan0\nreport_url: '{url}'\n{more}")

    def move(self, **users: tuple[int, int]) -> None:
        names = {int(name[1:]): name for name in users}
        for name, both in users.items():
            for direction in (0, 1):
                minor = int(name[1:])
                self.sent[direction][minor] = self.sent[direction].get(minor, 0) + both[direction]
        for direction in (0, 1):
            self.state.accounts.book(
                direction, self.sent[direction], lambda m: (names[m],), time.time()
            )

    def report(self, now: bool = True) -> str:
        with Node(self.paths) as node:
            return report(node, now)


@pytest.fixture
def scene(tmp_path: Path, receiver: Receiver) -> Scene:
    return Scene(tmp_path, receiver.url)


def test_what_was_moved_is_told_once_with_deltas_and_totals(
    scene: Scene, receiver: Receiver
) -> None:
    scene.move(u2=(10, 20), u3=(1, 2))
    assert scene.report() == "reported 2 records of users in 1 reports"
    assert scene.report() == "nothing to report"
    scene.move(u2=(5, 0))
    assert scene.report() == "reported 1 records of users in 1 reports"
    method, path, headers, _body = receiver.heard[0]
    assert (method, path) == ("POST", "/usage?token=geheim")
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    first, second, third = receiver.records
    assert (first["username"], first["upload"], first["download"]) == ("u2", 10, 20)
    assert (third["username"], third["upload"], third["upload_total"]) == ("u2", 5, 15)
    assert third["since"] == first["until"] >= first["since"]
    keys = [headers["Idempotency-Key"] for _m, _p, headers, _b in receiver.heard]
    assert len(set(keys)) == 2
    assert len({record["id"] for record in (first, second, third)}) == 3


@pytest.mark.parametrize("status", [500, 503, 400, 401, 302])
def test_what_is_refused_comes_again_with_the_same_key(
    scene: Scene, receiver: Receiver, status: int
) -> None:
    scene.move(u2=(10, 20))
    receiver.answers = [status]
    with pytest.raises(NotAccepted) as raised:
        scene.report()
    # No secret of the URL in what people read.
    assert f"/usage: answered {status} " in str(raised.value)
    assert "1 reports wait" in str(raised.value) and "geheim" not in str(raised.value)
    scene.move(u2=(1, 0))
    with pytest.raises(NotAccepted, match=r"2 reports wait, the next try is due in \d+"):
        scene.report(now=False)
    assert len(receiver.heard) == 1  # its pause was kept
    scene.report()
    first, again, new = receiver.heard
    assert first[2]["Idempotency-Key"] == again[2]["Idempotency-Key"]
    assert first[3] == again[3]
    assert json.loads(new[3])[0]["upload"] == 1


def test_what_the_receiver_asks_for_is_the_pause(scene: Scene, receiver: Receiver) -> None:
    scene.move(u2=(1, 1))
    receiver.answers = [503]
    with pytest.raises(NotAccepted):
        scene.report()
    with pytest.raises(NotAccepted, match="due in 12min"):
        scene.report(now=False)


def test_an_answer_that_is_lost_or_late_costs_a_duplicate_and_no_byte(
    scene: Scene, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "_PATIENCE_S", 0.3)

    def hang_up(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True

    def sleep(_handler: BaseHTTPRequestHandler) -> None:
        time.sleep(1)

    for number, answer in enumerate((hang_up, sleep), 1):
        scene.move(u2=(1, 0))
        receiver.answers = [answer]
        with pytest.raises(NotAccepted):
            scene.report()
        scene.report()
        one, again = receiver.heard[-2:]
        assert one[2]["Idempotency-Key"] == again[2]["Idempotency-Key"]
        assert receiver.records[-1]["upload_total"] == number
    by_id = {record["id"]: record["upload"] for record in receiver.records}
    assert sum(by_id.values()) == 2


def test_a_receiver_that_is_gone_is_told_of_and_nothing_is_lost(
    tmp_path: Path, receiver: Receiver
) -> None:
    scene = Scene(tmp_path, "http://127.0.0.1:9/usage")
    for _ in range(3):
        scene.move(u2=(1, 1))
        with pytest.raises(NotAccepted, match=r"/usage: Connection refused; \d reports wait"):
            scene.report()
    found = json.loads((tmp_path / "run" / "report.json").read_text())
    assert found["waiting"] == 3 and found["failing_since"] <= time.time()
    scene.set(receiver.url)
    assert scene.report() == "reported 3 records of users in 3 reports"
    assert sum(record["upload"] for record in receiver.records) == 3
    assert json.loads((tmp_path / "run" / "report.json").read_text())["failing_since"] is None


def test_a_connection_that_the_receiver_ended_meanwhile_is_no_failure(
    scene: Scene, receiver: Receiver
) -> None:
    """Between two requests of one run."""

    def once(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(204)
        handler.end_headers()
        handler.close_connection = True  # without a word

    scene.set(receiver.url, "report_format: traffic-url\n")
    scene.move(u2=(1, 1), u3=(1, 1))
    receiver.answers = [once]
    assert scene.report() == "reported 2 records of users in 1 reports"


def test_the_query_form_of_proxy_programs(scene: Scene, receiver: Receiver) -> None:
    scene.set(receiver.url, "report_format: traffic-url\n")
    scene.move(u2=(10, 20), u3=(1, 2))
    # Anything but 204 is no success, and what was accepted before it is not sent again.
    receiver.answers = [204, 200]
    with pytest.raises(NotAccepted, match="answered 200 OK instead of 204"):
        scene.report()
    scene.report()
    queries = [parse_qs(urlsplit(path).query) for _m, path, _h, _b in receiver.heard]
    assert [(q["username"][0], q["bytes"][0]) for q in queries] == [
        ("u2", "30"), ("u3", "3"), ("u3", "3"),
    ]  # fmt: skip
    assert queries[1]["id"] == queries[2]["id"] and queries[0]["token"] == ["geheim"]


def test_the_query_form_for_all_at_once(scene: Scene, receiver: Receiver) -> None:
    scene.set(receiver.url, "report_format: traffic-url-global\n")
    scene.move(u2=(10, 20), u3=(1, 2))
    scene.report()
    assert [(r["username"], r["bytes"]) for r in receiver.records] == [("u2", 30), ("u3", 3)]


def test_the_secret_comes_from_a_file(tmp_path: Path, receiver: Receiver) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cr3t-value\n")
    secret.chmod(0o640)
    scene = Scene(tmp_path, receiver.url, f"report_secret_file: {secret}\n")
    scene.move(u2=(1, 1))
    scene.report()
    assert receiver.heard[0][2]["Authorization"] == "Bearer s3cr3t-value"
    secret.write_text("two\nlines\n")
    with pytest.raises(ConfigError, match="does not hold one word") as raised:
        scene.report()
    assert "lines" not in str(raised.value).partition("does not hold one word")[2]
    secret.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        scene.report()


def test_a_certificate_is_checked(tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    ca_file = tmp_path / "ca.pem"
    run(
        *"openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1".split(),
        *"-days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1".split(),
        *("-keyout", str(both), "-out", str(ca_file)),
    )
    both.write_text(both.read_text() + ca_file.read_text())
    receiver = Receiver(both)
    scene = Scene(tmp_path, receiver.url)
    scene.move(u2=(1, 1))
    with pytest.raises(NotAccepted, match="its certificate is not trusted"):
        scene.report()
    assert receiver.heard == []
    scene.set(receiver.url, f"report_ca_file: {ca_file}\n")
    scene.report()
    assert len(receiver.records) == 1
    # Another name than the certificate's.
    scene.move(u2=(1, 1))
    scene.set(receiver.url.replace("127.0.0.1", "localhost"), f"report_ca_file: {ca_file}\n")
    with pytest.raises(NotAccepted, match="its certificate is not trusted"):
        scene.report()
    receiver.close()


def test_two_runs_at_once_do_not_send_everything_twice(scene: Scene, receiver: Receiver) -> None:
    scene.move(u2=(1, 1))
    others: list[str] = []

    def meanwhile(handler: BaseHTTPRequestHandler) -> None:
        try:
            scene.report()
        except Refused as error:
            others.append(str(error))
        handler.send_response(204)
        handler.end_headers()

    receiver.answers = [meanwhile]
    scene.report()
    assert others == ["another report is on its way"]
    assert len(receiver.heard) == 1


def test_without_a_receiver_one_line_says_so(scene: Scene) -> None:
    scene.set("")
    with pytest.raises(Refused, match="report_url is not set"):
        scene.report()
