#!/usr/bin/python
# SPDX-License-Identifier: MIT
"""Documentation of the action plugin of the same name, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: qos_wheels
short_description: The agent's wheels on the controller
version_added: 0.1.0
author: vff.qos contributors (@vff)
description:
  - Returns the wheels that travel with the role C(vff.qos.qos).
  - Where there are none, or where they do not belong to the agent's sources (a copy from git), they
    are built first, in the role's directory. That needs pip and internet on the controller.
  - Touches no node. Several hosts at once are no problem.
attributes:
  check_mode:
    support: full
    description: Builds, too, because what would change on a node depends on the wheels.
  diff_mode:
    support: none
    description: Nothing of a node changes.
"""

EXAMPLES = r"""
- name: Have the agent's wheels at hand
  vff.qos.qos_wheels:
  register: agent
"""

RETURN = r"""
wheels:
  description: SHA-256 by file name.
  type: dict
  returned: success
  sample: {example-1.0-py3-none-any.whl: 0123456789abcdef}
built:
  description: Whether they had to be built.
  type: bool
  returned: success
  sample: false
"""
