"""Names that are no UTF-8."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from vff_qos.core.claims.email import decode_email, qualified

RAW = st.one_of(
    st.binary(max_size=12),
    st.lists(st.sampled_from([b"\xff", b"ff", b"\xef\xbf\xbd", b"\xef", b"\xbf\xbd", b"\xbd", b"e",
                              "é".encode(), b"\xed\xa0\x80"]), max_size=6).map(b"".join),
)  # fmt: skip


@given(one=RAW, other=RAW)
def test_different_names_never_share_a_text(one: bytes, other: bytes) -> None:
    assume(one != other)
    assert decode_email(one) != decode_email(other)
    decode_email(one).encode("utf-8")


@given(name=st.text(max_size=20))
def test_a_name_in_utf_8_is_itself(name: str) -> None:
    assume("\ufffd" not in name and not any("\ud800" <= c <= "\udfff" for c in name))
    assert decode_email(name.encode()) == name


def test_names_in_other_encodings_stay_apart() -> None:
    russian = [name.encode("koi8-r") for name in ("иван", "петр")]
    assert decode_email(russian[0]) == "\ufffdc9\ufffdd7\ufffdc1\ufffdce"
    assert decode_email(b"\xef\xbf\xbd") == "\ufffdef\ufffdbf\ufffdbd"
    assert decode_email(russian[0]) != decode_email(russian[1])


@given(one=RAW, other=RAW, kinds=st.lists(st.sampled_from([b"xray:", b"service:", b"network:"])))
def test_no_name_of_an_engine_is_another_kind_of_identity(
    one: bytes, other: bytes, kinds: list[bytes]
) -> None:
    """Whoever may choose names must not get a service's class by it, nor another's name."""
    named = b"".join(kinds) + one
    assert not qualified(named).startswith((b"service:", b"network:"))
    assert (qualified(named) == qualified(other)) == (named == other)
    if not kinds and not one.startswith((b"xray:", b"service:", b"network:")):
        assert qualified(one) is one
