"""Who may read the files that people write: what one reader of ours refuses, all refuse."""

from __future__ import annotations

import grp
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Client, Node, eventually, run

#: The agent's account; it has no name here.
ACCOUNT = 4711
_NOBODY = 0xFFFFFFFF


@pytest.fixture
def node(trees: tuple[str, str]) -> Iterator[Node]:
    # Not one of pytest's: those are for root alone.
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        directory.chmod(0o755)
        found = Node(directory)
        for name in ("state", "run", "policy.d"):
            (directory / name).mkdir()
            os.chown(directory / name, ACCOUNT, ACCOUNT)
        yield found
        found.stop()


def as_account(capabilities: str, *command: str) -> list[str]:
    """A command as a unit of ours runs it."""
    names = ",".join(f"+{name}" for name in capabilities.split())
    return [
        "setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--clear-groups",
        f"--inh-caps=-all,{names}", f"--ambient-caps={names}", f"--bounding-set=-all,{names}",
        *command,
    ]  # fmt: skip


READERS = {
    "root by hand": [],
    "bootstrap": as_account("net_admin"),
    "follower of a log": as_account("net_admin dac_read_search"),
}


def said(node: Node, reader: list[str], *words: str) -> str:
    """What a command that must be refused says, without its name."""
    done = subprocess.run(
        [*reader, *node.command(*words)], capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 2, done
    return done.stderr.partition(": ")[2]


@pytest.mark.parametrize("name", ["policy.yml", "policy.d/a.yml", "settings.yml"])
def test_all_readers_say_the_same_sentence(node: Node, name: str) -> None:
    (node.directory / "policy.d" / "a.yml").write_text("users: {}\n")
    path = node.directory / name
    path.chmod(0o600)
    sentences = {reader: said(node, words, "check-config") for reader, words in READERS.items()}
    sentences["a real follower"] = said(node, READERS["follower of a log"], "follow")
    assert set(sentences.values()) == {
        f"{path}: is root:root 0600, which the agent's account {ACCOUNT} cannot read; "
        f"'chgrp {ACCOUNT} {path}' and 'chmod 0640 {path}' let it\n"
    }
    os.chown(path, 0, ACCOUNT)
    path.chmod(0o640)
    for words in READERS.values():
        run(*words, *node.command("check-config"))


def test_files_that_are_not_in_place_yet_are_checked_by_root_alone(node: Node) -> None:
    """A play checks what it is about to write, in a directory of its own."""

    def check(new: Path, *words: str) -> tuple[int, str]:
        placed = str(node.directory / "settings.yml")
        command = [str(new) if word == placed else word for word in node.command(*words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        return done.returncode, done.stderr

    with tempfile.TemporaryDirectory() as made:  # for root alone
        new = Path(made) / "settings.yml"
        new.write_text((node.directory / "settings.yml").read_text())
        new.chmod(0o600)
        code, words = check(new, "check-config")
        assert code == 2 and "cannot read" in words
        assert check(new, "check-config", "--new") == (0, "")
        new.write_text("leef: pfifo\n")
        code, words = check(new, "check-config", "--new")
        assert code == 2 and "leef: unknown key" in words
    # Drop-ins are where they stay.
    drop_in = node.directory / "policy.d" / "a.yml"
    drop_in.write_text("users: {}\n")
    drop_in.chmod(0o600)
    assert "cannot read" in said(node, [], "check-config", "--new")


def test_an_access_list_counts(node: Node) -> None:
    path = node.directory / "policy.yml"
    path.chmod(0o600)
    # acl(5): owner rw, the account r, group nothing, mask r, others nothing.
    entries = [
        (1, 6, _NOBODY),
        (2, 4, ACCOUNT),
        (4, 0, _NOBODY),
        (16, 4, _NOBODY),
        (32, 0, _NOBODY),
    ]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", packed)
    except OSError as error:
        pytest.skip(f"no access lists here: {error}")
    for words in READERS.values():
        run(*words, *node.command("check-config"))


def test_the_last_good_policy_stays_in_force_and_a_mode_that_is_mended_is_noticed(
    node: Node,
) -> None:
    node.agent = subprocess.Popen(
        [*READERS["follower of a log"], *node.command("follow")], stderr=subprocess.PIPE, text=True
    )
    assert node.agent.stderr is not None
    assert "follows" in node.agent.stderr.readline()
    alice = Client("127.0.0.1", 4430)
    node.write(alice.line("alice@x"))
    eventually(lambda: node.mark(alice))
    minor = (node.mark(alice) or 0) & 0xFFFF
    node.write_policy("users:\n  alice@x: {upload: 7mbit}\n")
    eventually(lambda: node.classes()[0][minor] == 7_000_000)
    assert "policy in force" in node.agent.stderr.readline()
    path = node.directory / "policy.yml"
    path.chmod(0o600)
    line = node.agent.stderr.readline()
    assert "cannot read; " in line and line.endswith("; the old policy stays in force\n")
    done = subprocess.run(
        [*READERS["bootstrap"], *node.command("bootstrap", "--plan")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "; the last good policy stays in force" in done.stderr
    node.write_policy("users:\n  alice@x: {upload: 8mbit}\n")
    assert "cannot read; " in node.agent.stderr.readline()
    assert node.classes()[0][minor] == 7_000_000
    path.chmod(0o644)
    eventually(lambda: node.classes()[0][minor] == 8_000_000)


def test_metrics_are_written_with_one_capability_and_given_to_a_group(node: Node) -> None:
    """By less than the agent may do; it is still seen to run."""
    node.agent = subprocess.Popen(
        [*READERS["follower of a log"], *node.command("follow")], stderr=subprocess.PIPE, text=True
    )
    assert node.agent.stderr is not None
    assert "follows" in node.agent.stderr.readline()
    alice = Client("127.0.0.1", 4430)
    node.write(alice.line("alice@x"))
    eventually(lambda: node.mark(alice))
    group = grp.getgrnam("prometheus")
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text() + f"metrics_group: {group.gr_name}\n")
    file = node.directory / "run" / "vff_qos.prom"
    writer = as_account("net_admin")
    writer[writer.index("--clear-groups")] = f"--groups={group.gr_gid}"
    eventually((node.directory / "run" / "follow.json").exists, 12)
    run(*writer, *node.command("metrics", "--textfile", str(file)))
    shown = file.read_text().splitlines()
    assert "vff_qos_follower_up 1.0" in shown
    assert 'vff_qos_user_connections{user="alice@x"} 1.0' in shown
    about = file.stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o777) == (ACCOUNT, group.gr_gid, 0o640)
