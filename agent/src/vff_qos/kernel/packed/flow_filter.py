"""A socket filter that lets only conntrack events of our own ends through.

Classic BPF: Documentation/networking/filter.rst; checked by ``bpf_check_classic`` and charged to
``net.core.optmem_max`` by net/core/filter.c.  A message that it rejects costs user space nothing.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from ...core.flows.ends import ServiceEnds, is_loopback
from ...core.settings import PortRange

#: BPF_MAXINSNS of include/uapi/linux/bpf_common.h.
MAX_INSTRUCTIONS = 4096

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_LD_WORD_AT, _LD_BYTE_AT = 0x20, 0x30
_LD_WORD_X, _LD_HALF_X, _LD_BYTE_X = 0x40, 0x48, 0x50
_LD_NUMBER, _LDX_NUMBER, _LD_MEMORY, _STORE = 0x00, 0x01, 0x60, 0x02
_JUMP, _JEQ, _JGT, _JGE = 0x05, 0x15, 0x25, 0x35
_RETURN, _TAX = 0x06, 0x07
# SKF_AD_OFF + SKF_AD_NLATTR and SKF_AD_NLATTR_NEST: the offset of the attribute X that follows
# offset A, or that is within the attribute at offset A; 0 without one.
_ATTRIBUTE, _NESTED = 0xFFFFF00C, 0xFFFFF010

_FAMILY_AT, _ATTRIBUTES_AT = 16, 20  # after nlmsghdr: nfgenmsg
_TUPLE_ORIG, _TUPLE_IP, _TUPLE_PROTO = 1, 1, 2
_PROTO_NUM, _PROTO_SPORT, _PROTO_DPORT = 1, 2, 3
_V4_SRC, _V4_DST, _V6_SRC, _V6_DST = 1, 2, 3, 4

#: Conditional jumps reach 255 instructions: longer lists of tests get exits in between.
_TESTS_PER_EXIT = 80

_T = TypeVar("_T")


class _Program:
    """Instructions with labels."""

    def __init__(self) -> None:
        self._code: list[tuple[int, str | None, str | None, int, str | None]] = []
        self._labels: dict[str, int] = {}
        self._count = 0

    def add(self, code: int, k: int = 0, yes: str | None = None, no: str | None = None) -> None:
        """An instruction; a conditional jump without a label goes on with the next one."""
        self._code.append((code, yes, no, k, None))

    def jump(self, label: str) -> None:
        """Jump as far as it takes."""
        self._code.append((_JUMP, None, None, 0, label))

    def label(self, name: str) -> None:
        """The next instruction has this name."""
        self._labels[name] = len(self._code)

    def new_label(self) -> str:
        """A name that is not in use."""
        self._count += 1
        return str(self._count)

    def find(self, *kinds: int) -> None:
        """A = offset of the attribute ``kinds`` (one within the other) within that at A, or 0."""
        for kind in kinds:
            self.add(_LDX_NUMBER, kind)
            self.add(_LD_WORD_AT, _NESTED)

    def packed(self) -> bytes:
        """The program as an array of struct sock_filter."""
        out = []
        for at, (code, yes, no, k, far) in enumerate(self._code):
            jumps = [self._labels[label] - at - 1 if label else 0 for label in (yes, no)]
            assert all(0 <= distance < 256 for distance in jumps)
            distance = self._labels[far] - at - 1 if far else k
            out.append(_INSTRUCTION.pack(code, *jumps, distance))
        return b"".join(out)

    def any_of(
        self, items: Sequence[_T], test: Callable[[_T, str, str], None], hit: str, miss: str
    ) -> None:
        """Tests of A one after the other: the first that holds leads to ``hit``, none to ``miss``.

        ``test`` adds one; it may jump to its second argument (it holds), to its third (no other
        one will hold either), or go on with the next.
        """
        for start in range(0, len(items), _TESTS_PER_EXIT):
            yes, no, on = self.new_label(), self.new_label(), self.new_label()
            for item in items[start : start + _TESTS_PER_EXIT]:
                test(item, yes, no)
            self.jump(on)
            self.label(yes)
            self.jump(hit)
            self.label(no)
            self.jump(miss)
            self.label(on)
        self.jump(miss)

    def has_address(self, v4: int, v6: int, addresses: Sequence[bytes], yes: str, no: str) -> None:
        """Whether the address in the attribute ``v4`` or ``v6`` of the tuple is one of these.

        An IPv6 address is compared word by word with the words of all: an address that mixes the
        words of several of ours is let through, and sorted out by the reader.
        """
        four, six = self.new_label(), self.new_label()
        self.add(_LD_BYTE_AT, _FAMILY_AT)
        self.add(_JEQ, socket.AF_INET, four)
        self.jump(six)
        self.label(four)
        self._load_address(v4, no)
        if any(is_loopback(address) for address in addresses):
            loopback, other = self.new_label(), self.new_label()
            self.add(_LD_BYTE_X, 4)
            self.add(_JEQ, 127, loopback)
            self.jump(other)
            self.label(loopback)
            self.jump(yes)
            self.label(other)
        self._has_words(addresses, 4, yes, no)
        self.label(six)
        self._load_address(v6, no)
        self._has_words(addresses, 16, yes, no)

    def _load_address(self, kind: int, no: str) -> None:
        """X = offset of the attribute ``kind`` of CTA_TUPLE_IP."""
        found = self.new_label()
        self.add(_LD_MEMORY, 0)
        self.find(_TUPLE_IP, kind)
        self.add(_JEQ, 0, None, found)
        self.jump(no)
        self.label(found)
        self.add(_TAX)

    def _has_words(self, addresses: Sequence[bytes], size: int, yes: str, no: str) -> None:
        for at in range(0, size, 4):
            words = {int.from_bytes(a[at : at + 4], "big") for a in addresses if len(a) == size}
            hit = yes if at + 4 == size else self.new_label()
            self.add(_LD_WORD_X, 4 + at)
            self.any_of(sorted(words), lambda word, found, _: self.add(_JEQ, word, found), hit, no)
            if hit != yes:
                self.label(hit)

    def has_port(self, kind: int, ranges: Sequence[PortRange], yes: str, no: str) -> None:
        """Whether the port in the attribute ``kind`` of CTA_TUPLE_PROTO is in a range."""
        if not ranges:
            self.jump(yes)
            return
        found = self.new_label()
        self.add(_LD_MEMORY, 1)
        self.find(kind)
        self.add(_JEQ, 0, None, found)
        self.jump(no)
        self.label(found)
        self.add(_TAX)
        self.add(_LD_HALF_X, 4)

        def within(item: PortRange, hit: str, miss: str) -> None:
            self.add(_JGE, item[0], None, miss)
            self.add(_JGT, item[1], None, hit)

        self.any_of(sorted(ranges), within, yes, no)


def flow_filter(ends: ServiceEnds) -> bytes | None:
    """The program, an array of struct sock_filter, or None if it is too long for the kernel.

    It accepts TCP and UDP with (our destination address and a service port) or (our source
    address and a service port), the latter for flows that conntrack picked up when our side
    spoke.  A test of the port alone would let the proxy's own connections through.
    """
    program, addresses = _Program(), sorted(ends.addresses)
    # M[0], M[1] = offsets of CTA_TUPLE_ORIG and of CTA_TUPLE_PROTO in it.  Both are stored on
    # every way, as the kernel demands of what is loaded later.
    program.add(_LD_NUMBER, _ATTRIBUTES_AT)
    program.add(_LDX_NUMBER, _TUPLE_ORIG)
    program.add(_LD_WORD_AT, _ATTRIBUTE)
    program.add(_STORE, 0)
    program.find(_TUPLE_PROTO)
    program.add(_STORE, 1)
    program.find(_PROTO_NUM)
    program.add(_TAX)
    program.add(_LD_BYTE_X, 4)
    program.add(_JEQ, socket.IPPROTO_TCP, "ours")
    program.add(_JEQ, socket.IPPROTO_UDP, "ours")
    program.jump("drop")
    program.label("ours")
    program.has_address(_V4_DST, _V6_DST, addresses, "to us", "not to us")
    program.label("to us")
    program.has_port(_PROTO_DPORT, ends.ports, "accept", "not to us")
    program.label("not to us")
    program.has_address(_V4_SRC, _V6_SRC, addresses, "from us", "drop")
    program.label("from us")
    program.has_port(_PROTO_SPORT, ends.ports, "accept", "drop")
    program.label("accept")
    program.add(_RETURN, 0xFFFFFFFF)
    program.label("drop")
    program.add(_RETURN, 0)
    packed = program.packed()
    return packed if len(packed) // _INSTRUCTION.size <= MAX_INSTRUCTIONS else None
