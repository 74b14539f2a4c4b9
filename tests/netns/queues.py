"""Devices with several transmit queues, and what leads packets to them in any kernel.

A kernel without cls_fw and act_skbedit has no filters of ours.  In their place stands a program of
the same few steps: it gives a packet the queue that its mark names (net/core/dev.c takes it for the
one that was recorded, skb_tx_hash), and its class as a priority, which HTB takes first.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from array import array

from pyroute2 import IPRoute

from .harness import run

# include/uapi/linux/{sockios,ethtool}.h
_SIOCETHTOOL, _ETHTOOL_SCHANNELS = 0x8946, 0x3D
_CHANNELS = struct.Struct("=9I")
_SYS_BPF, _BPF_PROG_LOAD, _SCHED_CLS = 321, 5, 3  # x86-64, include/uapi/linux/bpf.h
_INSTRUCTION = struct.Struct("=BBhi")
# Offsets in struct __sk_buff.
_MARK, _QUEUE, _PRIORITY = 8, 12, 32
_TC_ACT_UNSPEC = -1
_CLSACT = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}


def use_queues(device: str, count: int) -> None:
    """``ethtool -L DEVICE rx COUNT tx COUNT``."""
    buffer = array("B", _CHANNELS.pack(_ETHTOOL_SCHANNELS, 0, 0, 0, 0, count, count, 0, 0))
    request = struct.pack("=16sQ16x", device.encode(), buffer.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)


def _program(steps: list[tuple[int, int, int, int]]) -> int:
    """Descriptor of a loaded classifier; steps are (opcode, registers, offset, immediate)."""
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*step) for step in steps))
    licence, log = ctypes.create_string_buffer(b"GPL"), ctypes.create_string_buffer(1 << 16)
    attributes = ctypes.create_string_buffer(
        struct.pack(
            "=IIQQIIQII", _SCHED_CLS, len(steps), ctypes.addressof(code),
            ctypes.addressof(licence), 1, len(log), ctypes.addressof(log), 0, 0,
        )
    )  # fmt: skip
    libc = ctypes.CDLL(None, use_errno=True)
    found: int = libc.syscall(_SYS_BPF, _BPF_PROG_LOAD, attributes, len(attributes))
    if found < 0:
        raise OSError(ctypes.get_errno(), f"bpf: {log.value.decode()}")
    return found


#: r1 is the packet; r2 its mark.  Not ours: nothing.  Else queue = (mark >> 16 & 0x3f) + 1, because
#: 0 stands for none, and priority = mark.
_LEAD = [
    (0x61, 0x12, _MARK, 0),  # r2 = packet.mark
    (0xBF, 0x23, 0, 0),  # r3 = r2
    (0x57, 0x03, 0, -0x1000000),  # r3 &= 0xff000000
    (0x67, 0x03, 0, 32),  # the mask above was extended by its sign
    (0x77, 0x03, 0, 32),
    (0x55, 0x03, 6, 0x51000000),  # if r3 != our tag: end
    (0xBF, 0x23, 0, 0),  # r3 = r2
    (0x77, 0x03, 0, 16),
    (0x57, 0x03, 0, 0x3F),
    (0x07, 0x03, 0, 1),
    (0x63, 0x31, _QUEUE, 0),  # packet.queue_mapping = r3
    (0x63, 0x21, _PRIORITY, 0),  # packet.priority = r2
    (0xB7, 0x00, 0, _TC_ACT_UNSPEC),
    (0x95, 0x00, 0, 0),
]


def _mark_by_port(first: int, major: int, trees: int) -> list[tuple[int, int, int, int]]:
    """The packet's mark from the destination port, in the place of conntrack's: ports from
    ``first`` on are minors."""
    return [
        (0xBF, 0x16, 0, 0),  # r6 = the packet, for what follows
        (0x28, 0x00, 0, 14 + 20 + 2),  # r0 = port, of IPv4 without options
        (0x17, 0x00, 0, first),
        (0xBF, 0x02, 0, 0),  # r2 = minor
        (0xBF, 0x03, 0, 0),
        (0x97, 0x03, 0, trees),  # r3 = minor % trees
        (0x07, 0x03, 0, major),
        (0x67, 0x03, 0, 16),
        (0x4F, 0x32, 0, 0),  # r2 |= r3
        (0x63, 0x26, _MARK, 0),
        (0xB7, 0x00, 0, _TC_ACT_UNSPEC),
        (0x95, 0x00, 0, 0),
    ]


def _attach(device: str, hook: str, steps: list[tuple[int, int, int, int]]) -> None:
    program = _program(steps)
    try:
        with IPRoute() as ipr:
            ipr.tc(
                "add-filter", "bpf", socket.if_nametoindex(device), fd=program, name="lead",
                parent=_CLSACT[hook], prio=1, protocol=3, direct_action=True,
            )  # fmt: skip
    finally:
        os.close(program)


def lead_packets(*devices: str) -> None:
    """Have packets with our mark led to their queue and class, as our filters do."""
    for device in devices:
        _attach(device, "egress", _LEAD)


def redirect_uploads(wan: str, ifb: str, first: int, major: int, trees: int) -> None:
    """Have what comes in pass the IFB, with marks by port."""
    _attach(wan, "ingress", _mark_by_port(first, major, trees))
    run("tc", "filter", "add", "dev", wan, "ingress", "protocol", "ip", "pref", "2", "u32",
        "match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev", ifb)  # fmt: skip
