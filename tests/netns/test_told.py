"""Findings in the journal: each once when it begins, with its remedy, and once when it is over."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vff_qos.core.plan.desired import our_table
from vff_qos.kernel import nft

from .harness import SETTINGS, Client, eventually, run, status, user
from .journal_node import Told
from .senders import send_through

# They look at the processes of the machine.
pytestmark = pytest.mark.xdist_group("processes")

#: From a fault to its entry, and from its end to that of the entry: a bound, not what it takes.
WITHIN_S = 90.0


@pytest.fixture
def told(tmp_path: Path, trees: tuple[str, str]) -> Iterator[Told]:
    nft.replace_table(our_table(SETTINGS))
    made = Told(tmp_path)
    made.start()
    yield made
    made.close()


def entries(told: Told, event: str) -> list[str]:
    """The kinds that entries of an event tell of, the first before."""
    return [one["VFF_QOS_FINDING"] for one in told.entries(f"VFF_QOS_EVENT={event}")]


def begins(told: Told, kind: str) -> None:
    """It is told as `status` says it, once."""
    eventually(lambda: kind in entries(told, "degraded"), WITHIN_S)
    (finding,) = [f for f in status(told)["findings"] if f["kind"] == kind]
    *_, entry = told.entries("VFF_QOS_EVENT=degraded", f"VFF_QOS_FINDING={kind}")
    assert entry["PRIORITY"] == "4" and entry["VFF_QOS_REMEDY"] == finding["remedy"]
    assert entry["MESSAGE"] == f"{entry['VFF_QOS_ERROR']}; do: {finding['remedy']}"
    assert ("VFF_QOS_EVIDENCE" in entry) == bool(finding["evidence"])


def are_over(told: Told, *kinds: str) -> None:
    """They were told once each, and nothing else is wrong or was."""
    eventually(lambda: sorted(entries(told, "over")) == sorted(kinds), WITHIN_S)
    assert sorted(entries(told, "degraded")) == sorted(kinds)
    assert not [f for f in status(told)["findings"] if f["level"] != "OK"]
    assert all("over after " in e["MESSAGE"] for e in told.entries("VFF_QOS_EVENT=over"))


def test_what_only_status_knew_is_told(told: Told) -> None:
    clients = [user(told, f"user{number}@x") for number in range(9)]
    for client in clients:
        for device in ("wan0", "vffqos0"):
            send_through(device, (told.mark(client) or 0) & 0xFFFF)
    masked = clients[0].line("user0@x").replace(b"127.0.0.1", b"127.0.*.*")
    told.write(masked)
    begins(told, "masked")
    # However often it comes again.
    told.write(masked, masked)
    run("nft", "-f", "-", stdin="""
        table inet theirs {
          chain c { type filter hook input priority 0; tcp dport 4430 ct mark set 0x17; }
        }
    """)  # fmt: skip
    for client in clients:
        client.sock.send(b"x")
    begins(told, "marks_overwritten")
    run("nft", "delete", "table", "inet", "theirs")
    for client in clients:
        client.sock.close()
    run("conntrack", "-D", "-m", "0x17")
    told.stop()  # the log is forgotten with the agent, and the file begins anew
    told.log.write_bytes(b"")
    told.start()
    user(told, "user0@x")
    are_over(told, "marks_overwritten", "masked")


def test_the_collection_tells_what_no_agent_tells(told: Told) -> None:
    client = user(told, "alice@x")
    told.stop(signal.SIGKILL)
    minor = f"{(told.mark(client) or 0) & 0xFFFF:x}"
    run("tc", "class", "del", "dev", "wan0", "classid", f"5100:{minor}")
    told.run("gc", "--dry-run")
    assert entries(told, "degraded") == []
    told.run("gc")
    begins(told, "no_class")
    begins(told, "follower")
    assert told.entries("VFF_QOS_FINDING=no_class")[0]["MESSAGE"].startswith("without a class in")
    told.run("gc")
    told.start()
    # The agent does not look at all classes.
    eventually(lambda: entries(told, "over") == ["follower"], WITHIN_S)
    told.run("gc")
    are_over(told, "follower", "no_class")


def test_a_collection_that_cannot_be_tells_why(told: Told) -> None:
    settings = told.directory / "settings.yml"
    before = settings.read_text()
    settings.write_text(before.replace("wan0", "wan7"))
    done = subprocess.run(told.command("gc"), capture_output=True, text=True)
    assert done.returncode != 0 and "interface wan7 does not exist" in done.stderr
    (entry,) = told.entries("VFF_QOS_EVENT=trouble")
    assert entry["VFF_QOS_FINDING"] == "not_set_up" and "wan7 does not exist" in entry["MESSAGE"]
    settings.write_text(before)
    told.run("gc")
    eventually(lambda: "not_set_up" in entries(told, "over"), WITHIN_S)


def test_a_source_that_is_away_is_told_over_a_restart_once(told: Told) -> None:
    away = told.log.with_suffix(".away")
    told.log.rename(away)
    begins(told, "source_missing")
    told.stop()
    told.start()
    clients = [Client("127.0.0.1", 4430) for _ in range(3)]
    eventually(lambda: (status(told)["follower"] or {}).get("flows_known") == len(clients), 20.0)
    away.rename(told.log)
    are_over(told, "source_missing")
