"""Limits to numbers of HTB: rates, quanta, bursts and the leaf's patience."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vff_qos.core.htb import NodeCapacity, burst_bytes, guarantee_shift, leaf_target_us, user_class


@given(
    ceil_bps=st.integers(10**7, 10**12),
    weights=st.lists(st.integers(1, 32), min_size=1, max_size=5),
    limit_bps=st.integers(10**6, 10**12),
)
def test_guarantees_of_10000_users_fit_into_the_node(
    ceil_bps: int, weights: list[int], limit_bps: int
) -> None:
    node = NodeCapacity(ceil_bps, max(weights))
    classes = [user_class(limit_bps, weight, node=node) for weight in weights]
    assert sum(c.rate_bps for c in classes) * 10_000 // len(classes) <= ceil_bps // 2
    promised = [10**8 * weight for weight in weights]
    total = sum(promised) * 2_000
    node = node._replace(shift=guarantee_shift(total, ceil_bps))
    kept = [user_class(10**12, guaranteed_bps=bps, node=node).rate_bps for bps in promised]
    # The kernel's smallest rate, 200 bit/s, stands below.
    assert sum(kept) * 2_000 <= ceil_bps // 2 + 200 * 2_000 * len(kept)


def test_shares_follow_weights() -> None:
    for ceil_bps in (10**9, 10**8):
        node = NodeCapacity(ceil_bps, max_weight=4)
        one, four = (user_class(5 * 10**7, weight, node=node) for weight in (1, 4))
        assert four.quantum_bytes == 4 * one.quantum_bytes
        assert four.rate_bps == 4 * one.rate_bps
        assert one.ceil_bps == four.ceil_bps == 5 * 10**7


def test_codel_waits_for_a_frame_and_for_the_turns_of_others() -> None:
    assert leaf_target_us(5 * 10**7) == 5_000
    assert leaf_target_us(10**6) == 24_224
    assert leaf_target_us(10**7, NodeCapacity(10**9)) == 5_000
    assert leaf_target_us(10**7, NodeCapacity(2 * 10**7)) == 38_758
    assert leaf_target_us(10**7, NodeCapacity(10**5)) == 100_000


def test_bursts_follow_the_rate() -> None:
    rates = (10**6, 2 * 10**7, 10**8, 5 * 10**8, 10**9, 5 * 10**9)
    assert [burst_bytes(rate_bps) for rate_bps in rates] == [
        3 * 1_514, 25_000, 125_000, 262_144, 262_144, 1_250_000,
    ]  # fmt: skip


@given(
    limit_bps=st.integers(1_000, 10**12),
    weight=st.integers(1, 32),
    ceil_bps=st.integers(1_000, 10**12),
    guaranteed_bps=st.none() | st.integers(1_000, 10**12),
    shift=st.integers(0, 40),
)
def test_classes_stay_within_what_htb_accepts(
    limit_bps: int, weight: int, ceil_bps: int, guaranteed_bps: int | None, shift: int
) -> None:
    node = NodeCapacity(ceil_bps, 32, shift)
    params = user_class(limit_bps, weight, guaranteed_bps=guaranteed_bps, node=node)
    assert 200 <= params.rate_bps <= params.ceil_bps == limit_bps
    assert 1_514 <= params.quantum_bytes <= 70_000
    assert params.cburst_bytes >= 1_514
