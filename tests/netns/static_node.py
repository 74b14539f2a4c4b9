"""Static identities without an agent: the file's, in the kernel's maps."""

from __future__ import annotations

from vff_qos.core.identities import parse_identities, with_identities
from vff_qos.core.plan.desired import our_table
from vff_qos.core.settings import Settings
from vff_qos.kernel import nft
from vff_qos.kernel.packed.nft_elements import StaticMaps

from .harness import MAJOR

TAG = MAJOR << 16
SETTINGS = Settings(service_ports=((443, 443),))


def put(maps: StaticMaps, text: str, settings: Settings = SETTINGS) -> dict[str, int]:
    """Have the identities of a file in the kernel; returns their marks."""
    found = parse_identities(text.encode(), "identities.yml", settings.service_ports)
    marks = {key: TAG | 0x10 + number for number, key in enumerate(found.keys)}
    nft.replace_table(our_table(with_identities(settings, found)))
    maps.replace(found.elements(marks))
    return marks
