#!/usr/bin/python
# SPDX-License-Identifier: MIT
"""Tells who is limited to what on a node, and what they use at the moment."""

from __future__ import annotations

DOCUMENTATION = r"""
module: qos_info
short_description: Users of a node with their limits, rates and counters
version_added: 0.1.0
author: vff.qos contributors (@vff)
description:
  - Asks C(vff-qos status) on the node. Changes nothing.
  - The verdict is that of C(vff-qos status), word for word. A node that is not well does not fail
    the task.
attributes:
  check_mode:
    support: full
    description: Returns the same.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  names:
    description:
      - Emails of the users to tell of; all if empty.
      - What YAML takes for a number must be in quotes.
    type: list
    elements: raw
    default: []
  interval:
    description:
      - Seconds between two looks at the counters, from which the rates follow; V(0) for no rates.
    type: float
    default: 1.0
  command:
    description: The agent's command on the node.
    type: path
    default: /usr/local/sbin/vff-qos
seealso:
  - module: vff.qos.qos_user
"""

EXAMPLES = r"""
- name: Look at everybody
  vff.qos.qos_info:
  register: qos

- name: Say who uses more than 9 of 10 parts of their download limit
  ansible.builtin.debug:
    msg: "{{ qos.users | dict2items | selectattr('value.download_bps')
      | selectattr('value.download_share', 'gt', 0.9) | map(attribute='key') }}"

- name: Stop here unless all is well
  ansible.builtin.assert:
    that: qos.verdict == 'OK'
    fail_msg: "{{ qos.reason }}"

- name: Look at one user, without waiting for rates
  vff.qos.qos_info:
    names: [alice@example.com]
    interval: 0
"""

RETURN = r"""
users:
  description:
    - By email. Users who have been idle for long have no class and are not there.
    - Where the node keeps hashes of emails (C(qos_hash_emails)), by hash; those of O(names) by
      what was asked for.
    - C(overrides) are limits by hand (origin V(operator)) and penalties of fair use and quotas.
    - C(held_by) is what holds them, as C(vff-qos top) shows it - V(limit), V(penalty), V(node),
      V(restricted), or nothing. C(addresses) is from how many they come.
  type: dict
  returned: always
  sample:
    alice@example.com:
      class: "5100:2a"
      upload_bps: 5000000
      download_bps: 10000000
      flows: 12
      addresses: 2
      share: 0.998
      held_by: limit
      up_bytes: 73923
      down_bytes: 9127371
      drops: 0
      up_rate_bps: 18400
      down_rate_bps: 9982000
      upload_share: 0.004
      download_share: 0.998
      overrides: []
verdict:
  description:
    - V(OK); V(DEGRADED) where limits hold in part; V(TROUBLE) where they do not.
  type: str
  returned: always
  sample: DEGRADED
reason:
  description: The worst finding in one sentence; empty if the verdict is V(OK).
  type: str
  returned: always
  sample: "suspended by hand: nobody is limited"
findings:
  description:
    - All that is wrong, worst first. C(level) is as the verdict, or V(OK) for what is only worth
      knowing; C(kind) is for programs, C(sentence), C(evidence) and C(remedy) are for people.
  type: list
  elements: dict
  returned: always
  sample:
    - level: DEGRADED
      kind: suspended
      sentence: "suspended by hand: nobody is limited"
      evidence: []
      remedy: "'vff-qos enable' brings the limits back"
node:
  description:
    - The rest of what C(vff-qos status --json) says, such as C(wan) and C(suspended).
  type: dict
  returned: always
  sample: {suspended: false, wan: eth0, ifb: vffqos0, parked: 3, spare: 1024}
"""

import json
import os
import time
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vff.qos.plugins.module_utils.yaml_names import not_text

Json = Dict[str, Any]


def read_status(module: AnsibleModule) -> Json:
    """What ``vff-qos status --json`` says; ends the module if it says nothing."""
    command = module.params["command"]
    if not os.access(command, os.X_OK):
        module.fail_json(msg=f"{command} is not there; bring the node to qos_state present first")
    # It ends with 1 or 2 where not all is well, which is part of the answer.
    rc, out, err = module.run_command([command, "status", "--json"])
    try:
        return dict(json.loads(out))
    except ValueError:
        module.fail_json(msg=(err or out).strip() or f"{command} status ended with {rc}")
        raise  # the line before ends the module


def kept_names(module: AnsibleModule, names: list[str]) -> dict[str, str]:
    """What users are called in a status, {as given: kept}: it may keep hashes of emails, and one
    user may be asked for by several identities."""
    if not names:
        return {}
    command = [module.params["command"], "name", *names]
    _rc, out, _err = module.run_command(command, check_rc=True)
    return {names[number]: kept for number, kept in enumerate(out.splitlines())}


def add_rates(users: dict[str, Json], earlier: dict[str, Json], seconds: float) -> None:
    """Rates in bit/s from two looks at the counters, and their shares of the limits."""
    for email, user in users.items():
        before = earlier.get(email)
        for bytes_key, rate_key, limit_key, share_key in (
            ("up_bytes", "up_rate_bps", "upload_bps", "upload_share"),
            ("down_bytes", "down_rate_bps", "download_bps", "download_share"),
        ):
            # Another class, or one that was made anew, has a counter of its own.
            moved = 0
            if before is not None and before["class"] == user["class"]:
                moved = max(user[bytes_key] - before[bytes_key], 0)
            user[rate_key] = round(moved * 8 / seconds)
            limit = user[limit_key]
            user[share_key] = round(user[rate_key] / limit, 3) if limit else None


def by_email(status: Json, names: dict[str, str]) -> dict[str, Json]:
    """The users of a status by email with their overrides; only ``names`` if there are any, which
    say what each is called there."""
    found = {user["email"]: user for user in status["users"]}
    overrides: dict[str, list[Json]] = {}
    for override in status["overrides"]:
        overrides.setdefault(override["email"], []).append(override)
    return {
        name: dict(found[kept], overrides=list(overrides.get(kept, [])))
        for name, kept in (names or {email: email for email in found}).items()
        if kept in found
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "raw", "default": []},
            "interval": {"type": "float", "default": 1.0},
            "command": {"type": "path", "default": "/usr/local/sbin/vff-qos"},
        },
        supports_check_mode=True,
    )
    names, interval = module.params["names"], module.params["interval"]
    problems = [not_text(name, f"names: {name!r}") for name in names]
    if any(problems):
        module.fail_json(msg=" | ".join(problem for problem in problems if problem))
    status = read_status(module)
    names = kept_names(module, names)
    users = by_email(status, names)
    if interval > 0:
        time.sleep(interval)
        later = read_status(module)
        earlier, users = users, by_email(later, names)
        add_rates(users, earlier, later["time"] - status["time"])
        status = later
    for user in users.values():
        del user["email"]
    health = {key: status.pop(key) for key in ("verdict", "reason", "findings")}
    del status["users"]
    module.exit_json(changed=False, users=users, node=status, **health)


if __name__ == "__main__":
    main()
