"""An access log that tests write, and a clock that they move."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vff_qos.core.claims.accesslog import Claim
from vff_qos.sources.clock import Clock
from vff_qos.sources.file import FileSource

EPOCH = 1_795_000_000.0


@dataclass
class Watch:
    """A clock that stands still until somebody moves it."""

    up: float = 1_000.0
    offset: float = EPOCH

    def clock(self) -> Clock:
        return Clock(lambda: self.up + self.offset, lambda: self.up)


def line(number: int, stamp: bytes = b"2026/11/20 15:48:00.448421") -> bytes:
    return stamp + b" from 1.2.3.4:%d accepted tcp:a:1 [i -> o] email: a\n" % number


RAW = (
    b"2026/11/20 15:48:00.448421 from 9.9.9.9:9 rejected  proxy/trojan: failed to read address and "
    b"port > common/protocol: invalid domain name: a\n"
)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def port(claim: Claim) -> int:
    return int(claim.source.rpartition(b":")[2])


def read_all(source: FileSource) -> list[Claim]:
    claims = source.read()
    while source.more:
        claims += source.read()
    return claims


def ports(source: FileSource) -> list[int]:
    return [port(claim) for claim in read_all(source)]


def stopped(source: FileSource) -> Any:
    """Where to go on."""
    place = json.loads(json.dumps(source.checkpoint()))
    source.close()
    return place


def restarted(source: FileSource, log: Path, watch: Watch | None = None) -> FileSource:
    return FileSource(str(log), stopped(source), clock=watch.clock() if watch else None)
