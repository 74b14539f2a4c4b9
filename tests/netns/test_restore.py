"""What others did, and what was there before us, comes back as it was."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from vff_qos.commands import bootstrap
from vff_qos.core.settings import Settings

from .harness import WAN, Memory, Network, run, shown_qdiscs, snapshot, vff_qos


def test_a_saved_ruleset_that_is_loaded_again_is_healed(
    settings: Settings,
) -> None:
    """`nft list ruleset >file; nft -f file` makes every rule twice."""
    memory = Memory()
    settings = replace(settings, early_shaping=True)
    bootstrap.reconcile(settings, memory)
    whole = run("nft", "list", "table", "inet", "vff_qos")
    run("nft", "-f", "-", stdin=run("nft", "list", "ruleset"))
    twice = run("nft", "list", "table", "inet", "vff_qos").count("mark set")
    assert twice == 2 * whole.count("mark set") > 0
    assert bootstrap.reconcile(settings, memory) == ["change nft table inet vff_qos"]
    assert run("nft", "list", "table", "inet", "vff_qos") == whole
    assert bootstrap.reconcile(settings, memory) == []


@pytest.mark.usefixtures("net")
def test_a_packet_that_passes_an_htb_by_changes_no_comparison() -> None:
    """The kernel sends some by itself, whenever it likes."""
    run("tc", "qdisc", "add", "dev", WAN, "root", "handle", "1:", "htb")
    before, counted = snapshot(), run("tc", "qdisc", "show")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((WAN, 0))
        sock.send(bytes(60))
    assert run("tc", "qdisc", "show") != counted
    assert snapshot() == before


@pytest.mark.parametrize("root", ["mq", "handle 1234: mq"])
def test_multiqueue_with_children_of_somebody_comes_back(
    settings: Settings,
    root: str,
) -> None:
    run("ip", "link", "add", "mq0", "numtxqueues", "4", "type", "ifb")
    run("ip", "link", "set", "mq0", "up")
    run("tc", "qdisc", "replace", "dev", "mq0", "root", *root.split())
    handle = run("tc", "qdisc", "show", "dev", "mq0", "root").split()[2]
    children = ((1, "8002:", "pfifo limit 71"), (3, "2:", "tbf rate 1gbit burst 1m limit 1m"))
    for queue, child, words in children:
        where = ["parent", f"{handle}{queue}", "handle", child]
        run("tc", "qdisc", "replace", "dev", "mq0", *where, *words.split())
    run("tc", "qdisc", "replace", "dev", "mq0", "parent", "2:1", "handle", "1:", "bfifo")
    before = shown_qdiscs("dev", "mq0")
    memory = Memory()
    consent = replace(settings, wan="mq0", take_foreign_root=True)
    bootstrap.reconcile(consent, memory)
    lines = bootstrap.remove(consent, memory)
    assert f"restore root qdisc mq {handle} of mq0, with 3 qdiscs below it" in lines
    assert shown_qdiscs("dev", "mq0") == before


_TIMESTAMP = Path("/proc/sys/net/netfilter/nf_conntrack_timestamp")


@pytest.mark.parametrize("first", ["0", "1"])
def test_the_kernel_notes_when_connections_begin_and_does_as_before_after_us(
    settings: Settings,
    first: str,
) -> None:
    _TIMESTAMP.write_text(first)
    memory = Memory()
    step = "change sysctl net.netfilter.nf_conntrack_timestamp = 1"
    planned = bootstrap.reconcile(settings, memory, dry_run=True)
    assert (step in planned) == (first == "0") and _TIMESTAMP.read_text() == f"{first}\n"
    assert bootstrap.reconcile(settings, memory) == planned
    assert _TIMESTAMP.read_text() == "1\n"
    assert bootstrap.reconcile(settings, memory) == []
    bootstrap.remove(settings, memory)
    assert _TIMESTAMP.read_text() == f"{first}\n"


def test_a_sysctl_that_cannot_be_set_is_a_note_and_no_error(
    net: Network,
    tmp_path: Path,
) -> None:
    _TIMESTAMP.write_text("0")
    # As ProtectKernelTunables= does it, and containers.
    script = f'mount --bind -o ro {_TIMESTAMP} {_TIMESTAMP}; exec "$@"'
    read_only = ["unshare", "-m", "sh", "-ec", script, "sh"]
    for words, said in (
        (["bootstrap", "--plan"], "1 cannot be set: it is read-only here\n"),
        (["bootstrap"], "1 cannot be set: it is read-only here\n"),
        (["bootstrap"], "no change\n"),
        (["remove"], "remove ifb device vffqos0\n"),
    ):
        code, output = vff_qos(tmp_path, *words, within=read_only)
        assert code == 0 and output.endswith(said)
    assert _TIMESTAMP.read_text() == "0\n"


def test_a_node_that_has_no_names_of_protocols_has_the_same_rules(
    net: Network,
    tmp_path: Path,
) -> None:
    """Debian without netbase: libnftables then lists 6 and 17 for tcp and udp."""
    nameless = ["unshare", "-m", "sh", "-ec", 'mount --bind /dev/null /etc/protocols; exec "$@"']
    for within in ([*nameless, "sh"], []):
        code, output = vff_qos(tmp_path, "bootstrap", within=within, more="early_shaping: true\n")
        assert code == 0 and (output == "no change\n") == (not within)
