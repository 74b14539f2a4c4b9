#!/usr/bin/python
# SPDX-License-Identifier: MIT
"""A virtual environment with exactly the given wheels: no pip, no network, no compiler."""

from __future__ import annotations

DOCUMENTATION = r"""
module: qos_venv
short_description: A virtual environment made of wheels that come along
version_added: 0.1.0
author: vff.qos contributors (@vff)
description:
  - Builds a virtual environment that sees the system's packages, unpacks pure Python wheels into
    it and writes their commands.
  - The wheels that the node does not have yet come with the module itself, all in one connection.
    C(ansible.builtin.copy) takes three for each of them, which is half the time of a first run.
  - Uses neither pip nor ensurepip, so C(python3-venv) and C(python3-pip) need not be installed.
  - The environment is built beside the old one and takes its place by the rename of a symbolic
    link. A process that runs from the old one keeps its files; the one before that is deleted.
attributes:
  check_mode:
    support: full
    description: Says whether the environment would be built; sends no wheels for that.
  diff_mode:
    support: full
    description: Shows the names of the wheels.
options:
  path:
    description: Where the environment is to be found; becomes a symbolic link.
    type: path
    required: true
  python:
    description: Interpreter of the environment.
    type: path
    required: true
  python_version:
    description: Version of O(python); another one means another environment.
    type: str
    required: true
  wheel_dir:
    description: Directory with the wheels on the node. Other files in it are deleted.
    type: path
    required: true
  wheels:
    description: SHA-256 by file name of each wheel.
    type: dict
    required: true
  have:
    description: SHA-256 by file name of what is in O(wheel_dir) already, which is not sent again.
    type: dict
    default: {}
  contents:
    description: The wheels that are sent, in base64, by file name. Filled in on the controller.
    type: dict
    default: {}
  commands:
    description: Console scripts of the wheels that the environment is to offer.
    type: list
    elements: str
    default: []
  imports:
    description:
      - Python modules, from outside of the wheels, that the environment must be able to import.
      - If it cannot, the module fails and the old environment stays in place.
    type: list
    elements: str
    default: []
  keep_in:
    description:
      - Directory for the old link, so that it can be put back; the environment that it leads to
        stays.
    type: path
"""

EXAMPLES = r"""
- name: Build the agent's environment
  vff.qos.qos_venv:
    path: /opt/vff-qos/venv
    python: /usr/bin/python3
    python_version: "3.11"
    wheel_dir: /opt/vff-qos/wheels
    wheels:
      example-1.0-py3-none-any.whl: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    commands: [example]
"""

RETURN = r"""
directory:
  description: Directory that the link points to.
  type: str
  returned: always
  sample: /opt/vff-qos/venv-0123456789abcdef
"""

import base64
import configparser
import hashlib
import os
import re
import shutil
import zipfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vff.qos.plugins.module_utils.kept import keep

#: Goes up when the way in which environments are built changes.
LAYOUT = 1
MANIFEST = "wheels.txt"

LAUNCHER = """\
#!{python} -I
from {module} import {function}

if __name__ == "__main__":
    raise SystemExit({function}())
"""


def manifest(wheels: dict[str, str], python: str, python_version: str, commands: list[str]) -> str:
    """What an environment is made of, as text; two with the same text are the same."""
    lines = [f"layout {LAYOUT}", f"python {python} {python_version}"]
    lines += [f"command {name}" for name in sorted(commands)]
    lines += [f"{digest}  {name}" for name, digest in sorted(wheels.items())]
    return "\n".join(lines) + "\n"


def receive(module: AnsibleModule) -> bool:
    """Writes the wheels that came along; returns whether there were any."""
    params = module.params
    for name, content in sorted(params["contents"].items()):
        path = os.path.join(params["wheel_dir"], os.path.basename(name))
        with open(f"{path}.new", "wb") as file:
            file.write(base64.b64decode(content))
        os.chmod(f"{path}.new", 0o644)
        os.replace(f"{path}.new", path)
    return bool(params["contents"])


def console_scripts(entry_points: str) -> dict[str, tuple[str, str]]:
    """name -> (module, function) of an entry_points.txt."""
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(entry_points)
    scripts = {}
    if parser.has_section("console_scripts"):
        for name, target in parser.items("console_scripts"):
            module, _colon, function = target.partition("[")[0].strip().partition(":")
            scripts[name] = (module.strip(), function.strip())
    return scripts


def refuse_member(name: str) -> str | None:
    """Why a member of a wheel cannot be unpacked as it is, or None."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name:
        return f"{name} leads out of the wheel"
    if parts[0].endswith(".data"):
        return f"{name} needs an installer"
    if name.endswith((".so", ".pyd")):
        return f"{name} is a compiled module"
    return None


def is_left_out(name: str) -> bool:
    """Whether a member is a command of the library's own, which nobody needs on a node."""
    parts = name.split("/")
    return ".." not in parts and len(parts) > 2 and f"{parts[0][-5:]}/{parts[1]}" == ".data/scripts"


