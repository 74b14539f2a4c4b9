"""The way back of a node that a run has cut off: roles/qos/files/confirm.sh, with a real kernel.

systemd is imitated here by the states of units; the whole, with its timer and a login that no
longer comes through, runs on the lab node.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from checkout import PLUGINS, ROLE, ROOT

from .harness import WAN, WITHOUT_FILTERS, Network, run, snapshot

OURS = "vff-qos-bootstrap.service vff-qos-follow.service vff-qos-gc.timer vff-qos-webhook.socket"
THEIRS = "qos-follow.service vff-qos-nft.service"
#: As much of systemd as the script uses: a file for each unit, "enabled active". Starting our
#: bootstrap runs it.
SYSTEMCTL = """#!/bin/sh
cd {directory}/units
echo "$*" >> ../asked
verb=$1; shift
[ "$1" != --quiet ] || shift
if [ "$verb" = show ]; then  # show --value --property=NAME UNIT
    property=$2
    shift 2
fi
set_word() {{ echo "$1 $2" > "$3"; }}
for unit; do
    [ -e "$unit" ] && read -r enabled active < "$unit" || {{ enabled= active=inactive; }}
    case $verb in
    show)
        case $property in
        --property=UnitFileState) echo "$enabled" ;;
        --property=ActiveState) echo "$active" ;;
        --property=LoadState) [ -e "$unit" ] && echo loaded || echo not-found ;;
        *) exit 1 ;;
        esac ;;
    cat) [ -e "{directory}/etc/$unit" ] || exit 1 ;;
    stop) [ ! -e "$unit" ] || set_word "$enabled" inactive "$unit" ;;
    start)
        [ "$enabled" != masked ] || exit 1
        set_word "$enabled" active "$unit"
        [ "$unit" != vff-qos-bootstrap.service ] || "{directory}/vff-qos" bootstrap || exit 1 ;;
    disable) set_word disabled "$active" "$unit" ;;
    unmask) [ "$enabled" != masked ] || set_word disabled "$active" "$unit" ;;
    enable) set_word enabled "$active" "$unit" ;;
    mask) set_word masked "$active" "$unit" ;;
    esac
