"""From pieces of a stream to blocks of whole lines."""

from __future__ import annotations

#: A carry beyond this is no line that matters: drop it up to the next newline.
MAX_CARRY_BYTES = 65_536


class Assembler:
    """Collects bytes; gives them back up to the last newline."""

    def __init__(self, dropping: bool = False) -> None:
        """``dropping``: the stream begins within a line."""
        self._carry = b""
        #: Whether what comes up to the next newline is the rest of a line that is given up.
        self.dropping = dropping
        self.overlong = 0

    def feed(self, data: bytes) -> bytes:
        """The whole lines that ``data`` completes, with their newlines; may be empty."""
        if self.dropping:
            end = data.find(b"\n")
            if end < 0:
                return b""
            data = data[end + 1 :]
            self.dropping = False
        end = data.rfind(b"\n") + 1
        if not end:
            self._carry += data
            if len(self._carry) > MAX_CARRY_BYTES:
                self.overlong += 1
                self._carry = b""
                self.dropping = True
            return b""
        block = self._carry + data[:end]
        self._carry = data[end:]
        return block

    @property
    def pending(self) -> int:
        """Bytes of the unfinished line at the end."""
        return len(self._carry)

    def reset(self) -> None:
        """The stream starts anew: what was unfinished never will be."""
        self._carry = b""
        self.dropping = False
