"""Another number of trees, or another handle: live connections have their classes again at once.

The agent makes all classes, but begins anew first, which takes longer than all else together; and
nothing limits a connection whose class went with its tree.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from ..core.htb import MINOR_MASK
from ..core.layout import Layout
from ..core.owners import ACTIVE
from ..core.plan.kernel_record import KernelRecord
from ..core.settings import Settings
from ..kept import with_trees
from ..kernel.packed.conntrack import Conntrack
from ..state import KERNEL_RECORD

if TYPE_CHECKING:
    from .node import Node


def layout_of(node: Node, settings: Settings) -> Layout:
    """Where the users' classes are, or were, as the state knows."""
    kept = node.state.get_value(KERNEL_RECORD)
    record = KernelRecord.from_json(kept) if kept else KernelRecord()
    return Layout(settings.major if record.major is None else record.major, record.trees)


def make_classes(node: Node, settings: Settings, before: Layout) -> list[str]:
    """Make the classes whose marks live connections bear, if the layout is not that of before.

    Returns a line if there were any.  Raises KernelRefused.
    """
    if layout_of(node, settings) == before:
        return []
    settings = with_trees(settings, node.state)
    layout = settings.layout
    with node.lock, closing(Conntrack()) as conntrack:
        live = {mark & MINOR_MASK for mark in conntrack.dump_marks(layout.tag, layout.mask)}
        classes, owners = node.classes_now(settings)
        lost = [
            owner
            for owner in owners
            if owner.state == ACTIVE and owner.minor in live and not classes.has(owner.minor)
        ]
        for error in classes.ensure(lost):
            raise error
    return [f"add the classes of {len(lost)} users with live connections"] if lost else []
