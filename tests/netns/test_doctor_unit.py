"""Doctor as its unit runs it: what the sandbox takes away must not look like trouble of the node.

systemd's part is done here by hand, by what the templates say: capabilities, hidden home
directories, address families. The unit itself runs on the lab node.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from checkout import ROLE

from .harness import Node

# It looks at the processes of the machine.
pytestmark = pytest.mark.alone

UNIT = (ROLE / "templates/vff-qos-doctor.service.j2").read_text()
SANDBOX = (ROLE / "templates/sandbox.j2").read_text()
#: The numbers of socket(2); others are not asked for here.
SOCKET = {"x86_64": 41, "aarch64": 198}
#: RestrictAddressFamilies= as systemd does it, by seccomp(2), then the command.
RESTRICT = """
import ctypes, errno, os, socket, struct, sys
number, families = int(sys.argv[1]), [getattr(socket, name) for name in sys.argv[2].split()]
# Load the call's number; another call is allowed; load the family; ours are allowed, others not.
code = [(0x20, 0, 0, 0), (0x15, 0, len(families) + 2, number), (0x20, 0, 0, 16)]
code += [(0x15, len(families) - i, 0, family) for i, family in enumerate(families)]
code += [(0x06, 0, 0, 0x00050000 | errno.EAFNOSUPPORT), (0x06, 0, 0, 0x7FFF0000)]
filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters))
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[3], sys.argv[3:])
"""
#: A process 1 of our own, which sees all files, as a node's systemd does.
INIT = ["unshare", "-p", "-f", "-m", "--mount-proc", "sh", "-c", '"$@"; exit $?', "sh"]
HIDE = 'mount -t tmpfs -o mode=000 tmpfs "$1" && shift && exec "$@"'


def word(text: str, pattern: str) -> str:
    found = re.search(pattern, text, re.M)
    assert found, pattern
    return found[1]


def findings(*command: str) -> list[dict[str, str]]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return found


def as_the_unit(home: Path, command: list[str]) -> list[str]:
    """``command`` with what the unit leaves it; ``home`` stands for /home, /root and /run/user."""
    capabilities = word(UNIT, "set capabilities = '(.+)'").lower().replace("cap_", "+").split()
    families = word(SANDBOX, "^RestrictAddressFamilies=(.+)$")
    hide = ["unshare", "-m", "sh", "-c", HIDE, "sh", str(home)]
    bound = ["setpriv", f"--bounding-set=-all,{','.join(capabilities)}", "--inh-caps=-all"]
    number = str(SOCKET[platform.machine()])
    return [
        *(hide if word(UNIT, "set protect_home = '(.+)'") == "yes" else []),
        *bound,
        *(sys.executable, "-c", RESTRICT, number, families),
        *command,
    ]


def about(path: Path, found: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Kinds and levels of what is said of a file."""
    return [(f["kind"], f["level"]) for f in found if str(path) in f["sentence"]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    return made


def test_a_log_in_a_home_directory_is_looked_at(node: Node, home: Path) -> None:
    log, link = home / "panel/access.log", node.directory / "link.log"
    log.parent.mkdir(mode=0o700)
    log.touch()
    link.symlink_to(log)
    settings = node.directory / "settings.yml"
    command = node.command("doctor", "--json", "--no-canary")
    text = settings.read_text()
    for path in (log, link):
        settings.write_text(text.replace(str(node.log), str(path)))
        assert about(path, findings(*command)) == [("log_file", "OK")]
        assert about(path, findings(*INIT, *as_the_unit(home, command))) == [("log_file", "OK")]
    log.unlink()
    found = about(link, findings(*INIT, *as_the_unit(home, command)))
    assert found == [("log_file", "DEGRADED")]


def test_what_it_cannot_ask_it_says_nothing_of(node: Node, home: Path) -> None:
    """sing-box is asked by IP, which the unit may not speak; what is missing the agent tells."""
    secret = home.parent / "secret"
    secret.write_text("0123456789")
    secret.chmod(0o640)
    settings = node.directory / "settings.yml"
    source = {"type": "singbox", "address": "127.0.0.1:9091", "secret_file": str(secret)}
    text = settings.read_text()
    settings.write_text(
        re.sub("xray_access_log_path: .*", f"sources: {json.dumps([source])}", text)
    )
    command = node.command("doctor", "--json", "--no-canary")
    node.start()
    try:
        free = {f["kind"] for f in findings(*command)}
        inside = {f["kind"] for f in findings(*as_the_unit(home, command))}
    finally:
        node.stop()
    assert "singbox_api" in free and "source_missing" in inside
    assert not {kind for kind in inside if kind.startswith("singbox_")}
