#!/usr/bin/python
# SPDX-License-Identifier: MIT
"""Says what would keep a node from running vff-qos; changes nothing and needs nothing installed.

Longer than 400 lines: each of the many things that may be wrong with a host has a sentence here.
"""

from __future__ import annotations

DOCUMENTATION = r"""
module: qos_preflight
short_description: Look whether a node can run vff-qos
version_added: 0.1.0
author: vff.qos contributors (@vff)
description:
  - Fails with one sentence for each thing that is missing or in the way.
  - Changes nothing, and works on a host on which nothing of vff-qos is installed.
  - Where the lists of modules do not tell what the kernel has (no module tree, containers), each
    part is used once in a network namespace of its own.
attributes:
  check_mode:
    support: full
    description: Does the same, because it only reads.
  diff_mode:
    support: none
    description: Changes nothing.
options:
  wan:
    description:
      - Interface that faces the clients, by its name or an alternative name.
      - V(auto) is the device through which an unmarked packet to the Internet leaves.
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
  access_logs:
    description: Files that the agent will follow.
    type: list
    elements: path
    default: []
  singbox_logs:
    description: Logs of sing-box that the agent will follow.
    type: list
    elements: path
    default: []
  singboxes:
    description: Those whose stream of connections the agent will ask for.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description: Where the service C(api) listens.
        type: str
        required: true
      secret_file:
        description: File on the node with its secret.
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
  hooks_user:
    description: The same of the hooks' account.
    type: str
    required: true
  disabled_file:
    description: File in which C(vff-qos disable) says who has disabled this node by hand.
    type: path
    required: true
  override_disable:
    description: Consent to end what C(vff-qos disable) has ordered.
    type: bool
    default: false
  socket_unit:
    description: Unit file of the webhook's socket that an earlier run may have made.
    type: path
    required: true
  metrics_unit:
    description: The same of the file of metrics.
    type: path
    required: true
  hooks_unit:
    description: The same of the hooks.
    type: path
    required: true
  page_unit:
    description: The same of the page.
    type: path
    required: true
  state_file:
    description: State of the agent that an earlier run may have left.
    type: path
    required: true
  state_schema:
    description: Highest schema of O(state_file) that the agent of this version can read.
    type: int
    required: true
  units:
    description: Units that run where all is as it should be.
    type: list
    elements: str
    default: []
  kept:
    description: Directory that is there while the changes of a run are not confirmed.
    type: path
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
    access_logs: [/var/log/xray/access.log]
    wheel_dir: /opt/vff-qos/wheels
    user: vff-qos
    hooks_user: vff-qos-hooks
    disabled_file: /etc/vff-qos/disabled-by-hand
    socket_unit: /usr/local/lib/systemd/system/vff-qos-webhook.socket
    metrics_unit: /usr/local/lib/systemd/system/vff-qos-metrics.timer
    hooks_unit: /usr/local/lib/systemd/system/vff-qos-hooks.socket
    page_unit: /usr/local/lib/systemd/system/vff-qos-web.socket
    state_file: /var/lib/vff-qos/state.db
    state_schema: 6
    units: [vff-qos-bootstrap.service, vff-qos-follow.service]
    kept: /run/vff-qos-confirm
"""

