# SPDX-License-Identifier: MIT
"""Runs on the controller: reads the wheels that the node does not have and sends them along."""

from __future__ import annotations

import base64
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.vff.qos.plugins.plugin_utils.wheels import ROOT, wheel_dir


class ActionModule(ActionBase):
    """See plugins/modules/qos_venv.py."""

    def run(self, tmp: object = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        have = arguments.get("have") or {}
        new = [name for name, digest in arguments["wheels"].items() if have.get(name) != digest]
        if not self._task.check_mode:
            arguments["contents"] = {
                name: base64.b64encode((wheel_dir(ROOT) / name).read_bytes()).decode()
                for name in new
            }
        result.update(
            self._execute_module(
                module_name="vff.qos.qos_venv", module_args=arguments, task_vars=task_vars
            )
        )
        return result
