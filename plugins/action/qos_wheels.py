# SPDX-License-Identifier: MIT
"""Runs on the controller: the wheels must be there before a node is touched."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.vff.qos.plugins.plugin_utils.wheels import WheelsError, ensure


class ActionModule(ActionBase):
    """See plugins/modules/qos_wheels.py."""

    def run(self, tmp: object = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.validate_argument_spec({})
        try:
            found, built = ensure()
        except WheelsError as error:
            return {**result, "failed": True, "msg": str(error)}
        # What was built here is no change of the node.
        return {**result, "changed": False, "wheels": found, "built": built}
