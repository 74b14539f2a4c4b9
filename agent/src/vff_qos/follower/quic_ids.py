"""What the kernel has learned of QUIC connections is forgotten where it may be wrong."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import KernelRefused
from ..kernel.packed.nft_elements import QuicIds, clear_elements


class QuicFollowing:
    """The shell around the kernel's sets of connection IDs (core/plan/quic_rules.py).

    Who lives is learned again within some packets.  ``refused`` is told what the kernel refuses.
    """

    def __init__(self, follows: bool, refused: Callable[[KernelRefused], None]) -> None:
        self._follows, self._refused = follows, refused
        self._again = False

    def forget(self) -> None:
        """An ID may stand for a mark that its flow has not any more; call it after the mark was
        set.  Twice a second at most: nobody is to keep others from being followed."""
        if self._follows and not self._again:
            self._clear()
            # A packet that was on its way may have taught the old mark once more.
            self._again = True

    def tend(self) -> None:
        """Once a second."""
        if self._again:
            self._again = False
            self._clear()

    def _clear(self) -> None:
        try:
            clear_elements(QuicIds)
        except KernelRefused as error:
            self._refused(error)