RETURN = r"""
wan:
  description: Name of the interface that V(auto) or an alternative name stands for.
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
  description: Which of O(imports) the interpreter cannot import.
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
hooks_account:
  description: The same of O(hooks_user).
  type: dict
  returned: success
  sample: {}
disabled:
  description: Whether somebody has disabled this node by hand.
  type: bool
  returned: success
  sample: false
webhook_socket:
  description: Where O(socket_unit) listens; empty if there is no such unit.
  type: str
  returned: success
  sample: /run/vff-qos-webhook.sock
metrics:
  description: Whether O(metrics_unit) is there.
  type: bool
  returned: success
  sample: false
hooks:
  description: Whether O(hooks_unit) is there.
  type: bool
  returned: success
  sample: false
page:
  description: Whether O(page_unit) is there.
  type: bool
  returned: success
  sample: false
running:
  description: Whether all of O(units) run.
  type: bool
  returned: success
  sample: true
unconfirmed:
  description: Whether an earlier run has changed something and was not confirmed.
  type: bool
  returned: success
  sample: false
old_role:
  description:
    - What is on the node of the shell-based role C(qos_per_user_xray); empty if it is not there.
    - C(units) are to be stopped, C(files) to be deleted, in this order.
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
import socket
from typing import Iterable

try:
    import sqlite3
except ImportError:  # an interpreter without it, or whose library is missing
    sqlite3 = None  # type: ignore[assignment]

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vff.qos.plugins.module_utils import kernel_features, old_role, rtnetlink

PYTHON_FLOOR = (3, 10)
#: By this alias (`ip link`) the agent knows its own IFB device.
ALIAS = "vff-qos"

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

#: The interpreters for which distributions make their packages; the first that is there counts.
DISTRIBUTION_PYTHONS = ("/usr/libexec/platform-python", "/usr/bin/python3")
#: Import name -> name on PyPI, for an interpreter that is not the distribution's.
PYPI = {"nftables": "pip-nftables", "systemd.journal": "systemd-python", "yaml": "PyYAML"}
#: Really imports: a package for another version of Python may lie there without its compiled half.
LOOK = """
import importlib, json, sys
missing = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception:
        missing.append(name)
print("\\n" + json.dumps([sys.version_info[:2], missing, sys.path]))
"""


def parse_os_release(text: str) -> dict[str, str]:
    """The fields of /etc/os-release (os-release(5))."""
    fields = {}
    for line in text.splitlines():
        key, sep, value = line.partition("=")
        if sep and not key.startswith("#"):
            fields[key.strip()] = value.strip().strip("\"'")
    return fields


def system_family(fields: dict[str, str]) -> tuple[str | None, str | None]:
    """(kind, problem) of a distribution: exactly one of the two is None."""
    name, version = fields.get("ID", "unknown"), fields.get("VERSION_ID", "")
    family, floor = SYSTEMS.get(name, (None, ()))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version))
    # Debian's testing and sid have no VERSION_ID: they are later than every release.
    newer = name == "debian" and not version
    if family is None or (numbers < floor and not newer):
        said = f"{name} {version}" if version else f"{name} without a VERSION_ID (/etc/os-release)"
        return None, f"{said} is not one of {SUPPORTED}"
    return family, None


def foreign_qdiscs(
    qdiscs: Iterable[rtnetlink.TopQdisc],
    ifindex: int,
    majors: Iterable[int],
    old_roots: Iterable[rtnetlink.TopQdisc] = (),
) -> tuple[str | None, str | None]:
    """(root, ingress): somebody else's qdiscs on a device, for people; None if there is none.

    The kernel gives its own defaults the handle 0; whatever bears another one was put there.
    ``old_roots`` are those of a role that is to be taken over.
    """
    # The tree itself, what splits packets above one, and the mq above several.
    ours = {0, *majors, *(major + 1 for major in majors), *(major | 0xFF for major in majors)}
    root = ingress = None
    for qdisc in qdiscs:
        if qdisc in old_roots:
            continue
        if qdisc.ifindex == ifindex and qdisc.hook == "root" and qdisc.major not in ours:
            root = f"{qdisc.kind} {qdisc.major:x}:"
        if qdisc.ifindex == ifindex and qdisc.kind == "ingress":
            ingress = "ingress"
    return root, ingress


def read(path: str) -> str:
    """Text of a file; empty if there is none."""
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def old_roots(
    old: old_role.OldRole, links: list[rtnetlink.Link], qdiscs: list[rtnetlink.TopQdisc]
) -> list[rtnetlink.TopQdisc]:
    """The root qdiscs of the old role, by what its settings say and how it makes them."""
    found = []
    ifb = next((link.ifindex for link in links if link.name == old.ifb), None)
    for qdisc in qdiscs:
        wanted = old_role.IFB_MAJOR if qdisc.ifindex == ifb else old_role.WAN_MAJOR
        if qdisc.hook == "root" and qdisc.major == wanted:
            minors = rtnetlink.class_minors(qdisc.ifindex, wanted)
            if old_role.is_tree(qdisc.kind, qdisc.major, qdisc.default, minors, wanted):
                found.append(qdisc)
    return found


def check_old_ingress(old: old_role.OldRole, wan: rtnetlink.Link, problems: list[str]) -> bool:
    """Whether the ingress qdisc of the WAN device is the old role's, as far as we may take it."""
    ifb = rtnetlink.find_link(old.ifb)
    if ifb is None or ifb.kind != "ifb":
        return False
    filters = rtnetlink.ingress_filters(wan.ifindex)
    others = [found for found in filters if found != old_role.FILTER]
    if len(others) == len(filters):
        return False
    if others:
        told = ", ".join(sorted({f"{found.kind} pref {found.pref}" for found in others}))
        problems.append(
            f"the ingress qdisc of {wan.name}, which the role {old_role.NAME} made, has filters of "
            f"others: {told}; move them"
        )
    return True