def unpack(
    module: AnsibleModule, wheel_dir: str, wheels: dict[str, str], site: str
) -> dict[str, tuple[str, str]]:
    """Unpacks the wheels into ``site`` after a look at their hashes; returns their scripts."""
    scripts = {}
    for name, digest in sorted(wheels.items()):
        path = os.path.join(wheel_dir, name)
        if not os.path.exists(path):
            module.fail_json(msg=f"{path} is missing")
        if module.sha256(path) != digest:
            module.fail_json(msg=f"{path} is damaged: its SHA-256 is not {digest}")
        with zipfile.ZipFile(path) as wheel:
            members = [member for member in wheel.namelist() if not is_left_out(member)]
            for member in members:
                reason = refuse_member(member)
                if reason:
                    module.fail_json(msg=f"{path}: {reason}")
                if member.endswith(".dist-info/entry_points.txt"):
                    scripts.update(console_scripts(wheel.read(member).decode()))
            wheel.extractall(site, members)
    return scripts


def remove_tree(path: str) -> None:
    """Deletes a directory that an interrupted run may have left."""
    if os.path.isdir(path):
        shutil.rmtree(path)


def build(module: AnsibleModule, directory: str, text: str) -> None:
    """Builds an environment in ``directory``, which appears only when it is whole."""
    params = module.params
    new = f"{directory}.new"
    remove_tree(new)
    # Readable by the agent's user, whatever umask root has.
    os.umask(0o022)
    module.run_command(
        [params["python"], "-I", "-m", "venv", "--without-pip", "--system-site-packages", new],
        check_rc=True,
    )
    site = os.path.join(new, "lib", f"python{params['python_version']}", "site-packages")
    scripts = unpack(module, params["wheel_dir"], params["wheels"], site)
    # The agent's user may not write byte code; without this each start would compile again.
    module.run_command(
        [f"{new}/bin/python", "-I", "-m", "compileall", "-q", "-j", "0", site], check_rc=True
    )
    if params["imports"]:
        code = "import " + ", ".join(params["imports"])
        rc, _out, err = module.run_command([f"{new}/bin/python", "-I", "-c", code])
        if rc != 0:
            why, names = err.strip().rpartition("\n")[2], ", ".join(params["imports"])
            remove_tree(new)
            module.fail_json(
                msg=f"{params['python']} (qos_python) cannot import all of {names}, although their "
                f"packages are installed: {why}; the packages are made for another Python"
            )
    for stale in [name for name in os.listdir(f"{new}/bin") if not name.startswith("python")]:
        os.unlink(f"{new}/bin/{stale}")
    for name in params["commands"]:
        if name not in scripts:
            module.fail_json(msg=f"no wheel has the command {name}")
        target, function = scripts[name]
        launcher = f"{new}/bin/{name}"
        with open(launcher, "w") as file:
            file.write(
                LAUNCHER.format(python=f"{directory}/bin/python", module=target, function=function)
            )
        os.chmod(launcher, 0o755)
    with open(os.path.join(new, MANIFEST), "w") as file:
        file.write(text)
    remove_tree(directory)
    os.rename(new, directory)


def point(path: str, directory: str) -> None:
    """Lets ``path`` point to ``directory``, in one step."""
    temporary = f"{path}.new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(os.path.basename(directory), temporary)
    os.replace(temporary, path)


def prune(path: str, keep: set[str]) -> None:
    """Deletes all environments but those whose names are in ``keep``."""
    parent, name = os.path.split(path)
    pattern = re.compile(re.escape(name) + r"-[0-9a-f]{16}(\.new)?")
    for entry in os.listdir(parent):
        if pattern.fullmatch(entry) and entry not in keep:
            shutil.rmtree(os.path.join(parent, entry))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "python": {"type": "path", "required": True},
            "python_version": {"type": "str", "required": True},
            "wheel_dir": {"type": "path", "required": True},
            "wheels": {"type": "dict", "required": True},
            "have": {"type": "dict", "default": {}},
            # Not secret, but nothing that a journal should hold.
            "contents": {"type": "dict", "default": {}, "no_log": True},
            "commands": {"type": "list", "elements": "str", "default": []},
            "imports": {"type": "list", "elements": "str", "default": []},
            "keep_in": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    path = params["path"]
    if os.path.lexists(path) and not os.path.islink(path):
        module.fail_json(msg=f"{path} exists and is not a link to an environment; move it away")
    text = manifest(
        params["wheels"], params["python"], params["python_version"], params["commands"]
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    directory = f"{path}-{digest}"
    old = os.readlink(path) if os.path.islink(path) else ""
    before = ""
    if old and os.path.exists(os.path.join(path, MANIFEST)):
        with open(os.path.join(path, MANIFEST)) as file:
            before = file.read()
    changed = before != text
    received = receive(module)
    if changed and not module.check_mode:
        build(module, directory, text)
        if params["keep_in"]:
            keep(params["keep_in"], path)
        point(path, directory)
        prune(path, {old, os.path.basename(directory)})
        for name in sorted(set(os.listdir(params["wheel_dir"])) - set(params["wheels"])):
            os.unlink(os.path.join(params["wheel_dir"], name))
    module.exit_json(
        changed=changed or received, directory=directory, diff={"before": before, "after": text}
    )


if __name__ == "__main__":
    main()
