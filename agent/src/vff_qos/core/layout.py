"""Which tree has which class, and which marks are ours.

One tree: all classes are in ``5100:``, and a mark is ours if its upper half is that.  Several, one
for each transmit queue: the tree of queue q is ``5100: + q``, so that a mark names queue and class
at once, and a mark is ours if its upper byte is our tag.  A minor is one user's whatever the number
of trees is: a device names its qdiscs by 16 bits, so that more leaves than minors cannot be.
"""

from __future__ import annotations

from typing import NamedTuple

from .htb import (
    ENDED_MINOR,
    MINOR_MASK,
    PROVISIONAL,
    TAG_MASK,
    classid,
    usable_minor,
)

#: As many as queues have numbers below our tag that are no handle of something else.
MAX_TREES = 64
#: Up to this ceiling of the node one tree shares it exactly and is fast enough; LibreQoS names 2.5
#: to 4 Gbit/s for one tree, which one processor at a time works on.
SHARED_CEIL_BPS = 2_500_000_000
#: What is ours of a mark where there are several trees: the upper byte.
BYTE_MASK = 0xFF000000
#: Handles below our tag, beyond those of trees: of the leaf of unclassified traffic in the tree of
#: each queue, and of the mq above all trees.
_LEAVES, _MQ = 0x80, 0xFF


class Layout(NamedTuple):
    """``major``: of the first tree."""

    major: int
    trees: int = 1

    def __str__(self) -> str:
        """As tc names what is in it: ``5100:``, or ``5100: to 5103:``."""
        first = f"{self.major:x}:"
        return first if self.trees == 1 else f"{first} to {self.majors[-1]:x}:"

    @property
    def majors(self) -> range:
        """Handles of the trees."""
        return range(self.major, self.major + self.trees)

    @property
    def tag(self) -> int:
        """What our marks have below `mask`."""
        return self.major << 16

    @property
    def tag_mask(self) -> int:
        """What tells our marks from others', provisional ones apart."""
        return TAG_MASK if self.trees == 1 else BYTE_MASK

    @property
    def mask(self) -> int:
        """The same, provisional ones among them."""
        return self.tag_mask & ~PROVISIONAL

    def queue(self, minor: int) -> int:
        """The queue whose tree has a user's class, from 0."""
        return minor % self.trees

    def tree(self, minor: int) -> int:
        """The handle of the tree that has a user's class."""
        return self.major + minor % self.trees

    def mark(self, minor: int) -> int:
        """The mark of a user's flows, which is the class's number, too."""
        return self.major + minor % self.trees << 16 | minor

    def is_ours(self, mark: int) -> bool:
        """Whether a mark is ours, provisional or not."""
        return mark & self.mask == self.tag

    def moved(self, mark: int) -> int:
        """What a mark of another layout is in this one; 0 if its user needs another minor."""
        minor = mark & MINOR_MASK
        if minor != ENDED_MINOR and not usable_minor(self.major, minor, self.trees):
            return 0
        return mark & PROVISIONAL | self.mark(minor)


def can_be_many(major: int) -> bool:
    """Whether there is room for several trees from this handle on: its lower byte is 0."""
    return major & 0xFF == 0


def first_of(major: int) -> int:
    """The handle of the first of several trees, by that of any of them or of their mq."""
    return major & 0xFF00


def known_majors(major: int) -> range:
    """Handles that trees of ours may have from this one on, however many there are."""
    return range(major, major + (MAX_TREES if can_be_many(major) else 1))


def mq_handle(major: int) -> int:
    """Handle of the mq above several trees, by the handle of any of them."""
    return classid(major | _MQ, 0)


def shared_leaf_handle(minor: int, major: int, tree: int) -> int:
    """Handle of the leaf of a class that all share in one of the trees: the minor, as of users'
    classes, but a device has it only once."""
    return classid(major | _LEAVES if tree else minor, 0)
