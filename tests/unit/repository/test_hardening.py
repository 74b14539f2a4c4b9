"""What systemd says of the units that the role writes, for each source: how little is left open,
and that it understands every line.

The lab node runs the agent under them, and asks its own systemd the same (verify.yml of the
molecule scenario). With VFF_QOS_PLATFORMS=1 (`make test-platforms`) the systemd of Debian 13 is
asked, too: its program and libraries, out of the lab's image.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from checkout import ROLE, ROOT
from lab import image

# Together: the units are rendered once.
pytestmark = pytest.mark.xdist_group("hardening")

SYSTEMDS = ["own", "trixie"] if os.environ.get("VFF_QOS_PLATFORMS") else ["own"]
#: systemd-analyze(1): ten times the exposure.
THRESHOLD = 15
TEMPLATES = sorted(path.name for path in (ROLE / "templates").glob("vff-qos-*.j2"))
SOURCES: dict[str, dict[str, Any]] = {
    "file": {},
    "container": {"qos_container": "remnanode", "qos_identity_source": "container"},
    "journal": {"qos_journal_unit": "xray.service", "qos_identity_source": "journal"},
    "webhook": {
        "qos_identity_source": "webhook",
        "qos_report_url": "https://example.com/",
        "qos_hooks_auth_url": "https://panel.example.com/auth",
    },
    "singbox": {
        "qos_sources": [{"type": "singbox", "address": "127.0.0.1:9091", "secret_file": "/s"}]
    },
    "singbox_container": {
        "qos_sources": [{"type": "singbox_log", "path": "/log", "container": "c"}]
    },
    "singbox_journal": {
        "qos_sources": [{"type": "singbox_log", "journal_unit": "sing-box.service"}]
    },
    "singbox_file": {"qos_sources": [{"type": "singbox_log", "path": "/var/log/sing-box.log"}]},
    "port": {
        "qos_identity_source": "webhook",
        "qos_webhook_listen": "127.0.0.1:8011",
        "qos_webhook_token": "0123456789abcdef0123456789abcdef",
    },
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of units for each source."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze")
    directory = tmp_path_factory.mktemp("units")
    tasks: list[dict[str, Any]] = []
    for source, variables in SOURCES.items():
        include = {"name": "vff.qos.qos", "tasks_from": "settings.yml", "public": True}
        tasks.append({"ansible.builtin.include_role": include, "vars": variables})
        # All in one task: each takes a second.
        template = f"lookup('ansible.builtin.template', '{ROLE}/templates/{{}}')"
        units = {
            name.removesuffix(".j2"): template.format(name)
            for name in TEMPLATES
            if "socket" not in name or source == "webhook"
        }
        text = ", ".join(f"'{name}': {lookup}" for name, lookup in units.items())
        copy = {"content": f"{{{{ {{{text}}} | to_json }}}}", "dest": f"{directory}/{source}.json"}
        tasks.append({"ansible.builtin.copy": copy, "vars": variables})
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    (directory / "play.yml").write_text(json.dumps([play]))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "play.yml"],
        cwd=directory,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for source in SOURCES:
        (directory / source).mkdir()
        for name, text in json.loads((directory / f"{source}.json").read_text()).items():
            # The agent is not installed here.
            unit = text.replace("/opt/vff-qos/venv/bin/vff-qos", "/bin/true")
            (directory / source / name).write_text(unit)
    return directory


@pytest.fixture(scope="module", params=SYSTEMDS)
def analyze(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command systemd-analyze of a version."""
    if request.param == "own":
        return ["systemd-analyze"]
    tree = tmp_path_factory.mktemp(request.param)
    disk = str(image.ensure(request.param).disk)
    library = f"{tree}/x86_64-linux-gnu"
    asked = [
        f"dump /usr/bin/systemd-analyze {tree}/systemd-analyze",
        f"rdump /usr/lib/systemd {tree}",
        f"rdump /usr/lib/x86_64-linux-gnu {tree}",
    ]
    for request_ in asked:
        subprocess.run(["debugfs", "-R", request_, disk], check=True, capture_output=True)
    return [
        f"{library}/ld-linux-x86-64.so.2", "--library-path",
        f"{library}:{library}/systemd:{tree}/systemd", f"{tree}/systemd-analyze",
    ]  # fmt: skip


def test_it_is_the_systemd_that_was_meant(analyze: list[str]) -> None:
    said = subprocess.run([*analyze, "--version"], capture_output=True, text=True, check=True)
    if len(analyze) > 1:
        assert said.stdout.startswith("systemd 257 ")


@pytest.mark.parametrize("source", SOURCES)
def test_at_most_1_5_is_left_open(rendered: Path, analyze: list[str], source: str) -> None:
    units = sorted((rendered / source).glob("*.service"))
    assert len(units) == sum(name.endswith(".service.j2") for name in TEMPLATES)
    for unit in units:
        done = subprocess.run(
            [*analyze, "security", "--offline=true", "--no-pager",
             f"--threshold={THRESHOLD}", unit.name],
            cwd=unit.parent,
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Overall exposure level" in done.stdout


@pytest.mark.parametrize("source", SOURCES)
def test_systemd_understands_every_line(rendered: Path, analyze: list[str], source: str) -> None:
    units = sorted(path.name for path in (rendered / source).iterdir())
    done = subprocess.run(
        [*analyze, "verify", "--man=no", "--recursive-errors=no",
         *(f"./{name}" for name in units)],
        cwd=rendered / source,
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{rendered / source}:"},
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_line_that_it_does_not_know_would_be_seen(rendered: Path, analyze: list[str]) -> None:
    """The words of `verify` are all that tells: it ends with 0 all the same."""
    unit = rendered / "wrong.service"
    text = (rendered / "file/vff-qos-gc.service").read_text()
    unit.write_text(text.replace("\nPrivateIPC=yes\n", "\nPrivateIpcs=yes\n"))
    done = subprocess.run(
        [*analyze, "verify", "--man=no", "--recursive-errors=no", f"./{unit.name}"],
        cwd=rendered,
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{rendered / 'file'}:"},
    )
    assert "PrivateIpcs" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "source,alike",
    [("singbox_container", "container"), ("singbox_journal", "journal"), ("singbox_file", "file")],
)
def test_sing_boxs_log_is_read_with_the_rights_that_xrays_takes(
    rendered: Path, source: str, alike: str
) -> None:
    units = [(rendered / one / "vff-qos-follow.service").read_text() for one in (source, alike)]
    assert units[0] == units[1]


def test_sing_boxs_stream_takes_the_loopback_and_no_capability(rendered: Path) -> None:
    unit = (rendered / "singbox/vff-qos-follow.service").read_text()
    assert "IPAddressAllow=localhost\n" in unit
    assert "CapabilityBoundingSet=CAP_NET_ADMIN\n" in unit
