"""Our filters as the kernel and tc see them."""

from __future__ import annotations

from dataclasses import replace

from vff_qos.commands import bootstrap
from vff_qos.core.plan.kernel_record import KernelRecord
from vff_qos.core.plan.objects import OtherAction, OtherMatch
from vff_qos.core.settings import Settings

from .harness import (
    WAN,
    Memory,
    comparable,
    run,
)


def test_tc_reads_our_filters_as_we_meant_them(full: Settings) -> None:
    """Our bytes against those of tc: the same filters made by its commands look the same."""
    bootstrap.reconcile(full, Memory())

    def listing() -> list[str]:
        # As text: iproute2 6.1 prints JSON that is none for fw with a mask.
        return comparable(run("tc", "filter", "show", "dev", WAN, "ingress"))

    ours = listing()
    for chain in ("0", "20736"):
        run("tc", "filter", "del", "dev", WAN, "ingress", "chain", chain)
    add = ["tc", "filter", "add", "dev", WAN, "ingress"]
    to_ifb = ["action", "mirred", "egress", "redirect", "dev", "vffqos0"]
    run(
        *add,
        "chain",
        "20736",
        "pref",
        "1",
        "protocol",
        "all",
        "handle",
        "0x51000000/0xffff0000",
        "fw",
        *to_ifb,
    )
    run(
        *add,
        "chain",
        "20736",
        "pref",
        "2",
        "protocol",
        "all",
        "handle",
        "1",
        "flower",
        "skip_hw",
        "action",
        "skbedit",
        "mark",
        "0",
        "pipe",
        *to_ifb,
    )
    pref = 20736
    for family in ("ip", "ipv6"):
        for proto in ("tcp", "udp"):
            for port, handle in (("443", 0x1BB01BB), ("20000-20100", 0x4E204E84)):
                run(
                    *add,
                    "pref",
                    str(pref),
                    "protocol",
                    family,
                    "handle",
                    str(handle),
                    "flower",
                    "skip_hw",
                    "ip_proto",
                    proto,
                    "dst_port",
                    port,
                    "action",
                    "ctinfo",
                    "cpmark",
                    "0xffffffff",
                    "goto",
                    "chain",
                    "20736",
                )
            pref += 1
    assert listing() == ours
    assert bootstrap.reconcile(full, Memory()) == []


def test_highest_port_fits_a_handle(full: Settings) -> None:
    memory = Memory()
    edge = replace(full, service_ports=((1, 1), (65535, 65535)), leaf="fq_codel")
    bootstrap.reconcile(edge, memory)
    assert bootstrap.reconcile(edge, memory) == []


def test_a_decoded_filter_that_is_not_ours_is_unlike_ours(full: Settings) -> None:
    bootstrap.reconcile(full, Memory())
    run(
        "tc",
        "filter",
        "add",
        "dev",
        WAN,
        "ingress",
        "pref",
        "20736",
        "protocol",
        "ip",
        "handle",
        "7",
        "flower",
        "src_ip",
        "10.0.0.0/8",
        "ip_proto",
        "tcp",
        "dst_port",
        "443",
        "action",
        "drop",
    )
    (theirs,) = [
        f for f in bootstrap.observe(full, KernelRecord()).filters if f.place.pref == 20736
    ]
    assert theirs.match == OtherMatch(
        "flower", "TCA_FLOWER_KEY_IPV4_SRC TCA_FLOWER_KEY_IPV4_SRC_MASK"
    )
    assert theirs.actions == (OtherAction("gact"),)
