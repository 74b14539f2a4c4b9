"""Upstream's Hysteria with its own command line, out of the wheel that exports a client alone.

The wheel holds all of Hysteria 2; what Python may call is ``startFromJSON``, which is Go's
``cmd.StartFromJSON``.  A jump at its beginning leads to ``cmd.Execute`` instead, which reads the
arguments of this process: so this file is started by a link of the name ``server`` or ``client``
in the working directory: ``python server -c config.yaml``.

For tests alone, on x86-64, with the wheel of tests/lab/hysteria.txt.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

_FROM = b"github.com/apernet/hysteria/app/v2/cmd.StartFromJSON"
_TO = b"github.com/apernet/hysteria/app/v2/cmd.Execute"
_R_X86_64_RELATIVE = 8
#: Offset of ``text`` in runtime.moduledata, Go 1.20 to 1.25.
_TEXT = 176
_PAGE = 4_096
_READ_WRITE_EXEC, _READ_EXEC = 7, 5


class Library:
    """The loaded library, and the file that it was loaded from."""

    def __init__(self, path: str) -> None:
        self.data = Path(path).read_bytes()
        maps = Path("/proc/self/maps").read_text().splitlines()
        self.base = min(int(line.split("-")[0], 16) for line in maps if line.endswith(path))
        (table,) = struct.unpack_from("<Q", self.data, 0x28)
        count, names = struct.unpack_from("<HH", self.data, 0x3C)
        rows = [struct.unpack_from("<IIQQQQIIQQ", self.data, table + 64 * i) for i in range(count)]
        self.sections = {self._text(rows[names][4] + row[0]).decode(): row for row in rows}

    def _text(self, at: int) -> bytes:
        return self.data[at : self.data.index(b"\0", at)]

    def moduledata(self) -> int:
        """Offset of runtime.moduledata, which begins with the address of the table of lines."""
        address = self.sections[".gopclntab"][3]
        start, size = self.sections[".rela.dyn"][4:6]
        for at in range(start, start + size, 24):
            offset, info, addend = struct.unpack_from("<QQq", self.data, at)
            if addend == address and info & 0xFFFFFFFF == _R_X86_64_RELATIVE:
                return int(offset)
        raise SystemExit("hysteria: the wheel is another one")

    def functions(self, *wanted: bytes) -> list[int]:
        """Addresses of Go functions."""
        table = self.sections[".gopclntab"][4]
        text = ctypes.c_uint64.from_address(self.base + self.moduledata() + _TEXT).value
        count, _files, _start, names, _cu, _filetab, _pctab, lines = struct.unpack_from(
            "<8Q", self.data, table + 8
        )
        found = {}
        for index in range(count):
            entry, info = struct.unpack_from("<II", self.data, table + lines + 8 * index)
            (name,) = struct.unpack_from("<i", self.data, table + lines + info + 4)
            found[self._text(table + names + name)] = text + entry
        return [found[name] for name in wanted]


def main() -> None:
    """Does not return before Hysteria ends."""
    import hysteria2

    library = Library(os.path.realpath(hysteria2.hysteria2.__file__))
    source, target = library.functions(_FROM, _TO)
    libc = ctypes.CDLL(None)
    page = ctypes.c_void_p(source & -_PAGE)
    if libc.mprotect(page, 2 * _PAGE, _READ_WRITE_EXEC):
        raise SystemExit("hysteria: its code cannot be changed")
    ctypes.memmove(source, b"\xe9" + struct.pack("<i", target - (source + 5)), 5)
    libc.mprotect(page, 2 * _PAGE, _READ_EXEC)
    sys.exit(hysteria2.startFromJSON("{}"))


if __name__ == "__main__":
    main()
