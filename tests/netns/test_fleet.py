"""`make qos-disable` of several nodes at once, over SSH: how soon each kernel is reached, and that
a silent node holds up no other.

Each node is a network namespace with Debian's sshd, our tree and table, and a connection that bears
a user's mark. Of systemd there is nothing here; the whole runs on the lab node.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkout import ROOT

from .harness import MARK, WITHOUT_FILTERS, eventually, run

# It measures.
pytestmark = pytest.mark.alone

LIVE = ("n1", "n2", "n3")
#: The first in the inventory: whoever asks one node after another never comes to the others.
DEAD = "n0"
#: How long ssh waits for the dead one: longer than the test may take.
PATIENCE_S = 900
#: What is allowed from a node's SSH connection on, on a machine with time.
LIMIT_S = 5.0
SSHD = """
Port 22
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/key.pub
StrictModes no
UsePAM no
UseDNS no
PidFile none
SetEnv PATH={node}/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""
#: Nothing is installed as a unit: there is none to stop.
SYSTEMCTL = """#!/bin/sh
shift 2
for unit; do printf 'Id=%s\\nLoadState=not-found\\nActiveState=inactive\\n\\n' "$unit"; done
"""
#: The rest waits until the network is there. sshd wants its directory, and the role /run.
BEGIN = (
    "mount -t tmpfs tmpfs /run && mkdir /run/sshd && ip link set lo up && echo ready && read -r _"
    " && exec /usr/sbin/sshd -D -e -f"
)
SILENT = "table inet dead { chain c { type filter hook input priority 0; tcp dport 22 %s; }; }"
#: A line of `conntrack -E -o timestamp`.
EVENT = re.compile(r"\[(\d+)\.(\d+)\s*\]\s+\[(NEW|UPDATE)\] (.*)")


