"""The webhook on an abstract socket, which has no mode: the agent asks who is there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from unit.webhook_samples import THEN, post, posted
from vff_qos.errors import SourceError
from vff_qos.sources.listener import open_listener
from vff_qos.sources.webhook import WebhookSource

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

NAME = f"vff-qos-test-{os.getpid()}"
_POST = (
    "import socket, sys\n"
    "with socket.socket(socket.AF_UNIX) as sock:\n"
    f"    sock.connect('\\0{NAME}')\n"
    "    sock.settimeout(5)\n"
    "    sock.sendall(sys.stdin.buffer.read())\n"
    "    try:\n"
    "        print(sock.recv(100)[:12].decode())\n"
    "    except ConnectionResetError:\n"
    "        pass\n"
)


def says(source: WebhookSource, *who: str) -> tuple[str, list[bytes | None]]:
    """What a process that posts an event is answered, and whose claims came of it."""
    words = ["setpriv", *who, "/usr/bin/python3", "-c", _POST]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(post(posted()).decode())
        process.stdin.close()
        claims = []
        while process.poll() is None:
            claims += source.read()
            source.settled()
        return process.stdout.read().strip(), [claim.email for claim in claims]


@pytest.mark.parametrize(
    ("group", "who", "taken"),
    [
        ("", [], True),
        ("", ["--reuid=65534", "--regid=65534", "--clear-groups"], False),
        ("mail", ["--reuid=65534", "--regid=65534", "--clear-groups"], False),
        ("mail", ["--reuid=65534", "--regid=mail", "--clear-groups"], True),
        ("mail", ["--reuid=65534", "--regid=65534", "--groups=9,mail"], True),
        ("mail", ["--reuid=65534", "--regid=65534", "--groups=9,10"], False),
        ("mail", [], True),
    ],
)  # fmt: skip
def test_root_and_the_group_are_heard_and_nobody_else(
    group: str, who: list[str], taken: bool
) -> None:
    source = WebhookSource(f"@{NAME}", group=group, clock=lambda: THEN)
    source.read()
    want = ("HTTP/1.1 200", [b"alice@x"]) if taken else ("", [])
    assert says(source, *who) == want
    refused = vars(source.counters)["refused"]
    assert refused == ({} if taken else {"stranger": 1})
    told = source.tick()
    assert taken or (told and "user 65534" in told and "group of the webhook" in told)
    source.close()


def test_two_cannot_listen_and_a_group_that_is_not_there_is_told() -> None:
    source = WebhookSource(f"@{NAME}")
    with pytest.raises(SourceError, match=f"@{NAME}: cannot listen: Address already in use"):
        WebhookSource(f"@{NAME}")
    source.close()
    with pytest.raises(SourceError, match="there is no group no-such-group"):
        WebhookSource(f"@{NAME}", group="no-such-group")


def test_one_that_systemd_holds_is_found(tmp_path: Path) -> None:
    program = (
        "import fcntl, os, sys\n"
        "from vff_qos.sources.listener import keep_inherited, open_listener\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "copies = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 50) for n in sys.argv[3:]]\n"
        "for place, copy in enumerate(copies, 3): os.dup2(copy, place)\n"
        "names = ['unix:' + sys.argv[1], sys.argv[2]]\n"
        "for name in names: print(open_listener(name, '', 0)[0].getsockname())\n"
        "keep_inherited()\n"
        "print(os.get_inheritable(3), os.get_inheritable(4))\n"
    )
    path = tmp_path / "hook"
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(str(path))
        other.bind(f"\0{NAME}")
        for listener in (one, other):
            listener.listen()
        low, high = one.fileno(), other.fileno()
        done = subprocess.run(
            [sys.executable, "-c", program, str(path), f"@{NAME}", str(low), str(high)],
            env={**os.environ, "LISTEN_FDS": "2", "PYTHONPATH": ":".join(sys.path)},
            pass_fds=[low, high], capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    assert done.stdout.splitlines() == [str(path), repr(b"\0" + NAME.encode()), "True True"], (
        done.stderr
    )


def test_the_name_is_free_when_it_is_closed() -> None:
    for _ in range(2):
        listener, path = open_listener(f"@{NAME}", "", 0)
        assert listener.getsockname() == b"\0" + NAME.encode() and path == ""
        listener.close()
