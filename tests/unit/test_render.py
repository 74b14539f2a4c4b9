"""Text for people."""

from __future__ import annotations

from vff_qos.core.owners import RESTRICTED_KEY
from vff_qos.render import display_name


def test_a_class_of_flows_in_doubt_is_called_by_its_address() -> None:
    assert display_name(RESTRICTED_KEY + "01020304") == "(restricted) 1.2.3.4"
    assert display_name(RESTRICTED_KEY + "01020304/5-6") == "(restricted) 1.2.3.4"
    assert (
        display_name(RESTRICTED_KEY + "20010db800000000") == "(restricted) 2001:0db8:0000:0000::/64"
    )
