"""What the answers of the API hold, in the words of JSON Schema.

Keys are only ever added, and so those that are not here are allowed.
"""

from __future__ import annotations

from typing import Any

from ..core.health.findings import EXIT_CODES, OK
from ..core.health.holding import KINDS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
ANY: Schema = {"type": "object"}
TIME: Schema = {"type": "number", "description": "seconds since the epoch"}


def listed(item: Schema) -> Schema:
    """A list of such things."""
    return {"type": "array", "items": item}


def known(**properties: Schema) -> Schema:
    """An object with these keys at least."""
    return {"type": "object", "required": list(properties), "properties": properties}


def or_none(schema: Schema) -> Schema:
    """Such a thing, or ``null``: there is none."""
    return {"anyOf": [schema, {"type": "null"}]}


VERDICTS = [*EXIT_CODES]
FINDING = known(
    level={"enum": sorted({*VERDICTS, OK})},
    kind=TEXT,
    sentence=TEXT,
    evidence=listed(TEXT),
    remedy=TEXT,
)
DEVICE = known(rate_bps=WHOLE, unclassified_bps=WHOLE, bytes=WHOLE, unclassified_bytes=WHOLE)
DEVICES = known(upload=DEVICE, download=DEVICE)
OVERRIDE = known(
    email=TEXT, origin=TEXT, entry=ANY, until=or_none(TIME), who=TEXT, why=TEXT, created=TIME
)
USER = known(
    **{"class": TEXT},
    email=TEXT,
    upload_bps=or_none(WHOLE),
    download_bps=or_none(WHOLE),
    flows=WHOLE,
    addresses=WHOLE,
    up_bytes=WHOLE,
    down_bytes=WHOLE,
    up_rate_bps=WHOLE,
    down_rate_bps=WHOLE,
    share=NUMBER,
    drops=WHOLE,
    held_by={"enum": sorted(KINDS)},
    minute=listed(WHOLE),
)
NOW = known(
    time=TIME,
    verdict={"enum": VERDICTS},
    reason=TEXT,
    ceil_bps=WHOLE,
    devices=DEVICES,
    connections=WHOLE,
    users=WHOLE,
    active=WHOLE,
    top=listed(USER),
)
LIVE = known(now=NOW, points=listed(listed(NUMBER)))
#: Without ``wan`` and what comes after it while nothing is set up.
STATUS = known(
    verdict={"enum": VERDICTS},
    reason=TEXT,
    findings=listed(FINDING),
    version=TEXT,
    time=TIME,
    disabled=or_none(known(who=TEXT, when=TEXT, why=TEXT)),
    suspended=FLAG,
    follower=or_none(
        known(pid=WHOLE, started=TIME, sources=listed(ANY), repairs=WHOLE, repair=ANY)
    ),
    overrides=listed(OVERRIDE),
)
STATUS["properties"] |= {
    "wan": TEXT,
    "ifb": TEXT,
    "ceil_bps": WHOLE,
    "trees": WHOLE,
    "trees_why": TEXT,
    "devices": DEVICES,
    "restricted": known(addresses=WHOLE, flows=WHOLE),
    "parked": WHOLE,
    "spare": WHOLE,
}
USERS = known(time=TIME, total=WHOLE, users=listed(USER))
SPAN = known(since=TIME, until=TIME, upload_bytes=WHOLE, download_bytes=WHOLE)
AMOUNT = known(upload_bytes=WHOLE, download_bytes=WHOLE, spans=listed(SPAN))
USAGE = known(
    since=TIME, until=TIME, by=or_none(TEXT), read=or_none(TIME), users=AMOUNT, others=AMOUNT
)
FLOW = known(
    flow=TEXT,
    mark=TEXT,
    up_bytes=or_none(WHOLE),
    down_bytes=or_none(WHOLE),
    age_s=or_none(WHOLE),
    said=listed(ANY),
    unsaid=TEXT,
)
EXPLAINED = known(
    email=TEXT,
    decided_by=TEXT,
    rule=known(kind=TEXT, name=TEXT, plan=or_none(TEXT)),
    layers=listed(known(name=TEXT, where=TEXT, gives=ANY)),
    limits=ANY,
    flows=listed(FLOW),
    holding=ANY,
    **{"class": or_none(ANY)},
)
RESTRICTED = known(
    classes=listed(known(who=TEXT, since=TIME, flows=listed(FLOW))), orders=listed(OVERRIDE)
)
EVENT = known(
    time=TIME, kind=TEXT, priority=WHOLE, title=TEXT, message=TEXT, remedy=TEXT, fields=ANY
)
EVENTS = known(events=listed(EVENT))
DIAGNOSIS = known(
    time=or_none(TIME),
    verdict={"enum": [*VERDICTS, ""]},
    reason=TEXT,
    findings=listed(FINDING),
)
ERROR = known(error=TEXT)