def check_old_role(
    module: AnsibleModule, notes: list[str], problems: list[str]
) -> tuple[old_role.OldRole | None, dict[str, list[str]]]:
    """(settings of the old role, what is on the node of it); (None, {}) if it is not there."""
    old = old_role.read_env(read(old_role.ENV))
    if old is None:
        return None, {}
    units = {name: read(old_role.unit_path(name)) for name in old_role.UNITS}
    there = {name: text for name, text in units.items() if text}
    files = [path for path in old_role.files_of(there) if os.path.lexists(path)]
    notes.append(
        f"the role {old_role.NAME} is on this node and will be replaced; it gave everybody upload "
        f"{old.upload} and download {old.download} (here: qos_upload_default and "
        "qos_download_default, or plans)"
    )
    logs = module.params["access_logs"]
    log = logs[0] if logs else ""
    if logs and not any(os.path.exists(one) for one in logs):
        problems.append(
            f"the role {old_role.NAME} reads {old.access_log} in container {old.container}, and "
            f"there is no {log} (qos_xray_access_log_path): nobody would be limited; set "
            f"qos_container: {old.container} and qos_xray_access_log_path: {old.access_log}, or "
            "another qos_identity_source"
        )
    return old, {"units": list(there), "files": files}


def check_wan(
    module: AnsibleModule,
    problems: list[str],
    notes: list[str],
    old: old_role.OldRole | None = None,
) -> str | None:
    """Name of the interface, after a look at its root qdisc; None if there is none."""
    wanted, links = module.params["wan"], rtnetlink.all_links()
    there = ", ".join(sorted(link.name for link in links if link.leads_out)) or "none"
    if wanted == "auto":
        wan = rtnetlink.uplink()
        if wan is None:
            problems.append(
                "qos_if_wan is auto but there is no default route; set qos_if_wan to an interface; "
                f"there are {there}"
            )
            return None
        if wan.is_tunnel:
            notes.append(
                f"qos_if_wan is auto, and packets to the Internet leave through {wan.name}, a "
                "tunnel; if clients come by another interface, set qos_if_wan to that one; "
                f"there are {there}"
            )
    else:
        wan = rtnetlink.find_link(wanted)
        if wan is None:
            problems.append(f"there is no interface {wanted} (qos_if_wan); there are {there}")
            return None
    qdiscs = rtnetlink.top_qdiscs()
    configured = int(module.params["handle"].rstrip(":"), 16)
    majors = {configured} | rtnetlink.tree_majors(ALIAS, links, qdiscs)
    theirs = old_roots(old, links, qdiscs) if old else []
    root, ingress = foreign_qdiscs(qdiscs, wan.ifindex, majors, theirs)
    elsewhere = [
        link.name
        for link in links
        if old
        and link.name not in (wan.name, old.ifb)
        and link.ifindex in {qdisc.ifindex for qdisc in theirs}
    ]
    if elsewhere:
        problems.append(
            f"qos_if_wan is {wan.name}, but the role {old_role.NAME} limits on "
            f"{', '.join(elsewhere)}; set qos_if_wan to it, or remove that role first"
        )
    if ingress and old and check_old_ingress(old, wan, problems):
        ingress = None
    if root and not module.params["take_foreign_root"]:
        problems.append(
            f"{wan.name} has a root qdisc that somebody else configured ({root}); "
            "set qos_take_foreign_root to true if vff-qos may replace it"
        )
    if ingress:
        problems.append(
            f"{wan.name} has an ingress qdisc of somebody else, which leaves no room for clsact; "
            f"remove it with `tc qdisc del dev {wan.name} ingress`"
        )
    return wan.name


