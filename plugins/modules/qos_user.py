#!/usr/bin/python
# SPDX-License-Identifier: MIT
"""Gives one user of a node limits of their own, for good or for a while.

Longer than 400 lines: a third of it is the documentation that Ansible shows.
"""

from __future__ import annotations

DOCUMENTATION = r"""
module: qos_user
short_description: Limits of one user on a node
version_added: 0.1.0
author: vff.qos contributors (@vff)
description:
  - Permanent limits stand in a drop-in of the policy on the node, which this module alone writes;
    users in it keep what they have. The agent puts a change in force within a second, for open
    connections, too.
  - Temporary ones are overrides, as C(vff-qos limit) makes them. They stand above the policy and
    end by themselves.
  - What the policy does not allow is refused with one sentence, and nothing is changed.
attributes:
  check_mode:
    support: full
    description: Validates, too.
  diff_mode:
    support: full
    description: Shows the entry of the user.
requirements:
  - PyYAML on the node, which the agent needs, too
options:
  name:
    description:
      - The user's email, exactly as the proxy logs it.
      - What YAML takes for a number (V(5.100), V(007)) is refused; put it in quotes.
    type: raw
    required: true
    aliases: [email]
  state:
    description:
      - V(present) gives the user a permanent entry that holds what is given here and nothing else.
      - V(absent) takes that entry away; what the rest of the policy says holds again.
      - V(limit) gives the user a temporary override, O(for) some time or until V(reset).
      - V(reset) ends a temporary override that a person or this module has made.
    type: str
    choices: [present, absent, limit, reset]
    default: present
  plan:
    description: Name of a plan of the policy; text, as O(name).
    type: raw
  upload:
    description: Upload limit, such as V(5mbit).
    type: str
  download:
    description: Download limit, such as V(50mbit).
    type: str
  connections:
    description: So many connections at most, such as V(200); what becomes of more, the plan says.
    type: int
  devices:
    description: So many devices (addresses) at once at most; what becomes of more, the plan says.
    type: int
  unlimited:
    description: No limit but that of the node.
    type: bool
  blocked:
    description: Next to nothing gets through; connections stay.
    type: bool
  cut:
    description: Connections end at once, and new ones as soon as they are known. Stands alone.
    type: bool
  for:
    description:
      - How long a V(limit) lasts from now on, such as V(2h) or V(1d); until V(reset) if missing.
      - An override that already ends within a minute of that is left as it is.
    type: str
  reason:
    description: Why, for C(vff-qos status) and the journal.
    type: str
    default: ""
  directory:
    description: Where the agent looks for its settings and its policy.
    type: path
    default: /etc/vff-qos
  command:
    description: The agent's command on the node.
    type: path
    default: /usr/local/sbin/vff-qos
seealso:
  - module: vff.qos.qos_info
"""

EXAMPLES = r"""
- name: Alice has bought the gold plan
  vff.qos.qos_user:
    name: alice@example.com
    plan: gold

- name: Bob has not paid
  vff.qos.qos_user:
    name: bob@example.com
    blocked: true

- name: Slow Carol down for two hours
  vff.qos.qos_user:
    name: carol@example.com
    state: limit
    download: 5mbit
    for: 2h
    reason: ticket 4711

- name: Carol has called
  vff.qos.qos_user:
    name: carol@example.com
    state: reset

- name: Dave gets what everybody gets
  vff.qos.qos_user:
    name: dave@example.com
    state: absent
"""

RETURN = r"""
entry:
  description: What the user has now of their own, permanently or as override; empty for nothing.
  type: dict
  returned: success
  sample: {plan: gold}
path:
  description: The file that holds the permanent entries.
  type: str
  returned: success
  sample: /etc/vff-qos/policy.d/users.yml
until:
  description: When the override ends, in seconds since the epoch; none if it does not by itself.
  type: float
  returned: O(state=limit)
  sample: 1795267800.0
"""

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
import traceback
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.vff.qos.plugins.module_utils.yaml_names import not_text

#: What a user has: keys and values of the policy.
Entry = Dict[str, Any]

YAML_ERROR = ""
try:
    import yaml
except ImportError:
    yaml = None  # type: ignore[assignment]
    YAML_ERROR = traceback.format_exc()

FILE = "users.yml"
HEADER = (
    "# Written by the Ansible module vff.qos.qos_user; edits of what it does not manage are lost.\n"
)
LIMITS = ("plan", "upload", "download", "connections", "devices", "unlimited", "blocked", "cut")
#: What the policy calls it.
CUT = {"blocked": "cut"}
#: What users are called where hashes of emails are kept (core/names.py).
HASH = re.compile(r"user-[0-9a-f]{20}")
#: An override that ends this close to the wanted time is the wanted one.
TOLERANCE_S = 60
#: Times as the agent reads them (core/units.py).
SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
MAX_SECONDS = 366 * 86400
DURATION = re.compile(r"([0-9]{1,9}) ?(sec|s|min|m|h|d|w)(?: |$|(?=[0-9]))")


