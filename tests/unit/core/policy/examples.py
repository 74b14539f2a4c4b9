"""A policy and terms of use that several tests start from."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from vff_qos.core.document import Document
from vff_qos.core.policy.terms import Terms, parse_terms

POLICY = b"""
default: {plan: basic}
plans:
  basic: {upload: 10mbit, download: 20mbit}
  pro: {upload: 50mbit, download: 100 Mbps, guaranteed: 5mbit, weight: 4, burst: 64kb, leaf: cake}
  100: {download: 100mbit}
  locked: {blocked: true}
match:
  - {pattern: "*.trial", plan: basic, download: 1mbit}
  - {pattern: "1[0-9].*", plan: pro}
  - {pattern: "*.trial.old", blocked: true}
users:
  a@x: {plan: pro, upload: 5mbit}
  b@x: {unlimited: true}
  c@x: {plan: pro, blocked: true}
  d@x: {plan: locked}
  e@x: {plan: locked, blocked: false}
  f@x: {plan: 100}
  12: {upload: 7mbit}
  x.trial: {upload: 3mbit}
"""


GB, HOUR, MINUTE = 10**9, 3600.0, 60.0


def terms(text: str) -> Terms:
    """Terms from YAML, where ``slow`` and ``crawl`` are plans."""
    doc = Document(text.encode(), "policy.yml")
    return parse_terms(doc, (), doc.data, ("slow", "crawl"))


BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: ZoneInfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


START = datetime(2026, 11, 2, 12, 0, tzinfo=BERLIN).timestamp()
