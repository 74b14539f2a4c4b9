"""Whose flow it is, by what was said and by what is known."""

from __future__ import annotations

import pytest

from vff_qos.core.claims.trust import (
    DOUBTED,
    HINTED,
    PLAIN,
    TOLD,
    VOUCHED,
    WEAK,
    Verdict,
    address_key,
    judge,
)
from vff_qos.core.flows import record as flags
from vff_qos.core.flows.record import FOREIGN, PROVISIONAL, owned
from vff_qos.core.owners import (
    RESTRICTED,
)
from vff_qos.render import display_name

FREE = 0


MINE, OTHERS = owned(0, 5, PLAIN), owned(0, 6, PLAIN)
MINE_HINTED, OTHERS_HINTED = owned(0, 5, HINTED), owned(0, 6, HINTED)
OTHERS_VOUCHED, OTHERS_WEAK = owned(0, 6, VOUCHED), owned(0, 6, WEAK)
DOUBTFUL, DISPUTED = owned(0, 9, DOUBTED, flags.RESTRICTED), owned(0, 9, PLAIN, flags.RESTRICTED)
IN_ADVANCE = owned(0, 6, DOUBTED, PROVISIONAL)


@pytest.mark.parametrize(
    ("record", "claimed", "word", "verdict"),
    [
        (FREE, 5, PLAIN, Verdict.GIVE),
        (FREE, 0, PLAIN, Verdict.GIVE),
        (FREE, 5, HINTED, Verdict.GIVE),
        (FREE, 5, DOUBTED, Verdict.RESTRICT),
        (FREE, None, PLAIN, Verdict.RESTRICT),
        (FREE, None, DOUBTED, Verdict.RESTRICT),
        (MINE, 5, PLAIN, Verdict.KEEP),
        (MINE, 5, DOUBTED, Verdict.KEEP),
        (MINE, None, PLAIN, Verdict.KEEP),
        (MINE_HINTED, 5, PLAIN, Verdict.GIVE),
        (OTHERS, 5, PLAIN, Verdict.CONFLICT),
        (OTHERS, 0, PLAIN, Verdict.CONFLICT),
        (OTHERS, 5, WEAK, Verdict.KEEP),
        (OTHERS, 5, VOUCHED, Verdict.KEEP),
        (OTHERS, 5, TOLD, Verdict.GIVE),
        (OTHERS_WEAK, 5, WEAK, Verdict.GIVE),
        (OTHERS_WEAK, 5, PLAIN, Verdict.GIVE),
        (OTHERS_VOUCHED, 5, VOUCHED, Verdict.CONFLICT),
        (OTHERS_VOUCHED, 5, HINTED, Verdict.KEEP),
        (OTHERS_VOUCHED, 5, DOUBTED, Verdict.KEEP),
        (OTHERS_HINTED, 5, DOUBTED, Verdict.RESTRICT),
        (OTHERS_HINTED, 5, HINTED, Verdict.RESTRICT),
        (OTHERS_HINTED, 5, VOUCHED, Verdict.GIVE),
        (DOUBTFUL, 5, DOUBTED, Verdict.RESTRICT),
        (DOUBTFUL, 5, HINTED, Verdict.RESTRICT),
        (DOUBTFUL, 5, VOUCHED, Verdict.GIVE),
        (DISPUTED, 5, PLAIN, Verdict.RESTRICT),
        (DISPUTED, 5, TOLD, Verdict.GIVE),
        (IN_ADVANCE, 5, PLAIN, Verdict.GIVE),
        (IN_ADVANCE, 5, DOUBTED, Verdict.RESTRICT),
        (FOREIGN, 5, TOLD, Verdict.FOREIGN),
    ],
)
def test_verdicts(record: int, claimed: int | None, word: int, verdict: Verdict) -> None:
    assert judge(record, claimed, word) is verdict


def test_one_customer_is_one_address_or_one_64() -> None:
    assert address_key(b"\1\2\3\4") == b"\1\2\3\4"
    assert address_key(b"\x20\x01" + b"\0" * 13 + b"\1") == b"\x20\x01" + b"\0" * 6
    assert display_name(RESTRICTED + "01020304") == "(restricted) 1.2.3.4"
    assert display_name(RESTRICTED + "01020304/5-6") == "(restricted) 1.2.3.4"
    assert display_name(RESTRICTED + "20010db800000000") == "(restricted) 2001:0db8:0000:0000::/64"
