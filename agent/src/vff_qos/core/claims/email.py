"""Placeholder until the text branch lands."""

from __future__ import annotations


def decode_email(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