def check_ifb(
    module: AnsibleModule,
    wan: str | None,
    problems: list[str],
    old: old_role.OldRole | None = None,
) -> None:
    """A device of that name that is no IFB of ours is somebody else's."""
    name = module.params["ifb"]
    link = rtnetlink.find_link(name)
    if old and name == old.ifb and link is not None and link.kind == "ifb" and not link.alias:
        roots = old_roots(old, [link], rtnetlink.top_qdiscs())
        if any(qdisc.ifindex == link.ifindex for qdisc in roots):
            return  # the old role's becomes ours
    if name == wan:
        problems.append(
            f"qos_if_ifb is {name}, the interface that faces the clients; choose another"
        )
    elif link is not None and link.kind != "ifb":
        kind = link.kind or "physical"
        problems.append(f"{name} (qos_if_ifb) exists and is a {kind} device, not an IFB")
    # One without an alias that is down is what a creation of ours that was cut short leaves.
    elif link is not None and link.alias != ALIAS and (link.alias or link.is_up):
        problems.append(
            f"{name} (qos_if_ifb) exists and is somebody else's IFB (its alias is not {ALIAS}); "
            "choose another name, or remove it"
        )


def check_kernel(module: AnsibleModule, problems: list[str], notes: list[str]) -> None:
    """Parts of the kernel that runs now."""
    release = os.uname().release
    tree = f"/lib/modules/{release}"
    listed = kernel_features.listed_modules(
        read("/proc/modules"),
        os.listdir("/sys/module") if os.path.isdir("/sys/module") else [],
        read(f"{tree}/modules.builtin"),
        read(f"{tree}/modules.dep"),
    )
    missing = [name for name in module.params["kernel_modules"] if name not in listed]
    if not missing:
        return
    if os.path.exists(f"{tree}/modules.dep"):
        problems.append(
            f"the kernel {release} has no module {', '.join(missing)}; install the distribution's "
            "full kernel (Debian: linux-image-amd64, RHEL: kernel-modules-extra)"
        )
        return
    lacking, unknown = try_features(module, missing)
    if lacking:
        problems.append(
            f"the kernel {release} cannot do what {', '.join(lacking)} does (tried), and its "
            "modules are not on the disk; if it was updated, reboot; in a container, the host must "
            "load them; otherwise take a kernel that has them"
        )
    if unknown:
        notes.append(
            f"whether the kernel {release} has {', '.join(unknown)} shows when vff-qos starts: "
            "its modules are not on the disk, and what would try it is not installed"
        )


def try_features(module: AnsibleModule, names: list[str]) -> tuple[list[str], list[str]]:
    """(what this kernel lacks, what nobody can tell) of ``names``, by doing."""
    lacking: list[str] = []
    unknown: list[str] = []
    by_script: list[str] = []
    for name in names:
        if name in kernel_features.NETFILTER:
            if not rtnetlink.nfnetlink_answers(*kernel_features.NETFILTER[name]):
                lacking.append(name)
        elif name in kernel_features.ATTEMPTS:
            by_script.append(name)
        else:
            unknown.append(name)
    if by_script:
        shell = ["/bin/sh", "-c", kernel_features.attempt_script(by_script)]
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
        _rc, out, _err = module.run_command(shell, environ_update={"PATH": path})
        found = kernel_features.read_attempts(out)
        verdicts = {name: found.get(name, ("tool", ""))[0] for name in by_script}
        lacking += [name for name in by_script if verdicts[name] == "no"]
        unknown += [name for name in by_script if verdicts[name] == "tool"]
    return lacking, unknown


def look_at_python(
    module: AnsibleModule, python: str
) -> tuple[tuple[int, ...], list[str], list[str]] | None:
    """(version, missing imports, module path) of an interpreter; None if it is none."""
    # -I: what the user's own directories hold must not count.
    _rc, out, _err = module.run_command([python, "-I", "-c", LOOK, *module.params["imports"]])
    try:
        version, missing, path = json.loads(out.strip().rpartition("\n")[2])
        return tuple(version), missing, path
    except (ValueError, TypeError):
        return None