done
"""


class Machine:
    """A node with our files below ``directory``, and the play's steps on it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.kept = directory, directory / "kept"
        for name in ("bin", "units", "etc", "state", "run"):
            (directory / name).mkdir()
        self.settings = directory / "settings.yml"
        (directory / "policy.yml").write_text("default: {}\n")
        options = " ".join(
            [f"--{what}={directory}/{what}.yml" for what in ("settings", "policy")]
            + [f"--{what}-dir={directory}/{what}" for what in ("state", "run")]
        )
        (directory / "code.py").write_text(WITHOUT_FILTERS)
        self.program(
            directory / "vff-qos",
            f'#!/bin/sh\nexec {sys.executable} {directory}/code.py "$@" {options}',
        )
        self.program(directory / "bin/systemctl", SYSTEMCTL.format(directory=directory))
        self.program(directory / "bin/systemd-run", f'#!/bin/sh\necho "$@" > {directory}/timer\n')
        self.environment = {
            **os.environ,
            "PATH": f"{directory}/bin:{os.environ['PATH']}",
            "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{ROOT}/build",
        }

    @staticmethod
    def program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def sh(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, capture_output=True, text=True, env=self.environment, input=stdin
        )

    def unit(self, name: str, state: str) -> None:
        (self.directory / "units" / name).write_text(f"{state}\n")

    def state_of(self, name: str) -> str:
        return (self.directory / "units" / name).read_text().strip()

    def write(self, **texts: str) -> None:
        """As the role writes its files: with the module, and the old ones kept."""
        files = [{"path": f"{self.directory}/{n}", "content": text} for n, text in texts.items()]
        arguments = {"files": files, "keep_in": str(self.kept)}
        done = self.sh(
            sys.executable,
            str(PLUGINS / "modules/qos_files.py"),
            stdin=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        )
        assert done.returncode == 0, done.stdout

    def arm(self, theirs: str = "") -> None:
        play = yaml.safe_load((ROLE / "tasks/run.yml").read_text())
        program = play[0]["block"][0]["ansible.builtin.command"]["argv"][2]
        words = [
            str(self.kept),
            "25",
            f"{self.directory}/vff-qos",
            f"{self.directory}/state/state.db",
        ]
        script = (ROLE / "files/confirm.sh").read_text()
        done = self.sh("sh", "-c", program, "confirm", *words, OURS, theirs, stdin=script)
        assert done.returncode == 0, done.stderr
        timer = (self.directory / "timer").read_text()
        assert f"--on-active=25 --timer-property=AccuracySec=100ms /bin/sh {self.kept}" in timer

    def ask(self, verb: str, shell: str = "sh") -> subprocess.CompletedProcess[str]:
        """As the role disarms: with the script by standard input, since the node's may be gone."""
        command = f'sh -s {verb} "{self.kept}"; exit $?'
        return self.sh(shell, "-c", command, stdin=(ROLE / "files/confirm.sh").read_text())

    def back(self) -> str:
        done = self.sh("sh", f"{self.kept}/confirm.sh", "back", str(self.kept))
        assert done.returncode == 0 and "failed" not in done.stderr, done.stderr
        assert not self.kept.exists() and not Path(f"{self.kept}.back").exists()
        return done.stdout

    def bootstrap(self) -> None:
        done = self.sh(f"{self.directory}/vff-qos", "bootstrap")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def machine(net: Network, tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def settings(ceil: str) -> str:
    return f"if_wan: {WAN}\nleaf: pfifo\nwan_ceil: {ceil}\n"


def ceiling() -> str:
    found = run("tc", "class", "show", "dev", WAN, "classid", "5100:1")
    return found.partition(" ceil ")[2].split()[0]


def test_on_a_fresh_node_nothing_of_ours_stays_in_the_kernel(machine: Machine) -> None:
    before = snapshot()
    units = {f"etc/{unit}": "[Unit]\n" for unit in OURS.split()[:3]}
    machine.write(**{"settings.yml": settings("50mbit"), **units})
    machine.arm()
    for unit in OURS.split()[:3]:
        machine.unit(unit, "enabled active")
    machine.bootstrap()
    assert snapshot() != before
    machine.back()
    assert snapshot() == before
    assert not machine.settings.exists() and list((machine.directory / "etc").iterdir()) == []
    assert {machine.state_of(unit) for unit in OURS.split()[:3]} == {"disabled inactive"}


def test_a_node_that_ran_runs_again_as_before(machine: Machine) -> None:
    machine.write(**{"settings.yml": settings("500mbit"), "etc/vff-qos-bootstrap.service": "old\n"})
    shutil.rmtree(machine.kept)
    machine.settings.chmod(0o640)
    machine.bootstrap()
    for unit in OURS.split()[:3]:
        machine.unit(unit, "enabled active")
    before = {**snapshot(), "links": ""}  # an IFB device that is made anew has another address
    machine.write(**{"settings.yml": settings("700mbit"), "etc/vff-qos-bootstrap.service": "new\n"})
    assert (machine.kept.stat().st_mode & 0o777) == 0o700
    machine.arm()
    # A later change of the same run does not take the place of what was there before it.
    machine.write(**{"settings.yml": settings("800mbit")})
    machine.bootstrap()
    assert ceiling() == "800Mbit"
    machine.back()
    assert ceiling() == "500Mbit"
    assert {**snapshot(), "links": ""} == before
    assert machine.settings.read_text() == settings("500mbit")
    assert machine.settings.stat().st_mode & 0o777 == 0o640
    assert (machine.directory / "etc/vff-qos-bootstrap.service").read_text() == "old\n"
    assert {machine.state_of(unit) for unit in OURS.split()[:3]} == {"enabled active"}


def test_a_node_that_was_disabled_is_disabled_again(machine: Machine) -> None:
    machine.write(**{"settings.yml": settings("500mbit"), "etc/vff-qos-bootstrap.service": "u\n"})
    machine.bootstrap()
    assert machine.sh(f"{machine.directory}/vff-qos", "suspend").returncode == 0
    machine.unit("vff-qos-bootstrap.service", "masked inactive")
    machine.arm()
    machine.unit("vff-qos-bootstrap.service", "enabled active")
    machine.bootstrap()
    machine.back()
    assert machine.state_of("vff-qos-bootstrap.service") == "masked inactive"
    assert "htb" not in run("tc", "qdisc", "show", "dev", WAN)


def test_the_units_that_ours_replaced_run_again(machine: Machine) -> None:
    old, gone = THEIRS.split()
    machine.unit(old, "enabled active")
    machine.unit(gone, "disabled inactive")
    machine.write(**{"settings.yml": settings("50mbit")})
    machine.arm(THEIRS)
    machine.unit(old, "disabled inactive")
    machine.bootstrap()
    machine.back()
    assert machine.state_of(old) == "enabled active"
    assert machine.state_of(gone) == "disabled inactive"


def test_a_state_that_was_upgraded_meanwhile_is_the_old_one_again(machine: Machine) -> None:
    state = machine.directory / "state/state.db"
    state.with_name("state.db.schema-3").write_text("of an earlier upgrade")
    os.utime(state.with_name("state.db.schema-3"), (1, 1))
    machine.arm()
    for name, text in (("", "new"), ("-wal", "log"), ("-shm", "x"), (".schema-5", "old")):
        state.with_name(f"state.db{name}").write_text(text)
    soon = (machine.kept / "units").stat().st_mtime_ns + 10**9
    os.utime(state.with_name("state.db.schema-5"), ns=(soon, soon))
    (machine.directory / "vff-qos").unlink()
    machine.back()
    assert state.read_text() == "old"
    assert [path.name for path in state.parent.iterdir() if path != state] == ["state.db.schema-3"]


def test_a_new_program_that_cannot_go_is_removed_by_the_old_one(machine: Machine) -> None:
    """Be it that the new one does not even start."""
    before = snapshot()
    machine.write(**{"settings.yml": settings("50mbit")})
    machine.bootstrap()
    text = (machine.directory / "vff-qos").read_text()
    machine.write(**{"vff-qos": "#!/bin/sh\nexit 1\n"})
    (machine.directory / "vff-qos").chmod(0o755)
    machine.arm()
    machine.back()
    assert (machine.directory / "vff-qos").read_text() == text
    assert snapshot() == before


def test_only_a_new_login_confirms(machine: Machine) -> None:
    machine.arm()
    # What serves a login is called so; this one says of itself that the run has armed over it.
    shell = machine.directory / "sshd-session"
    shutil.copy("/bin/sh", shell)
    again = (
        f'. "{machine.directory}/login.sh"; login > "{machine.kept}/login"; '
        f'sh "{machine.kept}/confirm.sh" disarm "{machine.kept}"; exit $?'
    )
    text = (ROLE / "files/confirm.sh").read_text()
    (machine.directory / "login.sh").write_text(text.rpartition("\nverb=$1")[0])
    done = machine.sh(str(shell), "-c", again)
    assert done.returncode == 1
    assert "this is the old connection, which proves nothing" in done.stderr
    assert machine.kept.exists()
    done = machine.ask("disarm", str(shell))
    assert done.returncode == 0, done.stderr
    assert not machine.kept.exists()
    assert "stop vff-qos-confirm.timer" in (machine.directory / "asked").read_text()


def test_who_comes_too_late_is_told(machine: Machine) -> None:
    machine.write(**{"settings.yml": settings("50mbit")})
    machine.arm()
    machine.back()
    done = machine.ask("disarm")
    assert done.returncode == 1
    assert "too late: the node has put back what it had" in done.stderr


def test_after_the_confirmation_nothing_is_put_back(machine: Machine) -> None:
    machine.write(**{"settings.yml": settings("50mbit")})
    machine.arm()
    assert machine.ask("disarm").returncode == 0
    done = machine.ask("back")
    assert done.returncode == 0 and done.stdout == ""
    assert machine.settings.read_text() == settings("50mbit")
