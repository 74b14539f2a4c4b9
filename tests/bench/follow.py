"""The command ``vff-qos`` for the bench: its healer finds everything in order.

The bench's trees are made by hand, because not every kernel that can be measured on has all that
``bootstrap`` wants; a repair would find fault with them and compete with what is measured.
"""

import sys

from vff_qos import cli
from vff_qos.follower import heal

heal.repair_command = lambda paths: ["true"]
sys.exit(cli.main())
