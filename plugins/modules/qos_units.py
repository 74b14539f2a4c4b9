#!/usr/bin/python
# SPDX-License-Identifier: MIT
"""Brings several systemd units into a state with one look and as few commands as possible."""

from __future__ import annotations

DOCUMENTATION = r"""
module: qos_units
short_description: Start, stop, mask and enable a set of systemd units together
version_added: 0.1.0
author: vff.qos contributors (@vff)
description:
  - Asks systemd once about all units and gives each command to all units that need it, so that
    systemd orders them and a slow node is not asked the same thing unit by unit.
  - Loads changed unit files by itself. A unit without an C([Install]) section is neither enabled
    nor started, because something else starts it.
attributes:
  check_mode:
    support: full
    description: Says what would be done, also about units that do not exist yet.
  diff_mode:
    support: full
    description: Shows the state of each unit.
options:
  units:
    description: Names of the units, with their suffix.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(started) starts what does not run; a unit that does not exist is an error.
      - V(stopped) stops what runs; a unit that does not exist is stopped.
      - V(restarted) and V(reloaded) act on the units in any case.
    type: str
    choices: [started, stopped, restarted, reloaded]
    required: true
  enabled:
    description: Whether the units start at boot.
    type: bool
  masked:
    description: Whether nothing may start the units, also at boot.
    type: bool
  replaces:
    description:
      - Units of somebody else that do the same work. What runs of them is stopped right before
        O(units) are started, and started again if those do not start; afterwards they are disabled.
      - For O(state=started) alone.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Start at once and at boot
  vff.qos.qos_units:
    units: [vff-qos-bootstrap.service, vff-qos-follow.service]
    state: started
    enabled: true
    masked: false
"""

RETURN = r"""
commands:
  description: What systemctl was told (or would be, in check mode).
  type: list
  elements: str
  returned: always
  sample: [start vff-qos-follow.service]
started:
  description: Units that did not run before.
  type: list
  elements: str
  returned: always
  sample: [vff-qos-follow.service]
"""

from typing import Dict, List, Sequence, Tuple

from ansible.module_utils.basic import AnsibleModule

#: What systemd says of units, by name.
Facts = Dict[str, Dict[str, str]]
#: A verb of systemctl and its units.
Step = Tuple[str, List[str]]

PROPERTIES = ("Id", "LoadState", "ActiveState", "UnitFileState", "NeedDaemonReload")
RUNNING = ("active", "activating", "reloading", "deactivating")


def parse_show(text: str) -> Facts:
    """Properties by unit name, from the blocks of ``systemctl show``."""
    units = {}
    for block in text.strip().split("\n\n"):
        fields = dict(line.partition("=")[::2] for line in block.splitlines())
        if "Id" in fields:
            units[fields["Id"]] = fields
    return units


def steps(
    units: list[str], facts: Facts, state: str, enabled: bool | None, masked: bool | None
) -> list[Step]:
    """The systemctl commands that lead to the wanted state, as (verb, units).

    ``facts`` is what parse_show returned.  Units that do not exist are left out, except that they
    would be started: that is for systemd to refuse.
    """

    def having(key: str, *values: str) -> list[str]:
        return [unit for unit in units if facts[unit].get(key) in values]

    missing = having("LoadState", "not-found")
    is_masked = having("UnitFileState", "masked", "masked-runtime")
    # A masked unit hides whether it has an [Install] section; main() asks again.
    passive = having("UnitFileState", "static")
    running = having("ActiveState", *RUNNING)
    failed = having("ActiveState", "failed")
    plan = []
    if state == "stopped":
        plan.append(("stop", running))
        plan.append(("reset-failed", failed))
    if masked is False:
        plan.append(("unmask", is_masked))
    if masked is True:
        plan.append(("mask", [u for u in units if u not in is_masked and u not in missing]))
    if enabled is True:
        plan.append(("enable", [u for u in units if facts[u].get("UnitFileState") == "disabled"]))
    if enabled is False:
        plan.append(("disable", having("UnitFileState", "enabled", "enabled-runtime")))
    if state == "started":
        plan.append(("reset-failed", failed))
        plan.append(("start", [u for u in units if u not in running and u not in passive]))
    if state == "restarted":
        plan.append(("restart", list(units)))
    if state == "reloaded":
        plan.append(("reload-or-restart", list(units)))
    return [(verb, names) for verb, names in plan if names]


