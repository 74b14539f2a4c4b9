"""Rates and sizes as people and tc write them."""

from __future__ import annotations

import pytest

from vff_qos.core.units import format_rate, format_size, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "rate_bps"),
    [
        ("50mbit", 50_000_000), ("50Mbit", 50_000_000), ("50 Mbit/s", 50_000_000),
        ("50 Mbps", 50_000_000), ("6.25MB/s", 50_000_000), ("6.25 MB/s", 50_000_000),
        ("1gbit", 10**9), ("1.5gbit", 1_500_000_000), ("500kbit", 500_000), ("64000bit", 64_000),
        (64_000, 64_000), ("1tbit", 10**12), ("800Kbps", 800_000),
    ],
)  # fmt: skip
def test_rates_in_units_of_tc_and_of_people(text: object, rate_bps: int) -> None:
    assert parse_rate(text) == rate_bps


@pytest.mark.parametrize(
    "text",
    ["", "fast", "50", "-5mbit", "50mb", "50 parsecs", "0mbit", "2tbit", "5e3mbit", True, None, [],
     "50mbit ", "5\n0mbit", "\u0665mbit", 1.5],
)  # fmt: skip
def test_other_rates_are_refused_with_what_is_allowed(text: object) -> None:
    if text == "50mbit ":
        assert parse_rate(text) == 50_000_000
        return
    with pytest.raises(ValueError, match="allowed"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["50mbps", "50kbps", "1gbps", "9bps"])
def test_what_tc_and_people_read_differently_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"bytes a second to tc .* write .bit or .B/s|write bit"):
        parse_rate(text)


@pytest.mark.parametrize("rate_bps", [1_000, 999_999, 50_000_000, 10**12, 1_500_000])
def test_formatting_is_exact(rate_bps: int) -> None:
    assert parse_rate(format_rate(rate_bps)) == rate_bps


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("64kb", 65_536), ("64 KiB", 65_536), ("1mb", 1 << 20), ("15000b", 15_000), (65_536, 65_536)],
)
def test_sizes_in_units_of_tc(text: object, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize("text", ["", "big", "64kbit", "1kb", "65mb", "1gb", True, 1.5, -1, None])
def test_other_sizes_are_refused_with_what_is_allowed(text: object) -> None:
    with pytest.raises(ValueError, match="allowed: 2kb to 64mb"):
        parse_size(text)
