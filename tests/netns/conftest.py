"""Every test here gets a network namespace of its own, with conntrack switched on."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator

import pytest

import vff_qos

# Commands run from the checkout, as the imports do.
_AGENT = os.path.dirname(os.path.dirname(vff_qos.__file__))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_AGENT, os.environ.get("PYTHONPATH"))))

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)

# Conntrack sees nothing in a namespace until a rule there uses it.
_TRACK = """
table inet track {
  chain in { type filter hook input priority 0; ct state new counter; }
  chain out { type filter hook output priority 0; ct state new counter; }
}
"""


def run(*command: str, stdin: str | None = None) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Move this process into a new namespace; children follow."""
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if _LIBC.unshare(_CLONE_NEWNET) != 0:
        pytest.skip(f"unshare: {os.strerror(ctypes.get_errno())}")
    try:
        run("ip", "link", "set", "lo", "up")
        run("nft", "-f", "-", stdin=_TRACK)
        yield
    finally:
        assert _LIBC.setns(home, _CLONE_NEWNET) == 0
        os.close(home)


@pytest.fixture
def trees() -> tuple[str, str]:
    """Two devices with the HTB trees that bootstrap makes (names of IFB and WAN).

    Leaves are pfifo and nothing classifies: kernels without fq_codel and cls_fw run this, too.
    """
    for ours, peer in (("wan0", "wan1"), ("vffqos0", "up1")):
        run("ip", "link", "add", ours, "type", "veth", "peer", "name", peer)
        run("ip", "link", "set", ours, "up")
        run("ip", "link", "set", peer, "up")
        run("tc", "qdisc", "add", "dev", ours, "root", "handle", "5100:", "htb", "default", "fffe")
        for parent, minor in (("5100:", "1"), ("5100:1", "fffe")):
            run(
                "tc",
                "class",
                "add",
                "dev",
                ours,
                "parent",
                parent,
                "classid",
                f"5100:{minor}",
                "htb",
                "rate",
                "100gbit",
                "burst",
                "1m",
                "cburst",
                "1m",
                "quantum",
                "60000",
            )
    return "vffqos0", "wan0"