def query(module: AnsibleModule, systemctl: str, units: list[str]) -> Facts:
    command = [systemctl, "show", f"--property={','.join(PROPERTIES)}", *units]
    _rc, out, _err = module.run_command(command, check_rc=True)
    facts = parse_show(out)
    return {unit: facts.get(unit, {"LoadState": "not-found"}) for unit in units}


def in_place_of(plan: list[Step], others: list[str], facts: Facts) -> list[Step]:
    """``plan`` with the steps that end other units' work: the last moment before ours begins, so
    that nobody is without a limit meanwhile; disabling takes long, and comes afterwards."""
    running = [unit for unit in others if facts[unit].get("ActiveState") in RUNNING]
    enabled = [unit for unit in others if facts[unit].get("UnitFileState") == "enabled"]
    before = [step for step in plan if step[0] != "start"]
    starts = [step for step in plan if step[0] == "start"]
    found = [*before, ("stop", running), *starts, ("disable", enabled)]
    return [(verb, names) for verb, names in found if names]


def act(
    module: AnsibleModule,
    systemctl: str,
    verb: str,
    units: list[str],
    stopped: Sequence[str] = (),
) -> None:
    """One command; where it fails the units that were ``stopped`` for it are started again, and the
    module ends."""
    rc, _out, err = module.run_command([systemctl, verb, *units])
    if rc == 0:
        return
    if stopped:
        rc, _out, more = module.run_command([systemctl, "start", *stopped])
        err += f" ({' '.join(stopped)} run again)" if rc == 0 else f" {more}"
    journal = module.get_bin_path("journalctl", required=True)
    wanted = [word for unit in units for word in ("--unit", unit)]
    _rc, out, _err = module.run_command([journal, "-n", "10", "-o", "cat", "--no-pager", *wanted])
    module.fail_json(
        msg=f"systemctl {verb} {' '.join(units)}: {' '.join(err.split())}",
        journal=out.splitlines(),
    )


def describe(facts: Facts) -> str:
    return "".join(
        f"{unit}: {fields.get('ActiveState')}, {fields.get('UnitFileState') or 'no such unit'}\n"
        for unit, fields in facts.items()
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["started", "stopped", "restarted", "reloaded"],
                "required": True,
            },
            "enabled": {"type": "bool"},
            "masked": {"type": "bool"},
            "replaces": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    units, state = module.params["units"], module.params["state"]
    wanted = (state, module.params["enabled"], module.params["masked"])
    systemctl = module.get_bin_path("systemctl", required=True)
    before = facts = query(module, systemctl, units)
    commands: list[Step] = []
    others = module.params["replaces"]
    theirs = query(module, systemctl, others) if others else {}
    if module.check_mode:
        commands = in_place_of(steps(units, facts, *wanted), others, theirs)
    else:
        if any(fields.get("NeedDaemonReload") == "yes" for fields in facts.values()):
            act(module, systemctl, "daemon-reload", [])
            facts = query(module, systemctl, units)
        plan = steps(units, facts, *wanted)
        # Whatever else is to be done, and be it to stop units that the mask is not on.
        for unmask in [step for step in plan if step[0] == "unmask"]:
            act(module, systemctl, *unmask)
            commands.append(unmask)
            facts = query(module, systemctl, units)
            plan = steps(units, facts, *wanted)
        stopped: list[str] = []
        for verb, names in in_place_of(plan, others, theirs):
            act(module, systemctl, verb, names, stopped if verb == "start" else [])
            commands.append((verb, names))
            if verb == "stop" and state == "started":
                stopped = names
        facts = query(module, systemctl, units) if commands else facts
    changed = any(verb != "reset-failed" for verb, _units in commands)
    module.exit_json(
        changed=changed,
        commands=[f"{verb} {' '.join(names)}" for verb, names in commands],
        started=[name for verb, names in commands if verb == "start" for name in names],
        diff={"before": describe(before), "after": describe(facts)},
    )


if __name__ == "__main__":
    main()
