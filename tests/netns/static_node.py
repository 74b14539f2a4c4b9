"""Static identities: the file's, in the kernel's maps without an agent, and of a node."""

from __future__ import annotations

import socket

from vff_qos.core.identities import parse_identities, with_identities
from vff_qos.core.plan.desired import our_table
from vff_qos.core.settings import Settings
from vff_qos.kernel import nft
from vff_qos.kernel.packed.nft_elements import StaticMaps

from .harness import MAJOR, Client, Node

TAG = MAJOR << 16
SETTINGS = Settings(service_ports=((443, 443),))


def put(maps: StaticMaps, text: str, settings: Settings = SETTINGS) -> dict[str, int]:
    """Have the identities of a file in the kernel; returns their marks."""
    found = parse_identities(text.encode(), "identities.yml", settings.service_ports)
    marks = {key: TAG | 0x10 + number for number, key in enumerate(found.keys)}
    nft.replace_table(our_table(with_identities(settings, found)))
    maps.replace(found.elements(marks))
    return marks


class WithIdentities(Node):
    """A node whose services, networks and people change."""

    def identify(self, text: str) -> None:
        """Others from now on."""
        (self.directory / "identities.yml").write_text(text)

    def from_office(self, port: int = 4430) -> Client:
        """A connection from 127.0.0.2."""
        client = Client.__new__(Client)
        client.sock = socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0))
        client.address, client.port = client.sock.getsockname()
        client.text = client.address
        packed = socket.inet_aton("127.0.0.2")
        client.flow = Client("127.0.0.1", port).flow._replace(src=packed, sport=client.port)
        return client
