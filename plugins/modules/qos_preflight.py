#!/usr/bin/python
# SPDX-License-Identifier: MIT
"""Says what would keep a node from running vff-qos; changes nothing and needs nothing installed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: qos_preflight
short_description: Look whether a node can run vff-qos
version_added: 0.1.0
author: vff.qos contributors
description:
  - Fails with one sentence for each thing that is missing or in the way.
  - Changes nothing, and works on a host on which nothing of vff-qos is installed.
attributes:
  check_mode:
    support: full
    description: Does the same, because it only reads.
  diff_mode:
    support: none
    description: Changes nothing.
options:
  wan:
    description: Interface that faces the clients; V(auto) is the device of the default route.
    type: str
    required: true
  ifb:
    description: Name of our IFB device.
    type: str
    required: true
  handle:
    description: Hexadecimal major number of our qdiscs.
    type: str
    required: true
  take_foreign_root:
    description: Consent to replace a root qdisc that is not a kernel default.
    type: bool
    default: false
  kernel_modules:
    description: Kernel modules that the agent needs.
    type: list
    elements: str
    required: true
  python:
    description: Interpreter that is to run the agent.
    type: path
    required: true
  imports:
    description: Python modules of the distribution that the agent needs.
    type: list
    elements: str
    default: []
  access_log:
    description: File that the agent will follow.
    type: path
    required: true
  wheel_dir:
    description: Directory that may hold wheels of an earlier run.
    type: path
    required: true
  user:
    description: Name of the account that an earlier run may have made.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Look whether the node can run vff-qos
  vff.qos.qos_preflight:
    wan: auto
    ifb: vffqos0
    handle: "5100"
    kernel_modules: [ifb, sch_htb]
    python: /usr/bin/python3
    access_log: /var/log/xray/access.log
    wheel_dir: /opt/vff-qos/wheels
    user: vff-qos
"""

RETURN = r"""
wan:
  description: The interface that V(auto) stands for, or the given one.
  type: str
  returned: success
  sample: eth0
family:
  description: Kind of distribution.
  type: str
  returned: success
  sample: debian
python_version:
  description: Version of the interpreter that is to run the agent.
  type: str
  returned: success
  sample: "3.11"
missing_imports:
  description: Which of O(imports) the interpreter does not find.
  type: list
  elements: str
  returned: success
  sample: [nftables]
wheels:
  description: SHA-256 by file name of what is in O(wheel_dir).
  type: dict
  returned: success
  sample: {}
account:
  description: Group, comment, home and shell of O(user); empty if there is none.
  type: dict
  returned: success
  sample: {}
notes:
  description: Things that do not stand in the way but that an operator should know.
  type: list
  elements: str
  returned: success
  sample: []
"""

import grp
import json
import os
import pwd
import re

from ansible.module_utils.basic import AnsibleModule

PYTHON_FLOOR = (3, 10)

#: ID in os-release -> (kind, lowest VERSION_ID).
SYSTEMS = {
    "debian": ("debian", (12,)),
    "ubuntu": ("debian", (22, 4)),
    "rhel": ("redhat", (9,)),
    "rocky": ("redhat", (9,)),
    "almalinux": ("redhat", (9,)),
    "centos": ("redhat", (9,)),
    "ol": ("redhat", (9,)),
}
SUPPORTED = "Debian 12 and later, Ubuntu 22.04 and later, the RHEL 9 family"


def parse_os_release(text):
    """The fields of /etc/os-release (os-release(5))."""
    fields = {}
    for line in text.splitlines():
        key, sep, value = line.partition("=")
        if sep and not key.startswith("#"):
            fields[key.strip()] = value.strip().strip("\"'")
    return fields


def system_family(fields):
    """(kind, problem) of a distribution: exactly one of the two is None."""
    name, version = fields.get("ID", "unknown"), fields.get("VERSION_ID", "")
    family, floor = SYSTEMS.get(name, (None, ()))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version))
    if family is None or numbers < floor:
        return None, f"{' '.join((name, version)).strip()} is not one of {SUPPORTED}"
    return family, None


