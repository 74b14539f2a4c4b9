"""Debian's Prometheus, its tool and its node_exporter, as tests need them."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .harness import eventually, run

_PORT, _EXPORTER_PORT = 9090, 9100
_CONFIG = """\
global: {{scrape_interval: 3s, scrape_timeout: 3s}}
scrape_configs:
  - job_name: vff-qos
    metrics_path: {path}
    static_configs: [{{targets: ['{target}']}}]
"""


def program(name: str) -> str:
    """Where a program is."""
    found = shutil.which(name)
    assert found, f"{name} is missing: make setup installs it"
    return found


def promtool(*words: str, stdin: str | None = None) -> str:
    """What promtool says of something that has no fault."""
    return run(program("promtool"), *words, stdin=stdin)


class Prometheus:
    """A server that scrapes one target."""

    def __init__(self, directory: Path, target: str, path: str = "/metrics") -> None:
        config = directory / "prometheus.yml"
        config.write_text(_CONFIG.format(target=target, path=path))
        self._process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{_PORT}",
                "--log.level=warn",
            ]
        )

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(timeout=30)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now; a wrong one raises."""
        query = urllib.parse.urlencode({"query": expression, "time": time.time()})
        url = f"http://127.0.0.1:{_PORT}/api/v1/query?{query}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result

    def wait_for(self, expression: str, within_s: float = 120.0) -> None:
        """Until an expression gives something."""

        def there() -> bool:
            with contextlib.suppress(OSError):  # it has not begun to listen
                return bool(self.query(expression))
            return False

        eventually(there, within_s)


@contextlib.contextmanager
def node_exporter(textfiles: Path, user: str = "prometheus") -> Iterator[str]:
    """What the textfile collector of a real node_exporter, with its own account, reads: a URL."""
    address = f"127.0.0.1:{_EXPORTER_PORT}"
    process = subprocess.Popen(
        [
            "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups",
            program("prometheus-node-exporter"), "--collector.disable-defaults",
            "--collector.textfile", f"--collector.textfile.directory={textfiles}",
            f"--web.listen-address={address}", "--log.level=warn",
        ]
    )  # fmt: skip
    try:
        yield f"http://{address}/metrics"
    finally:
        process.terminate()
        process.wait(timeout=30)


def fetch(url: str, within_s: float = 20.0) -> str:
    """The body of an answer, once there is one."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
