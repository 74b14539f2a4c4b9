"""Services and networks: what the file may say, and what follows from it."""

from __future__ import annotations

import pytest

from vff_qos.core.identities import Identities, Service, parse_identities, with_identities
from vff_qos.core.settings import Settings
from vff_qos.errors import ConfigError


def parse(text: str) -> Identities:
    return parse_identities(text.encode(), "identities.yml", ((443, 443), (20000, 20100)))


def test_a_file_that_says_nothing_has_none() -> None:
    assert not parse("").has_static
    assert parse("services: {}\nnetworks: {}\npeople: {}\n") == Identities()
    assert with_identities(Settings(), parse("")) == Settings()


def test_services_and_networks_are_users() -> None:
    found = parse(
        "services:\n"
        "  alice-tunnel: {ports: [8000-8005, 8006, 9000], protocol: tcp}\n"
        "  7: {ports: ['53'], address: 10.8.0.1}\n"
        "networks: {office: {prefixes: [203.0.113.0/24, '2001:db8::/48']}}\n"
    )
    assert found.keys == ["service:alice-tunnel", "service:7", "network:office"]
    first, second = found.services
    assert first == Service("alice-tunnel", ((8000, 8006), (9000, 9000)), (6,))
    assert second.protocols == (6, 17) and second.address == bytes((10, 8, 0, 1))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "services: {a: {ports: [8000-8010]}, b: {ports: [7000, 8010-8020], protocol: udp}}",
            "services.b: service 'b' and service 'a' both have udp port 8010",
        ),
        (
            "services: {a: {ports: [1-9]}, b: {ports: [5], address: '::1'}}",
            "services.b: service 'b' and service 'a' both have tcp port 5",
        ),
        (
            "services: {a: {ports: [4-9], address: '::1'}, b: {ports: [5], address: '::1'}}",
            "services.b: service 'b' and service 'a' both have tcp port 5",
        ),
        (
            "services: {a: {ports: [20100-20200]}}",
            "services.a: service 'a' and service_ports both have tcp port 20100",
        ),
        (
            "networks: {a: {prefixes: [10.0.0.0/8]}, b: {prefixes: [10.1.2.3]}}",
            "networks.b: network 'b' and network 'a' both have 10.1.2.3",
        ),
        (
            "networks: {b: {prefixes: ['fd00::/8', 'fd00:1::/32']}}",
            "networks.b: network 'b' and network 'b' both have fd00:1::",
        ),
        ("services: {a: {ports: [0]}}", "services.a.ports.0: 0 is not a port"),
        ("services: {a: {}}", "services.a: needs ports, a list of ports and ranges"),
        ("services: {a: {ports: 5}}", "services.a.ports: must be a list of ports and ranges"),
        ("services: {a: {ports: [1], protocol: sctp}}", "'sctp' is not one of both, tcp, udp"),
        ("services: {a: {ports: [1], address: here}}", "'here' is not an IPv4 or IPv6 address"),
        ("services: {a: {port: 1}}", "services.a.port: unknown key; did you mean 'ports'?"),
        ("services: {'a:b': {ports: [1]}}", "'a:b' is not a name"),
        ("networks: {a: {prefixes: [10.0.0.1/8]}}", "has host bits set"),
        ("networks: {a: {prefixes: ['::/0']}}", "'::/0' would be everybody"),
        ("networks: {a: {prefixes: []}}", "must be a list of prefixes"),
        ("networks: [10.0.0.0/8]", "networks: must be a mapping"),
        ("servises: {}", "unknown key; did you mean 'services'?"),
        (
            "services: {a: {ports: [21000-60999], address: 10.0.0.1}}",
            "have 80000 ports together, 65536 are possible",
        ),
    ],
)
def test_a_mistake_is_one_line_with_file_line_and_key(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text)
    sentence = str(refused.value)
    assert complaint in sentence
    assert sentence.startswith("identities.yml:1: ")
    assert "\n" not in sentence


def test_one_port_of_two_addresses_and_two_protocols_is_two_services() -> None:
    found = parse(
        "services: {a: {ports: [5], address: 10.0.0.1}, b: {ports: [5], address: 10.0.0.2},"
        " c: {ports: [6], protocol: tcp}, d: {ports: [6], protocol: udp}}"
    )
    assert len(found.services) == 4


def test_whoever_has_no_mark_is_in_no_map() -> None:
    found = parse("services: {a: {ports: [5]}, b: {ports: [6], protocol: udp}}")
    elements = found.elements({"service:b": 0x51000002})
    assert elements.ports == {6: [], 17: [(6, 6, 0x51000002)]}


def test_all_ports_of_services_are_in_a_few_ranges() -> None:
    """A packet is held against one filter after the other: their number has a bound."""
    few = parse("services: {a: {ports: [1000-1009]}, b: {ports: [1010, 5000]}}")
    assert few.cover() == ((1000, 1010), (5000, 5000))
    ports = [1000, 1002, 1004, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000]
    many = parse(f"services: {{a: {{ports: {ports}}}}}")
    assert many.cover() == (
        (1000, 2000), (3000, 3000), (4000, 4000), (5000, 5000), (6000, 6000), (7000, 7000),
        (8000, 8000), (9000, 9000),
    )  # fmt: skip
    assert all(any(low <= port <= high for low, high in many.cover()) for port in ports)
