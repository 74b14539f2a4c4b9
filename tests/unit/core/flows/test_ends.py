"""Which end of a flow is ours."""

from __future__ import annotations

from unit.ends import ENDS, TCP, THEM4, THEM6, US4, US6, port
from vff_qos.core.flows.ends import ServiceEnds


def test_which_end_is_ours() -> None:
    at = {"us": US4, "them": THEM4, "self": US4}

    def orient(ends: ServiceEnds, src: str, sport: int, dst: str, dport: int) -> object:
        return ends.orient(TCP, at[src], port(sport), at[dst], port(dport))

    def flow(client: bytes, client_port: int, our_port: int) -> tuple[bytes, bytes]:
        return client + port(client_port), b"\x06" + US4 + port(our_port)

    assert orient(ENDS, "them", 5, "us", 443) == flow(THEM4, 5, 443)
    assert orient(ENDS, "them", 5, "us", 20050) == flow(THEM4, 5, 20050)
    # Our side spoke first.
    assert orient(ENDS, "us", 443, "them", 5) == flow(THEM4, 5, 443)
    # The proxy's own connection to a port with a service's number.
    assert orient(ENDS, "us", 40000, "them", 443) is None
    assert orient(ENDS, "them", 443, "us", 40000) is None
    assert orient(ENDS, "them", 443, "them", 443) is None
    # Both could be: a client of this host with a service port.
    assert orient(ENDS, "self", 20000, "us", 443) == flow(US4, 20000, 443)
    everything = ServiceEnds((), [US4, bytes(4), bytes(16)])
    assert everything.addresses == {US4}
    assert orient(everything, "them", 443, "us", 65535) == flow(THEM4, 443, 65535)
    assert orient(everything, "us", 443, "them", 5) == flow(THEM4, 5, 443)
    assert everything.orient(TCP, THEM6, port(1), US6, port(443)) is None