def check_python(module: AnsibleModule, problems: list[str]) -> tuple[str | None, list[str]]:
    """(version, missing imports) of the interpreter that is to run the agent."""
    python = module.params["python"]
    if not os.access(python, os.X_OK):
        problems.append(f"there is no interpreter {python} (qos_python)")
        return None, []
    found = look_at_python(module, python)
    if found is None:
        problems.append(f"{python} (qos_python) is no Python interpreter")
        return None, []
    version, missing, path = found
    text = ".".join(str(part) for part in version)
    if version < PYTHON_FLOOR:
        floor = ".".join(str(part) for part in PYTHON_FLOOR)
        problems.append(
            f"{python} is Python {text}, the agent needs {floor} or newer; "
            "install one and set qos_python"
        )
    elif missing:
        useless = packages_do_not_help(module, python, missing, path)
        if useless:
            problems.append(
                f"{python} (qos_python, Python {text}) cannot import {', '.join(missing)}, and the "
                f"distribution's packages are made for {useless}: set qos_python to that one if it "
                f"is {'.'.join(str(part) for part in PYTHON_FLOOR)} or newer, or give {python} its "
                f"own (`{python} -m pip install {' '.join(PYPI.get(n, n) for n in missing)}`)"
            )
    return text, missing


def packages_do_not_help(
    module: AnsibleModule, python: str, missing: list[str], path: list[str]
) -> str:
    """The interpreter for which packages of the distribution are made, with its version, if
    ``python`` would not see what they bring; empty if it would."""
    base = next((name for name in DISTRIBUTION_PYTHONS if os.access(name, os.X_OK)), None)
    if base is None or os.path.realpath(base) == os.path.realpath(python):
        return ""
    found = look_at_python(module, base)
    if found is None:
        return ""
    version, base_missing, base_path = found
    packages = ("dist-packages", "site-packages")
    shared = {entry for entry in base_path if entry.endswith(packages)} & set(path)
    if shared and set(missing) <= set(base_missing):
        return ""
    return f"{base} (Python {'.'.join(str(part) for part in version)})"