def seconds_of(text: str) -> int | None:
    """Seconds of a time such as ``1h 30min``; None if it is none that the agent takes."""
    if not re.fullmatch(rf"(?:{DURATION.pattern})+", text):
        return None
    seconds = sum(int(number) * SECONDS[unit] for number, unit in DURATION.findall(text))
    return seconds if 1 <= seconds <= MAX_SECONDS else None


def text_keys_loader() -> Any:
    """A loader that takes keys as they are spelt, as the agent does: 5.100 is no number there."""

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
            self.flatten_mapping(node)
            return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    return Loader


def load_users(text: str, path: str) -> dict[str, Entry]:
    """Entries by email from the text of the drop-in; ValueError with one sentence."""
    try:
        data = yaml.load(text, Loader=text_keys_loader()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    users = (data.get("users") or {}) if isinstance(data, dict) else None
    if not isinstance(users, dict) or set(data) - {"users"}:
        raise ValueError(f"{path}: must be a mapping with users; move it away")
    return users


def dump_users(users: dict[str, Entry]) -> str:
    """The text of the drop-in."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return HEADER + yaml.dump(
        {"users": users}, Dumper=dumper, allow_unicode=True, default_flow_style=None, width=10**6
    )


def describe(email: str, entry: Entry | None) -> str:
    """An entry for the diff."""
    return "" if entry is None else dump_users({email: entry})[len(HEADER) :]


class Node:
    """The files and the command of the agent."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.command = module.params["command"]
        self.etc = module.params["directory"]
        self.directory = os.path.join(self.etc, "policy.d")
        self.path = os.path.join(self.directory, FILE)
        if not os.access(self.command, os.X_OK):
            module.fail_json(
                msg=f"{self.command} is not there; bring the node to qos_state present first"
            )

    def files(self, policy_dir: str) -> list[str]:
        """Arguments that name the agent's files."""
        return [
            "--settings",
            os.path.join(self.etc, "settings.yml"),
            "--policy",
            os.path.join(self.etc, "policy.yml"),
            "--policy-dir",
            policy_dir,
        ]

    def run(self, *words: str, policy_dir: str | None = None) -> str:
        """Output of a command of the agent; ends the module with its sentence if it refuses."""
        policy_dir = policy_dir or self.directory
        rc, out, err = self.module.run_command([self.command, *words, *self.files(policy_dir)])
        if rc != 0:
            message = (err or out).strip().replace(policy_dir, self.directory)
            self.module.fail_json(msg=message or f"vff-qos {words[0]} ended with {rc}")
        return str(out)

    def status(self) -> dict[str, Any]:
        """What ``vff-qos status --json`` says; it ends with 1 or 2 where not all is well."""
        _rc, out, err = self.module.run_command(
            [self.command, "status", "--json", *self.files(self.directory)]
        )
        try:
            return dict(json.loads(out))
        except ValueError:
            self.module.fail_json(msg=(err or out).strip())
            raise  # the line before ends the module

    def read(self) -> dict[str, Entry]:
        """Entries by email."""
        try:
            with open(self.path, encoding="utf-8") as file:
                return load_users(file.read(), self.path)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            self.module.fail_json(msg=str(error))
            raise  # the line before ends the module

    def validate(self, text: str, name: str = FILE) -> None:
        """Have the agent look at the policy as it would be."""
        trial = tempfile.mkdtemp(dir=self.module.tmpdir)
        try:
            if os.path.isdir(self.directory):
                for other in os.listdir(self.directory):
                    os.symlink(os.path.join(self.directory, other), os.path.join(trial, other))
            path = os.path.join(trial, name)
            if os.path.lexists(path):
                os.unlink(path)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            self.run("check-config", policy_dir=trial)
        finally:
            shutil.rmtree(trial)

    def write(self, text: str) -> None:
        """Replace the drop-in at once; who may read the policy may read it."""
        descriptor, temporary = tempfile.mkstemp(prefix=f".{FILE}-", dir=self.directory)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                os.fchown(descriptor, -1, os.stat(self.directory).st_gid)
                os.fchmod(descriptor, 0o640)
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, self.path)
        except OSError:
            os.unlink(temporary)
            raise

    def lock(self) -> None:
        """Exclude others who read the drop-in to write it; ends with this process."""
        if not os.path.isdir(self.directory):
            os.mkdir(self.directory)
            os.chmod(self.directory, os.stat(self.etc).st_mode & 0o777)
            os.chown(self.directory, -1, os.stat(self.etc).st_gid)
        fcntl.flock(os.open(self.directory, os.O_RDONLY), fcntl.LOCK_EX)


def keep_entry(
    module: AnsibleModule, node: Node, email: str, entry: Entry | None
) -> dict[str, Any]:
    """Make the permanent entry of a user what it should be; None for none."""
    if not module.check_mode and (entry is not None or os.path.isdir(node.directory)):
        node.lock()
    users = node.read()
    before = users.get(email)
    if entry is None:
        users.pop(email, None)
    else:
        users[email] = entry
    text = dump_users(users)
    if before != entry:
        node.validate(text)
        if not module.check_mode:
            node.write(text)
    return {
        "changed": before != entry,
        "entry": entry or {},
        "path": node.path,
        "diff": {
            "before_header": node.path,
            "after_header": node.path,
            "before": describe(email, before),
            "after": describe(email, entry),
        },
    }


