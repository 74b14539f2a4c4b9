#!/usr/bin/python
# SPDX-License-Identifier: MIT
"""Installs distribution packages and remembers which ones, so that exactly those can go again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: qos_packages
short_description: Install packages so that they can be taken away again
version_added: 0.1.0
author: vff.qos contributors (@vff)
description:
  - V(present) installs what is missing and writes down every package that came, dependencies
    included.
  - V(absent) removes exactly the packages that were written down and that nothing else needs.
  - Uses C(apt-get) and C(dpkg), or C(dnf) and C(rpm), and leaves no Python bindings for them.
attributes:
  check_mode:
    support: full
    description: Says whether packages would come or go.
  diff_mode:
    support: full
    description: Shows the packages.
options:
  names:
    description: Packages to install. Must be empty with O(state=absent).
    type: list
    elements: str
    default: []
  record:
    description: Remembers what was installed. Its directory must be writable by root alone.
    type: path
    required: true
  state:
    description: Whether the packages are to be there.
    type: str
    choices: [present, absent]
    default: present
"""

EXAMPLES = r"""
- name: Install what the agent imports
  vff.qos.qos_packages:
    names: [python3-nftables, python3-systemd]
    record: /opt/vff-qos/packages

- name: Remove what was installed
  vff.qos.qos_packages:
    record: /opt/vff-qos/packages
    state: absent
"""

RETURN = r"""
packages:
  description: Packages that came or went (or would, in check mode).
  type: list
  elements: str
  returned: always
  sample: [libnftables1, python3-nftables]
kept:
  description: Packages that were written down and stay, because something else needs them by now.
  type: list
  elements: str
  returned: always
  sample: []
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

#: No questions, and no restart of unrelated services (Ubuntu's needrestart).
ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_SUSPEND": "1",
    "LC_ALL": "C",
}


def installed_packages(listing: str) -> set[str]:
    """Names in a listing of ``STATUS NAME`` lines; dpkg keeps lines of removed packages, too."""
    names = set()
    for line in listing.splitlines():
        status, _space, name = line.partition(" ")
        if status == "installed":
            names.add(name)
    return names


class Apt:
    """Debian and Ubuntu."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def installed(self) -> set[str]:
        _rc, out, _err = self.module.run_command(
            ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n"], check_rc=True
        )
        return installed_packages(out)

    def install(self, names: list[str]) -> None:
        command = [
            "apt-get", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300",
            "install", *names,
        ]  # fmt: skip
        rc, _out, _err = self.module.run_command(command)
        if rc != 0:
            # The package lists may be old or missing.
            self.module.run_command(
                ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update"], check_rc=True
            )
            self.module.run_command(command, check_rc=True)

    def remove(self, names: list[str]) -> str:
        """dpkg, unlike apt, refuses to take along what depends on a package; returns why."""
        _rc, _out, err = self.module.run_command(["dpkg", "--purge", *names])
        return str(err)


class Dnf:
    """The RHEL family."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def installed(self) -> set[str]:
        _rc, out, _err = self.module.run_command(
            ["rpm", "-qa", "--qf", "installed %{NAME}\n"], check_rc=True
        )
        return installed_packages(out)

    def install(self, names: list[str]) -> None:
        self.module.run_command(
            ["dnf", "-y", "-q", "--setopt=install_weak_deps=False", "install", *names],
            check_rc=True,
        )

    def remove(self, names: list[str]) -> str:
        """rpm refuses to break what depends on a package; returns why."""
        _rc, _out, err = self.module.run_command(["rpm", "-e", *names])
        return str(err)


def present(module: AnsibleModule, manager: Apt | Dnf) -> dict[str, Any]:
    before = manager.installed()
    missing = sorted(set(module.params["names"]) - before)
    result = {"changed": bool(missing), "packages": missing, "kept": []}
    if not missing or module.check_mode:
        return result
    manager.install(missing)
    new = sorted(manager.installed() - before)
    still_missing = sorted(set(missing) - set(new))
    if still_missing:
        module.fail_json(msg=f"{', '.join(still_missing)} did not come with its installation")
    record = module.params["record"]
    lines = sorted(set(new) | set(recorded(record)))
    temporary = f"{record}.new"
    with open(temporary, "w") as file:
        file.writelines(f"{line}\n" for line in lines)
    os.replace(temporary, record)
    return {**result, "packages": new}


def absent(module: AnsibleModule, manager: Apt | Dnf) -> dict[str, Any]:
    record = module.params["record"]
    ours = sorted(set(recorded(record)) & manager.installed()) if os.path.exists(record) else []
    result = {"changed": bool(ours), "packages": ours, "kept": []}
    if not ours or module.check_mode:
        return result
    why = manager.remove(ours)
    kept = sorted(set(ours) & manager.installed())
    if kept:
        module.warn(f"{', '.join(kept)} stays: {' '.join(why.split())}")
    return {
        "changed": kept != ours,
        "packages": [name for name in ours if name not in kept],
        "kept": kept,
    }


def recorded(path: str) -> list[str]:
    """Names in the record; none if there is no record."""
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "default": []},
            "record": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = ENVIRONMENT
    manager = Apt(module) if module.get_bin_path("apt-get") else Dnf(module)
    coming = module.params["state"] == "present"
    result = present(module, manager) if coming else absent(module, manager)
    names = "".join(f"{name}\n" for name in result["packages"])
    diff = {"before": "" if coming else names, "after": names if coming else ""}
    module.exit_json(diff=diff, **result)


if __name__ == "__main__":
    main()