def disabled_by_hand(path: str) -> str | None:
    """Who has disabled this node by hand, as a half of a sentence; None if nobody has."""
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        who, when, why = (str(record[key]) for key in ("who", "when", "why"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        # That it is there is what counts.
        return f"by somebody ({path} cannot be read)"
    return f"by {who} at {when}" + (f" ({why})" if why else "")


def check_disabled(module: AnsibleModule, problems: list[str], notes: list[str]) -> bool:
    """What a person on call has done on the node, a play does not undo unasked."""
    said = disabled_by_hand(module.params["disabled_file"])
    if said is None:
        return False
    if module.params["override_disable"]:
        notes.append(f"this node was disabled by hand {said}; qos_override_disable ends that")
    else:
        problems.append(
            f"this node was disabled by hand {said}; 'vff-qos enable' on it ends that, or "
            "-e qos_override_disable=true"
        )
    return True


def schema_of(path: str) -> int:
    """The schema of a state (PRAGMA user_version); 0 if there is none, or it cannot be told.

    It is in the file's header (https://sqlite.org/fileformat.html, offset 60), unless it was
    changed a moment ago and is in the log alone.  SQLite is asked only where the log has its index
    already: root would make one that the agent could not write.
    """
    version = 0
    try:
        with open(path, "rb") as file:
            header = file.read(64)
        if header.startswith(b"SQLite format 3\0") and len(header) == 64:
            version = int.from_bytes(header[60:], "big")
    except OSError:
        return 0
    if os.path.exists(f"{path}-wal") and os.path.exists(f"{path}-shm"):
        if sqlite3 is None:  # the agent says it later
            return version
        try:
            db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            (version,) = db.execute("PRAGMA user_version").fetchone()
            db.close()
        except sqlite3.Error:  # damaged: the agent sets it aside
            return version
    return version


def look_at_singboxes(module: AnsibleModule) -> list[str]:
    """What of sing-box is not there yet, a sentence each: it may well be started later."""
    found = [
        f"{log} (qos_sources, singbox_log) does not exist yet: nobody is limited until sing-box "
        'writes it ("log": {"level": "info"})'
        for log in module.params["singbox_logs"]
        if not os.path.exists(log)
    ]
    for one in module.params["singboxes"]:
        address, file = one["address"], one["secret_file"]
        if not os.path.exists(file):
            found.append(
                f"{file} (secret_file of the source singbox) does not exist yet: none of "
                "sing-box's users is limited until the secret of its service 'api' is there, for "
                "root and the group vff-qos alone"
            )
        host, _colon, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError as error:
            found.append(
                f"nothing answers at {address} (qos_sources, singbox) yet "
                f"({error.strerror or error}): none of sing-box's users is limited until its "
                "service 'api' listens there"
            )
    return found


def check_state(module: AnsibleModule, problems: list[str]) -> None:
    """A state of a newer version: the agent would not start with it."""
    path, known = module.params["state_file"], module.params["state_schema"]
    found = schema_of(path)
    if found > known:
        problems.append(
            f"a newer version of vff.qos was on this node: {path} has schema {found}, and this one "
            f"knows {known}; take the newer one, or go back as docs/OPERATIONS.md says (Roll back)"
        )


def all_run(module: AnsibleModule) -> bool:
    """Whether all of our units run, as systemd says."""
    units = module.params["units"]
    systemctl = module.get_bin_path("systemctl")
    if not units or not systemctl:
        return False
    _rc, out, _err = module.run_command([systemctl, "is-active", *units])
    states: list[str] = out.split()
    return states == ["active"] * len(units)


def listens_at(unit: str) -> str:
    """Where a socket unit listens (systemd.socket(5)), separated by spaces; empty if it does not
    say."""
    found = re.findall(r"^ListenStream=(.*)$", unit, re.M)
    return " ".join(path.strip() for path in found)


def account(name: str) -> dict[str, str]:
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


def hashes(module: AnsibleModule, directory: str) -> dict[str, str]:
    """SHA-256 by name of the files in a directory that may not exist."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return {name: module.sha256(os.path.join(directory, name)) for name in names}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "wan": {"type": "str", "required": True},
            "ifb": {"type": "str", "required": True},
            "handle": {"type": "str", "required": True},
            "take_foreign_root": {"type": "bool", "default": False},
            "kernel_modules": {"type": "list", "elements": "str", "required": True},
            "python": {"type": "path", "required": True},
            "imports": {"type": "list", "elements": "str", "default": []},
            "access_logs": {"type": "list", "elements": "path", "default": []},
            "singbox_logs": {"type": "list", "elements": "path", "default": []},
            "singboxes": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "address": {"type": "str", "required": True},
                    "secret_file": {"type": "path", "required": True, "no_log": False},
                },
            },
            "wheel_dir": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "hooks_user": {"type": "str", "required": True},
            "disabled_file": {"type": "path", "required": True},
            "override_disable": {"type": "bool", "default": False},
            "socket_unit": {"type": "path", "required": True},
            "metrics_unit": {"type": "path", "required": True},
            "hooks_unit": {"type": "path", "required": True},
            "page_unit": {"type": "path", "required": True},
            "state_file": {"type": "path", "required": True},
            "state_schema": {"type": "int", "required": True},
            "units": {"type": "list", "elements": "str", "default": []},
            "kept": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    problems: list[str] = []
    notes: list[str] = []
    if os.geteuid() != 0:
        problems.append("vff.qos needs root on the node; run the play with `become: true`")
    family, problem = system_family(parse_os_release(read("/etc/os-release")))
    if problem:
        problems.append(problem)
    if not os.path.isdir("/run/systemd/system"):
        problems.append("systemd does not run here; vff-qos is started and watched by systemd")
    disabled = check_disabled(module, problems, notes)
    check_state(module, problems)
    version, missing = check_python(module, problems)
    check_kernel(module, problems, notes)
    old, old_things = check_old_role(module, notes, problems)
    wan = check_wan(module, problems, notes, old)
    check_ifb(module, wan, problems, old)
    for log in [] if old else module.params["access_logs"]:
        if not os.path.exists(log):
            notes.append(
                f"{log} (qos_xray_access_log_path) does not exist yet: "
                "nobody is limited until Xray writes it"
            )
    notes += look_at_singboxes(module)
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
        hooks_account=account(module.params["hooks_user"]),
        disabled=disabled,
        webhook_socket=listens_at(read(module.params["socket_unit"])),
        metrics=os.path.exists(module.params["metrics_unit"]),
        hooks=os.path.exists(module.params["hooks_unit"]),
        page=os.path.exists(module.params["page_unit"]),
        running=all_run(module),
        unconfirmed=os.path.isdir(module.params["kept"]),
        old_role=old_things,
        notes=notes,
    )


if __name__ == "__main__":
    main()
