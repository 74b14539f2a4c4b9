"""The collection installed the ways people install it, each time from an empty project.

The sources are those of this checkout, committed or not, put into a repository of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from ansible_collections.vff.qos.plugins.plugin_utils.wheels import ensure

from checkout import DOCS, ROOT

BIN = Path(sys.executable).parent
WHEELS = ROOT / "roles" / "qos" / "files" / "wheels"
#: pip finds nothing, as on a machine without internet.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
PLAY = [
    {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "tasks": [
            {"vff.qos.qos_wheels": None, "register": "agent"},
            {"ansible.builtin.copy": {"content": "{{ agent | to_json }}", "dest": "agent.json"}},
        ],
    }
]


class Project:
    """An empty directory of an operator."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.tree = directory / "collections" / "ansible_collections" / "vff" / "qos"

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of ansible, as a machine without collections of its own has it."""
        own = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self.directory / "home"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "PYTHON"))}
        return subprocess.run(
            command,
            cwd=self.directory,
            capture_output=True,
            text=True,
            env={**kept, **own, **environment},
        )

    def install(self, *what: str) -> None:
        done = self.run(
            "ansible-galaxy", "collection", "install", *what, "-p", "collections", "--offline"
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def wheels(self, **environment: str) -> dict[str, object]:
        """What the role's own task finds."""
        (self.directory / "play.yml").write_text(yaml.safe_dump(PLAY))
        done = self.run("ansible-playbook", "play.yml", **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, object] = json.loads((self.directory / "agent.json").read_text())
        return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with what this checkout has now; nothing that git ignores is in it."""
    target = tmp_path_factory.mktemp("sources") / "vff.qos"
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com"]
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], cwd=target, check=True)
    return target


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    """What `make build` makes."""
    ensure(ROOT)


def names_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_from_git_the_wheels_are_built_once(project: Project, sources: Path) -> None:
    requirement = {"name": f"git+file://{sources}", "type": "git", "version": "main"}
    text = yaml.safe_dump({"collections": [requirement]})
    (project.directory / "requirements.yml").write_text(text)
    project.install("-r", "requirements.yml")
    first = project.wheels()
    assert first["built"] and not first["changed"]
    # Not again, and so without internet from now on.
    second = project.wheels(**OFFLINE)
    assert not second["built"]
    assert second["wheels"] == first["wheels"]
    built = project.tree / "roles" / "qos" / "files" / "wheels"
    assert [path.name for path in built.parent.iterdir() if path.name.startswith(".")] == []
    # The same bytes as `make build` has made of these sources.
    (ours,) = built.glob("vff_qos-*.whl")
    assert ours.read_bytes() == (WHEELS / ours.name).read_bytes()
    shared = (ROOT / "plugins" / "module_utils" / "rtnetlink.py").read_bytes()
    assert names_of(ours)["vff_qos/kernel/rtnetlink.py"] == shared
    assert (project.tree / "agent/src/vff_qos/kernel/rtnetlink.py").read_bytes() == shared


def test_without_internet_a_copy_from_git_says_what_to_do(project: Project, sources: Path) -> None:
    project.install(f"git+file://{sources},main")
    (project.directory / "play.yml").write_text(yaml.safe_dump(PLAY))
    done = project.run("ansible-playbook", "play.yml", **OFFLINE)
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert "This copy of vff.qos has no wheels of the agent" in said
    assert "without internet, install the tarball that `make build` makes" in said
    assert "Traceback" not in said
    assert not (project.tree / "roles" / "qos" / "files" / "wheels").exists()
    # Nothing half made stays: the next run with internet succeeds.
    assert project.wheels()["built"]


def test_from_the_tarball_nothing_is_built(project: Project, sources: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(sources, whole, symlinks=True)
    shutil.copytree(WHEELS, whole / "roles" / "qos" / "files" / "wheels")
    done = project.run("ansible-galaxy", "collection", "build", str(whole))
    assert done.returncode == 0, done.stderr
    (tarball,) = project.directory.glob("vff-qos-*.tar.gz")
    project.install(tarball.name)
    found = project.wheels(**OFFLINE)
    assert not found["built"]
    assert (project.tree / "agent/src/vff_qos/kernel/rtnetlink.py").read_bytes()


def test_from_a_local_path_the_wheels_of_that_path_count(
    project: Project, sources: Path, tmp_path: Path
) -> None:
    project.install(str(sources))
    assert project.wheels()["built"]
    whole = tmp_path / "whole"
    shutil.copytree(sources, whole, symlinks=True)
    shutil.copytree(WHEELS, whole / "roles" / "qos" / "files" / "wheels")
    other = Project(tmp_path / "other")
    other.install(str(whole))
    assert not other.wheels(**OFFLINE)["built"]


def test_wheels_of_other_sources_are_built_anew(project: Project, sources: Path) -> None:
    """A checkout that was pulled must not bring the old agent to the nodes."""
    project.install(str(sources))
    shutil.copytree(WHEELS, project.tree / "roles" / "qos" / "files" / "wheels")
    before = project.wheels(**OFFLINE)
    assert not before["built"]
    code = project.tree / "agent" / "src" / "vff_qos" / "__init__.py"
    code.write_text(code.read_text() + "# changed\n")
    after = project.wheels()
    assert after["built"] and after["wheels"] != before["wheels"]


def test_many_at_once_build_once(project: Project, sources: Path) -> None:
    """Ansible asks for many hosts at the same time."""
    project.install(str(sources))
    code = (
        "from ansible_collections.vff.qos.plugins.plugin_utils import wheels; "
        "print(wheels.ensure()[1])"
    )
    where = {"PYTHONPATH": str(project.directory / "collections")}

    def ask(_number: int) -> str:
        done = project.run(sys.executable, "-c", code, **where)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert sorted(answers) == ["False", "False", "False", "True"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root")
def test_a_directory_that_cannot_be_written_is_named(project: Project, sources: Path) -> None:
    project.install(str(sources))
    subprocess.run(["chmod", "-R", "a+rX", str(project.directory.parents[0])], check=True)
    for above in project.directory.parents:
        if above.stat().st_uid == 0 and above != Path("/") and above != Path("/tmp"):
            above.chmod(above.stat().st_mode | 0o055)
    code = (
        "import os; os.setgid(65534); os.setuid(65534); "
        "from ansible_collections.vff.qos.plugins.plugin_utils import wheels; wheels.ensure()"
    )
    done = project.run(
        sys.executable, "-c", code, PYTHONPATH=str(project.directory / "collections")
    )
    assert "roles/qos/files cannot be written by this user" in done.stderr


def test_the_playbook_is_found_where_the_documents_say(project: Project, sources: Path) -> None:
    project.install(str(sources))
    words = ("ansible-playbook", "--syntax-check", "-i", "localhost,", "vff.qos.site")
    # `-p collections` alone is not enough: this is why INSTALL.md has the file below.
    assert project.run(*words).returncode != 0
    page = (DOCS / "INSTALL.md").read_text()
    setting = "[defaults]\ncollections_path = collections\n"
    assert setting in page
    (project.directory / "ansible.cfg").write_text(setting)
    done = project.run(*words)
    assert done.returncode == 0, done.stderr
    (project.directory / "ansible.cfg").unlink()
    assert project.run(*words, ANSIBLE_COLLECTIONS_PATH="collections").returncode == 0


def test_an_empty_directory_gets_all_by_the_readme_alone(
    project: Project, sources: Path, tmp_path: Path
) -> None:
    """Its lines as they are, but for where the repository is, and that no node is asked."""
    repository = tmp_path / "repository"
    shutil.copytree(sources, repository, symlinks=True)
    text = (ROOT / "README.md").read_text()
    (inventory,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (project.directory / "inventory.yml").write_text(textwrap.dedent(inventory))
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    setting, install = lines[:2]
    plays = [line for line in lines if line.startswith("ansible-playbook ")]
    assert len(plays) == 4
    install = install.replace("git+https://github.com/vff/qos.git", f"git+file://{repository}")

    def by_hand(line: str) -> None:
        done = project.run("sh", "-c", line)
        assert done.returncode == 0, line + done.stdout + done.stderr

    by_hand(setting)
    by_hand(install)
    for line in plays:
        by_hand(line.replace(" --limit", " --syntax-check --limit"))
    page = repository / "docs" / "INSTALL.md"
    page.write_text("changed\n")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run([*git, "commit", "-qam", "changed"], cwd=repository, check=True)
    # "again: the upgrade", although the version is the same.
    by_hand(install)
    assert (project.tree / "docs" / "INSTALL.md").read_text() == "changed\n"


def test_nothing_of_the_workshop_is_installed(project: Project, sources: Path) -> None:
    project.install(str(sources))
    there = {path.name for path in project.tree.iterdir()}
    assert {"agent", "roles", "plugins", "playbooks", "docs"} <= there
    assert not {"tests", "build", ".git", ".venv", ".cache", "molecule"} & there
