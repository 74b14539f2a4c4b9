"""Which addresses are too many: who was first stays, the silent do not count."""

from __future__ import annotations

from vff_qos.core.flows.places import SILENT_S, Devices

A, B, C = b"\x0a\0\0\1", b"\x0a\0\0\2", bytes(8)
GRACE_S = 120


def of(*places: bytes) -> Devices:
    found = Devices()
    for place in places:
        found.gain(place)
    return found


def test_the_first_come_first() -> None:
    assert of(B, A, B, C).talking({A: 0, B: 0, C: 0}, GRACE_S) == [B, A, C]


def test_the_silent_do_not_count_and_keep_their_place_in_the_grace() -> None:
    devices = of(A, B)
    assert devices.talking({A: SILENT_S, B: SILENT_S - 1}, GRACE_S) == [B]
    assert devices.talking({A: 0, B: 0}, GRACE_S) == [A, B]


def test_after_the_grace_they_come_last() -> None:
    devices = of(A, B)
    assert devices.talking({A: GRACE_S, B: 0}, GRACE_S) == [B]
    assert devices.talking({A: 0, B: 0}, GRACE_S) == [B, A]


def test_an_address_without_flows_is_none() -> None:
    devices = of(A, A, B)
    devices.lose(A)
    assert (list(devices), devices.count(A)) == ([A, B], 1)
    devices.lose(A)
    devices.lose(C)
    assert (list(devices), len(devices), devices.count(A)) == ([B], 1, 0)


def test_what_the_kernel_does_not_list_has_closed() -> None:
    assert of(A, B).talking({B: 0}, GRACE_S) == [B]