def person_of(node: Node, email: str) -> str:
    """The name that the policy's files have for a user: whoever gives one of several identities
    means the person."""
    name = node.run("name", email).strip()
    return email if HASH.fullmatch(name) else name


def override_of(node: Node, email: str) -> dict[str, Any] | None:
    """The override that a person or this module has ordered for a user; None for none."""
    # The agent says what a user is called: hashes of emails may be kept, and a person be asked for
    # by one of several identities.
    name = node.run("name", email).strip()
    for override in node.status()["overrides"]:
        if override["email"] == name and override["origin"] == "operator":
            return dict(override)
    return None


def is_wanted(
    override: dict[str, Any] | None, entry: Entry, until: float | None, reason: str
) -> bool:
    """Whether an override in force is the wanted one."""
    if override is None or (override["entry"], override["why"]) != (entry, reason):
        return False
    if until is None or override["until"] is None:
        return until is override["until"]
    return bool(abs(until - override["until"]) <= TOLERANCE_S)


def order(module: AnsibleModule, node: Node, email: str, entry: Entry | None) -> dict[str, Any]:
    """Give a user a temporary override, or end it (None)."""
    params = module.params
    until = None
    words = ["reset", email]
    if entry is not None:
        if params["for"] is not None:
            seconds = seconds_of(params["for"])
            if seconds is None:
                module.fail_json(msg=f"for: {params['for']!r} is not a time such as 2h or 1d")
                raise AssertionError  # the line before ends the module
            until = time.time() + seconds
        words = order_words(module, email, entry)
        if params["for"] is not None:
            words += ["--for", params["for"]]
    if params["reason"]:
        words.append(f"--reason={params['reason']}")
    if entry is not None:
        node.validate(dump_users({email: entry}), "zz-trial.yml")
    override = override_of(node, email)
    changed = override is not None
    if entry is not None:
        changed = not is_wanted(override, entry, until, params["reason"])
    if changed and not module.check_mode:
        node.run(*words)
    if not changed and override:
        until = override["until"]
    return {
        "changed": changed,
        "entry": entry or {},
        "path": node.path,
        "until": until,
        "diff": {
            "before_header": "override",
            "after_header": "override",
            "before": describe(email, override and override["entry"]),
            "after": describe(email, entry),
        },
    }


def order_words(module: AnsibleModule, email: str, entry: Entry) -> list[str]:
    """The agent's command for an override."""
    if entry == CUT:
        return ["cut", email]
    for key, verb in (("unlimited", "unlimit"), ("blocked", "block")):
        if key in entry:
            if entry != {key: True}:
                module.fail_json(msg=f"state limit takes {key}: true alone")
            return [verb, email]
    if not entry:
        module.fail_json(msg="state limit needs one of: " + ", ".join(LIMITS))
    return ["limit", email, *(word for key in entry for word in (f"--{key}", str(entry[key])))]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "raw", "required": True, "aliases": ["email"]},
            "state": {
                "type": "str",
                "choices": ["present", "absent", "limit", "reset"],
                "default": "present",
            },
            "plan": {"type": "raw"},
            "upload": {"type": "str"},
            "download": {"type": "str"},
            "connections": {"type": "int"},
            "devices": {"type": "int"},
            "unlimited": {"type": "bool"},
            "blocked": {"type": "bool"},
            "cut": {"type": "bool"},
            "for": {"type": "str"},
            "reason": {"type": "str", "default": ""},
            "directory": {"type": "path", "default": "/etc/vff-qos"},
            "command": {"type": "path", "default": "/usr/local/sbin/vff-qos"},
        },
        supports_check_mode=True,
    )
    if yaml is None:
        module.fail_json(msg=missing_required_lib("PyYAML"), exception=YAML_ERROR)
    params = module.params
    for option in ("name", "plan"):
        value = params[option]
        problem = not_text(value, option) if value is not None or option == "name" else None
        if problem:
            module.fail_json(msg=problem)
    state, email = params["state"], params["name"]
    entry = {key: params[key] for key in LIMITS if params[key] is not None}
    if "cut" in entry:
        if entry != {"cut": True}:
            module.fail_json(msg="cut: true stands alone")
        entry = CUT
    if entry and state in ("absent", "reset"):
        module.fail_json(msg=f"state {state} takes no limits; there is {', '.join(entry)}")
    if params["for"] is not None and state != "limit":
        module.fail_json(msg="for belongs to state limit; a permanent entry has no end")
    node = Node(module)
    if state in ("present", "absent"):
        email = person_of(node, email)
        result = keep_entry(module, node, email, entry if state == "present" else None)
    else:
        result = order(module, node, email, entry if state == "limit" else None)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
