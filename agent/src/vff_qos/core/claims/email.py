"""A user's name: from the bytes of a log to the text that all else uses."""

from __future__ import annotations

#: An email is a label that the operator chose: longer ones are in no log and no policy.
MAX_EMAIL_BYTES = 320
#: Stands for bytes that are no text, followed by each of them in two hex digits.
_MARK = "\ufffd"
_MARK_BYTES = _MARK.encode()


#: How names of other kinds of identity begin (`core.identities`), and what keeps an engine's own
#: name that begins so apart from them.
KINDS = (b"service:", b"network:", b"xray:")
_ENGINE = b"xray:"


def qualified(raw: bytes, kinds: tuple[bytes, ...] = KINDS) -> bytes:
    """The identity that an engine's name is: itself, unless it would be one of another kind.

    ``kinds`` are `KINDS`, and how names of other sources begin.
    """
    return _ENGINE + raw if raw.startswith(kinds) else raw


def decode_email(raw: bytes) -> str:
    """The text of a name; different bytes are different texts.

    UTF-8 without U+FFFD is itself.  A byte that is part of no character, and each byte of a
    U+FFFD, becomes U+FFFD and two hex digits, so that names in other encodings share no class.
    """
    if raw.isascii():
        return raw.decode()
    if _MARK_BYTES not in raw:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            pass  # below
    # "surrogateescape" turns just the bytes that are no UTF-8 into U+DC80 to U+DCFF.
    return "".join(map(_spell, raw.decode("utf-8", "surrogateescape")))


def _spell(character: str) -> str:
    if character == _MARK:
        return "".join(f"{_MARK}{byte:02x}" for byte in _MARK_BYTES)
    if "\udc80" <= character <= "\udcff":
        return f"{_MARK}{ord(character) & 0xFF:02x}"
    return character