def default_route_v4(text):
    """Device of the best default route in /proc/net/route, or None."""
    best = None
    for line in text.splitlines()[1:]:
        fields = line.split()
        # Flags: RTF_UP 1, RTF_REJECT 0x200.  Destination and mask 0 are the default route.
        if len(fields) < 8 or fields[1] != "00000000" or fields[7] != "00000000":
            continue
        flags, metric = int(fields[3], 16), int(fields[6])
        if flags & 1 and not flags & 0x200 and (best is None or metric < best[0]):
            best = (metric, fields[0])
    return best[1] if best else None


def default_route_v6(text):
    """Device of the best default route in /proc/net/ipv6_route, or None."""
    best = None
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 10 or fields[0] != "0" * 32 or fields[1] != "00":
            continue
        flags, metric = int(fields[8], 16), int(fields[5], 16)
        if (
            flags & 1
            and not flags & 0x200
            and fields[9] != "lo"
            and (best is None or metric < best[0])
        ):
            best = (metric, fields[9])
    return best[1] if best else None


def missing_modules(wanted, loaded, builtin, on_disk):
    """Those of ``wanted`` that the running kernel neither has nor can load.

    ``loaded`` is /proc/modules, ``builtin`` and ``on_disk`` are modules.builtin and modules.dep of
    the running kernel.
    """
    have = {line.split()[0] for line in loaded.splitlines() if line}
    for text in (builtin, on_disk):
        for line in text.splitlines():
            file = line.partition(":")[0].rpartition("/")[2]
            have.add(file.partition(".ko")[0].replace("-", "_"))
    return [name for name in wanted if name not in have]


def foreign_qdiscs(qdiscs, major):
    """(root, ingress): somebody else's qdiscs in the output of ``tc -j qdisc show dev X``.

    The kernel gives its own defaults the handle 0; whatever bears another one was put there.
    """
    root = ingress = None
    for qdisc in qdiscs:
        handle = int(qdisc.get("handle", "0:").rstrip(":") or "0", 16)
        # One more than the major is the handle of what splits packets above our tree.
        if qdisc.get("root") and handle not in (0, major, major + 1):
            root = f"{qdisc['kind']} {qdisc['handle']}"
        if qdisc.get("kind") == "ingress":
            ingress = "ingress"
    return root, ingress


def read(path):
    """Text of a file; empty if there is none."""
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def check_wan(module, problems):
    """The interface, after a look at its root qdisc."""
    wan = module.params["wan"]
    if wan == "auto":
        wan = default_route_v4(read("/proc/net/route")) or default_route_v6(
            read("/proc/net/ipv6_route")
        )
        if not wan:
            problems.append(
                "qos_if_wan is auto but there is no default route; set qos_if_wan to an interface"
            )
            return None
    if not os.path.exists(f"/sys/class/net/{wan}"):
        there = ", ".join(sorted(set(os.listdir("/sys/class/net")) - {"lo"}))
        problems.append(f"there is no interface {wan} (qos_if_wan); there are {there}")
        return wan
    tc = module.get_bin_path("tc", opt_dirs=["/usr/sbin", "/sbin"])
    if not tc:
        problems.append("the command tc is missing; install iproute2")
        return wan
    _rc, out, _err = module.run_command([tc, "-j", "qdisc", "show", "dev", wan], check_rc=True)
    root, ingress = foreign_qdiscs(
        json.loads(out or "[]"), int(module.params["handle"].rstrip(":"), 16)
    )
    if root and not module.params["take_foreign_root"]:
        problems.append(
            f"{wan} has a root qdisc that somebody else configured ({root}); "
            "set qos_take_foreign_root to true if vff-qos may replace it"
        )
    if ingress:
        problems.append(
            f"{wan} has an ingress qdisc of somebody else, which leaves no room for clsact; remove "
            f"it with `tc qdisc del dev {wan} ingress`"
        )
    return wan


def check_ifb(module, problems):
    """A device of that name that is no IFB is somebody else's."""
    name = module.params["ifb"]
    if not os.path.exists(f"/sys/class/net/{name}"):
        return
    ip = module.get_bin_path("ip", required=True, opt_dirs=["/usr/sbin", "/sbin"])
    _rc, out, _err = module.run_command([ip, "-j", "-d", "link", "show", name], check_rc=True)
    kind = json.loads(out)[0].get("linkinfo", {}).get("info_kind", "physical")
    if kind != "ifb":
        problems.append(f"{name} (qos_if_ifb) exists and is a {kind} device, not an IFB")


