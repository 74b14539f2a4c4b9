"""The journal as people read it: the agent, a journald of its own, journalctl and the catalog."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkout import ROLE
from vff_qos.config import Paths, load_policy, load_settings
from vff_qos.core.claims.accesslog import Claim
from vff_qos.core.events import EVENTS
from vff_qos.core.names import HASHED, Names, is_hash
from vff_qos.follower.assign import Assigner
from vff_qos.journal import Journal
from vff_qos.kernel.devices import shaping_devices
from vff_qos.kernel.packed.addresses import local_addresses
from vff_qos.kernel.packed.netlink import Netlink
from vff_qos.lock import Lock
from vff_qos.state import State

from .harness import Client, Network, Node, ceils, eventually, look, run, status, user, vff_qos
from .journal_node import Told
from .senders import send_through

# They look at the processes of the machine.
pytestmark = pytest.mark.xdist_group("processes")

CATALOG = ROLE / "files" / "vff-qos.catalog"
ALICE, BOB = "alice@x", "bob.trial@x"


@pytest.fixture
def told(tmp_path: Path, trees: tuple[str, str]) -> Iterator[Told]:
    made = Told(tmp_path)
    yield made
    made.close()


def test_a_users_name_tells_the_users_story(told: Told) -> None:
    told.write_policy("users:\n  alice@x: {upload: 5mbit, download: 10mbit}\n")
    told.start()
    alice = user(told, ALICE)
    user(told, "carol@x")
    eventually(lambda: told.story(ALICE) == ["user_came"])
    told.write_policy("users:\n  alice@x: {upload: 5mbit, download: 20mbit}\n")
    eventually(lambda: ceils(told, alice)[1] == 20_000_000)
    eventually(lambda: "limits_changed" in told.story(ALICE))
    told.run("limit", ALICE, "--download", "1mbit", "--for", "2s", "--reason", "ticket 4711")
    eventually(lambda: "override_ended" in told.story(ALICE))
    # A stranger's text reaches the line that names a connection from where she never was.
    other = Client("::1", 4430)
    torn = b"2026/11/26 01:00:00.000000 [Info] something else\n"
    told.write(torn, other.line(ALICE))
    eventually(lambda: "distrust" in told.story(ALICE))
    assert told.story(ALICE) == [
        "user_came", "limits_changed", "override", "override_ended", "distrust",
    ]  # fmt: skip
    came, changed, order, ended, distrust = told.entries(f"VFF_QOS_EMAIL={ALICE}")
    mark = told.mark(alice) or 0
    for entry in (came, changed, order, ended):
        assert entry["VFF_QOS_CLASS"] == f"5100:{mark & 0xFFFF:x}"
        assert entry["VFF_QOS_MARK"] == f"{mark:#010x}"
    for entry in (came, changed, order, ended, distrust):
        event = EVENTS[entry["VFF_QOS_EVENT"]]
        assert (entry["MESSAGE_ID"], entry["PRIORITY"]) == (event.message_id, str(event.priority))
        assert entry["SYSLOG_IDENTIFIER"] == "vff-qos"
    assert came["VFF_QOS_LIMITS"] == "upload 5mbit, download 10mbit"
    assert came["VFF_QOS_RULE"] == "an entry of its own"
    assert changed["VFF_QOS_LIMITS"] == "upload 5mbit, download 20mbit"
    assert "reason: ticket 4711" in order["MESSAGE"] and order["VFF_QOS_WHY"] == "ticket 4711"
    assert ended["VFF_QOS_WHY"] == "its time is up"
    assert distrust["VFF_QOS_FLOW"] == str(other.flow)
    # Nobody else's entries are hers.
    assert told.story("carol@x") == ["user_came"]


def test_who_goes_away_is_told(told: Told) -> None:
    told.start()
    alice = user(told, ALICE)
    eventually(lambda: told.story(ALICE) == ["user_came"])
    alice.sock.close()
    told.conntrack.set_entries([(e, 0) for e in told.conntrack.dump(0x51000000, 0x7FFF0000)])
    text = (told.directory / "settings.yml").read_text()
    (told.directory / "settings.yml").write_text(text.replace("3600", "1"))
    time.sleep(1.1)
    assert told.run("gc") == ""  # the journal has it with fields
    assert told.story(ALICE) == ["user_came", "user_collected"]
    assert told.entries("VFF_QOS_EVENT=user_collected")[0]["VFF_QOS_FATE"] == "parked"
    (collected,) = told.entries("VFF_QOS_EVENT=collected")
    assert collected["VFF_QOS_CHANGES"].startswith(f"park {ALICE} (class ")


def test_penalties_are_told_with_their_rule(told: Told) -> None:
    told.write_policy(
        "plans:\n"
        "  basic: {upload: 800mbit, download: 800mbit,\n"
        "          fair_use: [{more_than: 1MB, within: 1min, then: slow, for: 1h}]}\n"
        "  slow: {upload: 4mbit, download: 4mbit}\n"
        "users:\n  alice@x: {plan: basic}\n"
    )
    told.start()
    alice = user(told, ALICE)

    def is_slower() -> bool:
        send_through("wan0", (told.mark(alice) or 0) & 0xFFFF, 1_000)
        return "penalty" in told.story(ALICE)

    eventually(is_slower)  # what was sent before the first look is not counted
    told.write_policy("users:\n  alice@x: {download: 10mbit}\n")
    eventually(lambda: "penalty_ended" in told.story(ALICE), 15.0)
    (begun,) = told.entries("VFF_QOS_EVENT=penalty")
    assert begun["VFF_QOS_ORIGIN"].startswith("fair_use: ")
    assert begun["VFF_QOS_WHY"] and "plan slow" in begun["MESSAGE"]


def catalog_ids(told: Told) -> set[str]:
    listed = run(*told.within, "journalctl", "--list-catalog")
    return {line.split()[0] for line in listed.splitlines()}


def test_the_catalog_explains_every_entry_and_goes_again(told: Told) -> None:
    told.start()
    user(told, ALICE)
    eventually(lambda: told.story(ALICE))
    place = told.root / "usr/local/lib/systemd/catalog/vff-qos.catalog"
    place.parent.mkdir(parents=True)
    place.write_bytes(CATALOG.read_bytes())
    (told.root / "var/lib/systemd/catalog").mkdir()
    done = subprocess.run(
        [*told.within, "journalctl", "--update-catalog"], capture_output=True, text=True
    )
    # What cannot be parsed is a warning and no failure.
    assert (done.returncode, done.stderr) == (0, "")
    ours = {event.message_id for event in EVENTS.values()}
    assert ours <= catalog_ids(told)
    shown = told.journalctl("-x", f"VFF_QOS_EMAIL={ALICE}")
    assert f"Subject: {ALICE} has a class" in shown
    assert "Defined-By: vff.qos" in shown
    assert EVENTS["user_came"].means.partition(". ")[0].split()[-1] in shown
    place.unlink()
    run(*told.within, "journalctl", "--update-catalog")
    assert not ours & catalog_ids(told)


# -- hashes of emails -----------------------------------------------------------------------------


def everything_kept(node: Node) -> bytes:
    """What is on the disk and in /run, and what a look at the node shows."""
    kept = [p.read_bytes() for d in ("state", "run") for p in (node.directory / d).iterdir()]
    return b"".join([*kept, look(node, "--all")[1].encode(), look(node, "--json")[1].encode()])


def test_with_hashes_no_name_is_kept_and_commands_take_emails(told: Told) -> None:
    told.write_policy(
        'match: [{pattern: "*.trial@x", download: 1mbit}]\n'
        "users:\n  alice@x: {upload: 5mbit, download: 10mbit}\n"
    )
    told.set("hash_emails: true\n")
    told.start()
    key = told.directory / "state" / "email.key"
    assert key.stat().st_mode & 0o777 == 0o600
    alice, bob = user(told, ALICE), user(told, BOB)
    # By entry and by pattern, although neither name is kept.
    assert ceils(told, alice) == (5_000_000, 10_000_000)
    assert ceils(told, bob) == (2_000_000, 1_000_000)
    names = told.run("name", ALICE, BOB).split()
    assert len(set(names)) == 2 and all(map(is_hash, names))
    told.run("limit", ALICE, "--download", "2mbit", "--reason", "slow")
    assert ceils(told, alice)[1] == 2_000_000
    assert f"user {names[0]}" in told.run("explain", ALICE)
    assert "policy.yml:4" in told.run("explain", names[0])
    assert "pattern *.trial@x" in told.run("explain", BOB)
    assert [u["email"] for u in status(told, ALICE)["users"]] == names[:1]
    # Who came is told within a second.
    eventually(lambda: sorted(told.story(names[0])) == ["override", "user_came"])
    told.run("reset", ALICE)
    assert ceils(told, alice)[1] == 10_000_000
    # A mistake in the policy is told without the user's name.
    told.write_policy("users:\n  alice@x: {upload: 5mbot}\n")
    eventually(lambda: told.entries("VFF_QOS_EVENT=policy_refused"))
    assert "policy.yml:3: users: " in told.entries("VFF_QOS_EVENT=policy_refused")[0]["MESSAGE"]
    told.stop()
    journal = told.journalctl("-o", "export").encode()
    for email in (ALICE.encode(), BOB.encode()):
        assert email not in everything_kept(told)
        assert email not in journal
    # After a restart nobody has been seen yet, and everybody has what they had; the policy in force
    # is the last good one.
    told.start()
    assert ceils(told, alice) == (5_000_000, 10_000_000)
    assert ceils(told, bob) == (2_000_000, 1_000_000)


def test_switched_on_a_running_node_names_are_hashed_in_place(told: Told) -> None:
    told.write_policy('match: [{pattern: "*.trial@x", download: 1mbit}]\n')
    told.start()
    alice, bob = user(told, ALICE), user(told, BOB)
    told.run("limit", ALICE, "--download", "5mbit")
    before = told.mark(alice), told.mark(bob)
    assert ALICE.encode() in everything_kept(told)
    told.stop()
    told.set("hash_emails: true\n")
    told.start()
    assert ceils(told, alice)[1] == 5_000_000
    assert ceils(told, bob)[1] == 1_000_000
    told.write(alice.line(ALICE), bob.line(BOB))
    time.sleep(1.2)
    assert (told.mark(alice), told.mark(bob)) == before
    told.stop()
    kept = everything_kept(told)
    assert ALICE.encode() not in kept and BOB.encode() not in kept
    names = told.run("name", ALICE, BOB).split()
    assert [o.email for o in State(str(told.directory / "state")).overrides()] == names[:1]
    assert told.entries("VFF_QOS_EVENT=names")[-1]["PRIORITY"] == "5"


def test_switched_off_names_come_back_when_users_are_seen(told: Told) -> None:
    # carol has an entry of her own, so that her name is known at once.
    told.write_policy("users:\n  carol@x: {download: 4mbit}\n")
    told.set("hash_emails: true\n")
    told.start()
    alice, carol = user(told, ALICE), user(told, "carol@x")
    told.run("limit", ALICE, "--download", "5mbit")
    before = told.mark(alice)
    hashed = told.run("name", ALICE).strip()
    told.stop()
    text = (told.directory / "settings.yml").read_text()
    (told.directory / "settings.yml").write_text(text.replace("hash_emails: true\n", ""))
    told.start()
    state = State(str(told.directory / "state"))
    assert {o.key for o in state.owners() if o.is_user} == {hashed, "carol@x"}
    # Until she is seen, her email finds what was kept under the hash.
    assert told.run("name", ALICE).strip() == hashed
    again = Client("127.0.0.1", 4430)
    told.write(again.line(ALICE))
    eventually(lambda: told.mark(again) == before)
    assert ceils(told, again)[1] == 5_000_000
    eventually(lambda: {o.key for o in state.owners() if o.is_user} == {ALICE, "carol@x"}, 15.0)
    assert [o.email for o in state.overrides()] == [ALICE]
    assert told.run("name", ALICE).strip() == ALICE
    third = Client("127.0.0.1", 4430)
    told.write(third.line(ALICE))
    eventually(lambda: told.mark(third) == before)
    assert ceils(told, third)[1] == 5_000_000 and ceils(told, carol)[1] == 4_000_000
    assert not state.hashes() and state.get_value("names") is None


def test_a_lost_key_is_told_and_its_users_have_new_names(told: Told) -> None:
    told.set("hash_emails: true\n")
    told.start()
    user(told, ALICE)
    first = told.run("name", ALICE)
    told.stop()
    (told.directory / "state" / "email.key").unlink()
    done = subprocess.run(told.command("name", ALICE), capture_output=True, text=True)
    assert done.returncode == 1 and "email.key: is missing" in done.stderr
    told.start()
    assert told.run("name", ALICE) != first
    assert "another one" in told.entries("VFF_QOS_EVENT=names")[-1]["MESSAGE"]


def test_a_pattern_that_is_new_counts_for_who_was_seen(told: Told) -> None:
    told.set("hash_emails: true\n")
    told.start()
    bob = user(told, BOB)
    assert ceils(told, bob)[1] == 3_000_000
    told.write_policy('match: [{pattern: "*.trial@x", download: 1mbit}]\n')
    eventually(lambda: ceils(told, bob)[1] == 1_000_000)
    new = told.directory / "new.yml"
    new.write_text('default: {}\nmatch: [{pattern: "bob*", download: 7mbit}]\n')
    told.run("policy", "apply", str(new))
    assert ceils(told, bob)[1] == 7_000_000


def test_bootstrap_makes_the_key_once(net: Network, tmp_path: Path) -> None:
    key = tmp_path / "email.key"
    assert vff_qos(tmp_path, "bootstrap")[0] == 0
    assert not key.exists()
    code, said = vff_qos(tmp_path, "bootstrap", "--plan", more="hash_emails: true\n")
    assert (code, key.exists()) == (0, False), said
    made = []
    for _again in range(2):
        code, said = vff_qos(tmp_path, "bootstrap", more="hash_emails: true\n")
        assert code == 0, said
        made.append(key.read_bytes())
        assert key.stat().st_mode & 0o777 == 0o600
    assert len(made[0]) == 65 and made[0] == made[1]
    assert vff_qos(tmp_path, "remove", more="hash_emails: true\n")[0] == 0


def test_an_email_is_hashed_for_its_first_line_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    plain_hash = Names.hash

    def counting(names: Names, email: str) -> str:
        hashed.append(email)
        return plain_hash(names, email)

    monkeypatch.setattr(Names, "hash", counting)
    directory = str(node.directory)
    paths = Paths(f"{directory}/settings.yml", f"{directory}/policy.yml", f"{directory}/policy.d",
                  f"{directory}/state", f"{directory}/run")  # fmt: skip
    settings = load_settings(paths)
    assigner = Assigner(
        settings, load_policy(paths), State(paths.state_dir), Lock(paths.run_dir), Journal(),
        shaping_devices(settings), local_addresses(Netlink(0)), names=Names(HASHED, bytes(32)),
    )  # fmt: skip
    assigner.adopt()
    clients = [Client("127.0.0.1", 4430) for _ in range(8)]
    for _again in range(20):
        for number, client in enumerate(clients):
            source = f"127.0.0.1:{client.port}".encode()
            # Two users, four connections each; new ones displace records of spare classes.
            email = f"user{number % 2}@x".encode()
            assigner.assign([Claim(source, b"in >> direct", email, False, b"")])
    assert len({node.mark(client) for client in clients}) == 2
    # With the first line alone, which looks twice for a name that nobody has yet, and gives it.
    assert sorted(hashed) == ["user0@x"] * 3 + ["user1@x"] * 3
    assigner.close()