class FleetNode:
    """A node that is reached over SSH at ``address``."""

    def __init__(self, number: int, directory: Path) -> None:
        self.directory = directory / f"n{number}"
        (self.directory / "bin").mkdir(parents=True)
        self.address, gateway, device = f"10.8.{number}.2", f"10.8.{number}.1", f"to{number}"
        config = self.directory / "sshd_config"
        config.write_text(SSHD.format(directory=directory, node=self.directory))
        self._files()
        self._sshd = subprocess.Popen(
            ["unshare", "-n", "-m", "-p", "--kill-child", "sh", "-c", f"{BEGIN} {config}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._sshd.stdin and self._sshd.stdout
        assert self._sshd.stdout.readline() == "ready\n"
        parent = self._sshd.pid
        self._pid = Path(f"/proc/{parent}/task/{parent}/children").read_text().strip()
        peer = ("peer", "name", "wan0", "netns", self._pid)
        run("ip", "link", "add", device, "type", "veth", *peer)
        run("ip", "address", "add", f"{gateway}/24", "dev", device)
        run("ip", "link", "set", device, "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "wan0")
        self.run("ip", "link", "set", "wan0", "up")
        self._watcher: subprocess.Popen[str] | None = None
        self._events = self.directory / "events"

    def serve(self) -> None:
        """Limit a user who has a connection, and let people log in."""
        self.vff_qos("bootstrap")
        self._start_sshd()
        eventually(lambda: ":22 " in self.run("ss", "-Hntl"))
        with self._events.open("w") as file:
            self._watcher = subprocess.Popen(
                self._enter("stdbuf", "-oL", "conntrack", "-E", "-o", "timestamp"),
                stdout=file, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        # It listens once it sees what happens.
        eventually(self._is_watched)
        # Not before: by default the kernel tells of those alone that began while somebody listened.
        flow = "-p tcp -s 10.8.9.9 -d 10.8.9.1 --sport 5000 --dport 443 --state ESTABLISHED"
        self.run("conntrack", "-I", *flow.split(), "-t", "600", "--mark", str(MARK))

    def dead(self, verdict: str) -> None:
        """What comes for sshd meets ``verdict``."""
        chain = "" if verdict == "drop" else "flush chain inet dead c; "
        self.run("nft", f"{chain}{SILENT % verdict}")

    def close(self) -> None:
        for process in (self._watcher, self._sshd):
            if process is not None:
                process.kill()
                process.wait()

    # -- what its kernel has ----------------------------------------------------------------------

    def is_limited(self) -> bool:
        """Whether the connection bears its user's mark."""
        return f"mark={MARK}" in self.run("conntrack", "-L", "-p", "tcp", "--dport", "443")

    def seconds(self, throw: int) -> float:
        """From an SSH connection's first packet until the mark went, at the kill switch's first,
        second, ... throw."""
        eventually(lambda: len(self._seconds()) >= throw)
        return self._seconds()[throw - 1]

    def _seconds(self) -> list[float]:
        """As far as the events have come; Ansible may connect again afterwards."""
        found, connected = [], 0.0
        for line in self._events.read_text().splitlines():
            if (event := EVENT.match(line)) is None:
                continue
            at = float(f"{event[1]}.{event[2].zfill(6)}")
            if event[3] == "NEW" and " dport=22 " in event[4]:
                connected = at
            elif event[3] == "UPDATE" and "dport=443" in event[4] and "mark=0" in event[4]:
                found.append(at - connected)
        return found

    def vff_qos(self, *words: str) -> str:
        return self.run(str(self.directory / "vff-qos"), *words)

    def run(self, *words: str) -> str:
        return run(*self._enter(*words))

    # -- how it is made ---------------------------------------------------------------------------

    def _enter(self, *words: str) -> list[str]:
        return ["nsenter", "-t", self._pid, "-n", "-m", *words]

    def _start_sshd(self) -> None:
        assert self._sshd.stdin
        self._sshd.stdin.write("\n")
        self._sshd.stdin.flush()

    def _is_watched(self) -> bool:
        probe = "-p udp -s 10.8.9.9 -d 10.8.9.1 --sport 1 --dport 2 -t 9"
        self.run("conntrack", "-I", *probe.split())
        self.run("conntrack", "-D", *probe.split()[:-2])
        return "[NEW] udp" in self._events.read_text()

    def _files(self) -> None:
        made = self.directory
        (made / "settings.yml").write_text("if_wan: wan0\nleaf: pfifo\n")
        (made / "policy.yml").write_text("default: {upload: 2mbit, download: 3mbit}\n")
        (made / "code.py").write_text(WITHOUT_FILTERS)
        options = [f"--{what}={made}/{what}.yml" for what in ("settings", "policy")]
        options += [f"--{what}-dir={made}/{what}" for what in ("state", "run")]
        command = f'exec {sys.executable} {made}/code.py "$@" {" ".join(options)}'
        path = os.environ["PYTHONPATH"]
        for name, text in {
            "vff-qos": f"#!/bin/sh\nexport PYTHONPATH={path}\n{command}\n",
            "bin/systemctl": SYSTEMCTL,
        }.items():
            (made / name).write_text(text)
            (made / name).chmod(0o755)


class Fleet:
    """Nodes by name, and the operator's machine: this namespace."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("key", "host_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name))
        self.nodes = {name: FleetNode(int(name[1:]), directory) for name in (DEAD, *LIVE)}
        every = {
            "ansible_user": "root",
            "ansible_timeout": PATIENCE_S,
            "ansible_ssh_private_key_file": str(directory / "key"),
            "ansible_ssh_common_args": "-F none -o StrictHostKeyChecking=no "
            "-o UserKnownHostsFile=/dev/null",
            "ansible_python_interpreter": sys.executable,
        }
        hosts = {
            name: {"ansible_host": node.address, "node_directory": str(node.directory)}
            for name, node in self.nodes.items()
        }
        (directory / "hosts.json").write_text(json.dumps({"all": {"vars": every, "hosts": hosts}}))

    def disable(self, *words: str) -> subprocess.Popen[str]:
        """The kill switch, as an operator throws it."""
        # The path of a socket has 107 bytes at most.
        sockets = tempfile.mkdtemp(dir=self.directory.parent)
        return subprocess.Popen(
            ["make", "qos-disable", f"INVENTORY={self.directory}/hosts.json",
             "EXTRA=-e __qos_command='{{ node_directory }}/vff-qos'", *words],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MAKE"))},
                "ANSIBLE_SSH_CONTROL_PATH_DIR": sockets,
            },
        )  # fmt: skip


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    for node in made.nodes.values():
        node.close()


def test_a_node_that_does_not_answer_holds_up_no_other(fleet: Fleet) -> None:
    live = [fleet.nodes[name] for name in LIVE]
    for node in live:
        node.serve()
    first = fleet.disable(f"LIMIT={LIVE[0]}")
    said = first.communicate()[0]
    assert first.returncode == 0, said
    alone = live[0].seconds(1)
    assert not live[0].is_limited()
    live[0].vff_qos("bootstrap")
    assert all(node.is_limited() for node in live)

    fleet.nodes[DEAD].dead("drop")
    play = fleet.disable()
    try:
        eventually(lambda: not any(node.is_limited() for node in live), 300)
        # Nobody has waited for the dead one: ssh still does.
        assert play.poll() is None
    finally:
        fleet.nodes[DEAD].dead("reject with tcp reset")
        said = play.communicate()[0]
    assert play.returncode != 0
    assert re.search(rf"{DEAD} +: ok=\d+ +changed=0 +unreachable=1 ", said), said
    for name in LIVE:
        assert re.search(rf"{name} +: ok=[2-9] .* unreachable=0 +failed=0 ", said), said
    took = [live[0].seconds(2), *(node.seconds(1) for node in live[1:])]
    print(f"alone {alone:.2f} s, together {', '.join(f'{one:.2f}' for one in took)} s")
    # On a machine without time each takes longer, and they share its processors.
    assert max(took) <= max(LIMIT_S, len(live) * alone)
