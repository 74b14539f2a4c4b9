"""What goes through pyroute2 is what was tried on real kernels (golden/)."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2.netlink import nlmsg

from vff_qos.core.plan.desired import desired
from vff_qos.core.plan.handles import ROOT_PARENT, splitter
from vff_qos.core.plan.objects import Filter
from vff_qos.core.settings import Settings
from vff_qos.kernel import filters, route
from vff_qos.kernel.packed.filter_list import decode_filter
from vff_qos.kernel.packed.netlink import NLA_F_NESTED

# --- what goes through pyroute2: held to bytes that were tried on real kernels ---

MESSAGES: dict[str, str] = json.loads(
    (Path(__file__).parent / "golden" / "tc_messages.json").read_text()
)
INDICES = {"wan0": 7, "vffqos0": 9}
NAMES = {index: name for name, index in INDICES.items()}
PORTS = Settings(wan="wan0", service_ports=((443, 443), (20000, 20100)))
VARIANTS = {
    "ports": PORTS,
    "all": replace(PORTS, service_ports=()),
    "early": replace(PORTS, service_ports=((443, 443),), early_shaping=True),
}
FILTERS = {
    f"{name}: {verb} {item}": (verb, item)
    for name, settings in VARIANTS.items()
    for item in desired(settings, "wan0")
    if isinstance(item, Filter)
    for verb in ("add", "remove")
    if f"{name}: {verb} {item}" in MESSAGES
}


#: Nested attributes that pyroute2 packs without NLA_F_NESTED and the kernel takes so, because their
#: parsers are older than the flag (nla_parse_nested_deprecated): all actions of a filter, one of
#: them, skbedit's options, fw's.
_UNFLAGGED = (
    "fw",
    "fw/4",
    "fw/4/*",
    "flower/3",
    "flower/3/*",
    "flower/3/*/skbedit",
    "fw/4/*/skbedit",
)


def _tree(data: bytes, path: str = "") -> str:
    """Attributes by number, as the kernel takes them (nla_parse): their order does not count, nor
    does the flag NLA_F_NESTED where it must not be there."""
    found = []
    at, kind = 0, ""
    while at < len(data):
        length, number = struct.unpack_from("=HH", data, at)
        body = data[at + 4 : at + length]
        nested = bool(number & NLA_F_NESTED)
        number &= ~NLA_F_NESTED
        where = f"{path}/{number}"
        if number == 1 and body.endswith(b"\0") and body[:-1].isalnum() and not kind:
            kind = body[:-1].decode()  # TCA_KIND, TCA_ACT_KIND
        elif kind and number == 2:
            where = f"{path}/{kind}"
        elif "/" in path and path.rsplit("/", 1)[1] in "34":
            where = f"{path}/*"
        where = where.lstrip("/")
        if nested or where in _UNFLAGGED:
            flag = "" if where in _UNFLAGGED else "nested "
            found.append((number, f"{flag}{_tree(body, where)}"))
        else:
            found.append((number, body.hex()))
        at += (length + 3) & ~3
    return "{" + ", ".join(f"{number}: {text}" for number, text in sorted(found)) + "}"


def _same(payload: bytes, golden: str) -> None:
    want = bytes.fromhex(golden)
    assert payload[:20] == want[:20]  # struct tcmsg
    assert _tree(payload[20:]) == _tree(want[20:])


class _RouteWire:
    """An IPRoute that keeps type, flags and payload of what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int, bytes]] = []

    def nlm_request_batch(self, messages: list[nlmsg]) -> list[nlmsg]:
        for message in messages:
            message.encode()
            header = message["header"]
            self.sent.append((header["type"], header["flags"], bytes(message.data[16:])))
        return []


def test_every_filter_has_bytes_to_be_held_to() -> None:
    assert len(FILTERS) == sum(" filter " in name for name in MESSAGES) == 32


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_those_that_were_tried_on_real_kernels(name: str) -> None:
    verb, item = FILTERS[name]
    act = filters.add_filter if verb == "add" else filters.delete_filter
    wire = _RouteWire()
    act(wire, item, 0x5100, INDICES)
    assert wire.sent[0][:2] == ((44, 0x605) if verb == "add" else (45, 0x5))
    _same(wire.sent[0][2], MESSAGES[name])


@pytest.mark.parametrize("name", [name for name in FILTERS if "add ingress" in name])
def test_a_filter_that_the_kernel_shows_is_the_one_that_was_made(name: str) -> None:
    item = FILTERS[name][1]
    found = decode_filter(bytes.fromhex(MESSAGES[name]))
    assert filters.decode(found, "wan0", "ingress", (0x5100,), NAMES) == item
    other = filters.decode(found, "wan0", "ingress", (0x5100,), {9: "up9"})
    assert (other == item) == ("20" in name)  # those of chain 0 name no device


@pytest.mark.parametrize("name", ["splitter", "tree below a splitter", "tree", "clsact"])
def test_qdiscs_are_those_that_were_tried_on_real_kernels(name: str) -> None:
    wire = _RouteWire()
    if name == "clsact":
        route.add_clsact(wire, 7)
    elif name == "splitter":
        route.put_splitter(wire, 7, 0x5100, 1536)
    else:
        above = splitter(0x5100) | 1 if "below" in name else ROOT_PARENT
        route.put_tree(wire, 7, 0x5100, 0xFFFE, above)
    assert wire.sent[0][:2] == (36, 0x605 if name == "clsact" else 0x505)
    _same(wire.sent[0][2], MESSAGES[name])


#: As tc of iproute2 6.1 packs ``filter add dev wan0 egress pref 20743 protocol all handle
#: 0x51010000/0xffff0000 fw action skbedit queue_mapping 1 continue``.
_LEAD = (
    "000000000700000000000151f3ffffff00030751070001006677000044000200080005000000ffff380004003400"
    "01000c000100736b62656469740024000280180002000000000000000000ffffffff000000000000000006000400"
    "01000000"
)


def _leading(queues: int) -> list[Filter]:
    """The filters at egress of the WAN device, where there are two trees."""
    found = desired(replace(PORTS, trees=2), "wan0", 1500, queues)
    filters = [item for item in found if isinstance(item, Filter) and item.leads]
    return [item for item in filters if item.place.dev == "wan0"]


def test_what_leads_packets_to_their_queue_is_what_tc_would_make() -> None:
    wire, (_first, second) = _RouteWire(), _leading(2)
    filters.add_filter(wire, second, 0x5100, INDICES)
    payload = wire.sent[0][2]
    want = bytes.fromhex(_LEAD)
    assert payload[:20] == want[:20]
    assert _tree(payload[20:]) == _tree(want[20:])


@pytest.mark.parametrize("index", range(3))
def test_what_leads_packets_is_read_as_it_was_made(index: int) -> None:
    wire, item = _RouteWire(), _leading(8)[index]
    filters.add_filter(wire, item, 0x5100, INDICES)
    found = decode_filter(wire.sent[0][2])
    assert filters.decode(found, "wan0", "egress", (0x5100,), NAMES) == item


def test_the_range_of_queues_has_the_numbers_of_the_kernels_header() -> None:
    """include/uapi/linux/tc_act/tc_skbedit.h: QUEUE_MAPPING 4, FLAGS 9, QUEUE_MAPPING_MAX 10."""
    wire = _RouteWire()
    filters.add_filter(wire, _leading(8)[0], 0x5100, INDICES)
    packed = _tree(wire.sent[0][2][20:])
    assert "4: 0000, 9: 4000000000000000, 10: 0100" in packed