def check_kernel(module, problems):
    """Modules, of the kernel that runs now."""
    release = os.uname().release
    tree = f"/lib/modules/{release}"
    missing = missing_modules(
        module.params["kernel_modules"],
        read("/proc/modules"),
        read(f"{tree}/modules.builtin"),
        read(f"{tree}/modules.dep"),
    )
    if missing and not os.path.isdir(tree):
        problems.append(
            f"the modules of the running kernel {release} are not on the disk; "
            "if it was updated, reboot"
        )
    elif missing:
        problems.append(
            f"the kernel {release} has no module {', '.join(missing)}; install the distribution's "
            "full kernel (Debian: linux-image-amd64, RHEL: kernel-modules-extra)"
        )


def check_python(module, problems):
    """(version, missing imports) of the interpreter that is to run the agent."""
    python = module.params["python"]
    if not os.access(python, os.X_OK):
        problems.append(f"there is no interpreter {python} (qos_python)")
        return None, []
    # -I: what the user's own directories hold must not count.
    code = (
        "import sys; from importlib.util import find_spec; print(*sys.version_info[:2]); "
        "print(*[name for name in sys.argv[1:] if find_spec(name) is None])"
    )
    _rc, out, _err = module.run_command(
        [python, "-I", "-c", code, *module.params["imports"]], check_rc=True
    )
    first, _, second = out.partition("\n")
    version = tuple(int(part) for part in first.split())
    text = ".".join(str(part) for part in version)
    if version < PYTHON_FLOOR:
        floor = ".".join(str(part) for part in PYTHON_FLOOR)
        problems.append(
            f"{python} is Python {text}, the agent needs {floor} or newer; "
            "install one and set qos_python"
        )
    return text, second.split()


def account(name):
    """What the system knows of a user; empty if there is none, or no group of its number."""
    try:
        entry = pwd.getpwnam(name)
        group = grp.getgrgid(entry.pw_gid).gr_name
    except KeyError:
        return {}
    return {
        "group": group,
        "comment": entry.pw_gecos,
        "home": entry.pw_dir,
        "shell": entry.pw_shell,
    }


def hashes(module, directory):
    """SHA-256 by name of the files in a directory that may not exist."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return {name: module.sha256(os.path.join(directory, name)) for name in names}


def main():
    module = AnsibleModule(
        argument_spec={
            "wan": {"type": "str", "required": True},
            "ifb": {"type": "str", "required": True},
            "handle": {"type": "str", "required": True},
            "take_foreign_root": {"type": "bool", "default": False},
            "kernel_modules": {"type": "list", "elements": "str", "required": True},
            "python": {"type": "path", "required": True},
            "imports": {"type": "list", "elements": "str", "default": []},
            "access_log": {"type": "path", "required": True},
            "wheel_dir": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    problems, notes = [], []
    if os.geteuid() != 0:
        problems.append("vff.qos needs root on the node; run the play with `become: true`")
    family, problem = system_family(parse_os_release(read("/etc/os-release")))
    if problem:
        problems.append(problem)
    if not os.path.isdir("/run/systemd/system"):
        problems.append("systemd does not run here; vff-qos is started and watched by systemd")
    version, missing = check_python(module, problems)
    check_kernel(module, problems)
    wan = check_wan(module, problems)
    check_ifb(module, problems)
    log = module.params["access_log"]
    if log and not os.path.exists(log):
        notes.append(
            f"{log} (qos_xray_access_log_path) does not exist yet: "
            "nobody is limited until Xray writes it"
        )
    if problems:
        module.fail_json(msg=" | ".join(problems), problems=problems)
    module.exit_json(
        changed=False,
        wan=wan,
        family=family,
        python_version=version,
        missing_imports=missing,
        wheels=hashes(module, module.params["wheel_dir"]),
        account=account(module.params["user"]),
        notes=notes,
    )


if __name__ == "__main__":
    main()
