"""A headless Chromium, driven by the DevTools protocol over a pair of pipes.

https://chromedevtools.github.io/devtools-protocol/; --remote-debugging-pipe: descriptors 3 and 4,
messages end with a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0


class Browser:
    """One page of a browser of its own; ``with`` ends it."""

    def __init__(self) -> None:
        self._home = tempfile.mkdtemp(prefix="vff-qos-chromium-")
        to_read, to_write = os.pipe(), os.pipe()
        ours = to_read[1], to_write[0]

        def place() -> None:
            # Copies first: one of the four may have a number that is needed.
            commands, answers = os.dup(to_read[0]), os.dup(to_write[1])
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        self._process = subprocess.Popen(
            [
                "chromium", "--headless=new", "--no-sandbox", "--disable-gpu",
                "--disable-dev-shm-usage", "--remote-debugging-pipe", "--no-first-run",
                "--disable-background-networking", "--disable-component-update",
                "--disable-extensions", "--hide-scrollbars", "--force-color-profile=srgb",
                f"--user-data-dir={self._home}", "about:blank",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            close_fds=False, preexec_fn=place, env=os.environ | {"HOME": self._home, "TZ": "UTC"},
        )  # fmt: skip
        os.close(to_read[0])
        os.close(to_write[1])
        self._commands, self._answers = ours
        self._number, self._buffer, self._session = 0, b"", ""
        #: What the page has logged, and what was refused or has failed.
        self.complaints: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in targets if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
        shutil.rmtree(self._home, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; AssertionError where it has none."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self._read(deadline, method)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._note(answer)

    def _read(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._answers], [], [], left)[0], f"{what}: silence"
            data = os.read(self._answers, 1 << 20)
            assert data, f"{what}: the browser has ended"
            self._buffer += data
        text, _zero, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(text))

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", str(details)))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.complaints.append(str(params["args"]))

    # -- a person's part --------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Load a page anew."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.until(f"document.readyState == 'complete' && location.href == {json.dumps(url)}")

    def keep(self, **values: str) -> None:
        """What the page finds kept from another day; for every load from now on."""
        for name, value in values.items():
            script = f"localStorage.setItem('vff-qos-{name}', {json.dumps(value)})"
            self.call(
                "Page.addScriptToEvaluateOnNewDocument", source=f"try {{ {script} }} catch {{}}"
            )

    def ask(self, script: str) -> Any:
        """What an expression is on the page; AssertionError where it throws."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, within_s: float = PATIENCE_S) -> Any:
        """What an expression is, once that is something true."""
        deadline = time.monotonic() + within_s
        while not (found := self.ask(script)):
            body = self.ask("document.body?.innerText")
            assert time.monotonic() < deadline, f"never: {script}\n{body}\n{self.complaints}"
            time.sleep(0.1)
        return found

    def press(self, key: str) -> None:
        """A key: a letter, or a name such as Enter."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowDown": 40, "ArrowUp": 38}
        code = codes.get(key, ord(key.upper()) if len(key) == 1 else 0)
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more
            )

    def look(self, dark: bool, width: int, height: int) -> None:
        """The colours that the person's system has, and the size of the window."""
        value = "dark" if dark else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": value},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ],
        )
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def picture(self, path: Path) -> None:
        """A PNG of what is in the window."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
