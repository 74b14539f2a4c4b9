"""What the kernel says of TCP's memory."""

from __future__ import annotations

import pytest

from vff_qos.kernel.tcpmem import TcpMemory, parse_protocols, read_tcp_memory

HEAD = "protocol  size sockets  memory press maxhdr  slab module     cl co di ac\n"
OTHERS = "UDP       1344      9     126   yes      0   yes  kernel      y  y  y  n\n"


@pytest.mark.parametrize(("press", "is_short"), [("yes", True), ("no", False)])
def test_pressure_is_the_kernels_own_word(press: str, is_short: bool) -> None:
    tcp = f"TCP       2288    201   47728   {press}    320   yes  kernel      y  y  y  y\n"
    assert parse_protocols(HEAD + OTHERS + tcp, 4096) == TcpMemory(47728 * 4096, is_short)


def test_another_protocol_is_not_taken_for_tcp() -> None:
    with pytest.raises(ValueError, match="does not know TCP"):
        parse_protocols(HEAD + OTHERS + OTHERS.replace("UDP ", "MPTCP "), 4096)


def test_this_kernel_is_understood() -> None:
    assert read_tcp_memory().used_bytes >= 0
