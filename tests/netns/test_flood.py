"""A million lines of nonsense and malice: no crash, no wrong mark, bounded memory."""

from __future__ import annotations

import random
import resource

import pytest

from checkout import SAMPLES

from .harness import run
from .hostile import AWAY, FORMATS, STAMP, VLESS, Scene, text, true_line

LINES = 1_000_000
_BLOCK = 5_000
REAL_LINES = [
    line
    for path in sorted(SAMPLES.glob("*.log"))
    for line in path.read_bytes().splitlines(keepends=True)
]


def _mutated(source: random.Random) -> bytes:
    """A real line with a few bytes replaced, removed, doubled or cut off."""
    line = bytearray(source.choice(REAL_LINES))
    for _ in range(source.randrange(4)):
        at = source.randrange(len(line))
        what = source.randrange(4)
        if what == 0:
            line[at] = source.randrange(256)
        elif what == 1:
            del line[at : at + source.randrange(8)]
        elif what == 2:
            line[at:at] = line[: source.randrange(len(line))][:2048]
        else:
            del line[at:]
        line = line or bytearray(b"\n")
    return bytes(line) if line.endswith(b"\n") else bytes(line) + b"\n"


def _malicious(source: random.Random, victim: bytes) -> bytes:
    """A name that holds a forged line, in the format of an inbound that prints it."""
    email = source.choice([b"attacker@x", b"victim@x", b"u%d@x" % source.randrange(10**6)])
    forged = STAMP + b" from " + victim + b" accepted tcp:b:1 [in >> out] email: " + email + b"\n"
    kind = source.choice(["trojan", "shadowsocks", "dnsLog"])
    return FORMATS[kind][1] % (b"192.0.2.1:1", b"a\n" + forged) + b"tail\n"


def _block(source: random.Random, victims: list[bytes]) -> bytes:
    lines: list[bytes] = []
    while len(lines) < _BLOCK:
        kind = source.random()
        if kind < 0.5:
            lines.append(_mutated(source))
        elif kind < 0.75:
            lines.append(source.randbytes(source.randrange(120)).replace(b"\n", b" ") + b"\n")
        else:
            lines.append(_malicious(source, source.choice(victims)))
    return b"".join(lines)


def test_a_million_hostile_lines_change_nothing(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    source = random.Random(20261120)
    honest = [scene.open(AWAY, VLESS) for _ in range(50)]
    scene.feed(*(true_line(flow, b"user%d@x" % n) for n, flow in enumerate(honest)))
    before = scene.marks(*honest)
    assert len(set(before)) == len(honest)
    victims = [text(flow) for flow in honest]
    scene.scanner.counters.lines = 0
    capsys.readouterr()
    memory_kib = 0
    while scene.scanner.counters.lines < LINES:
        scene.feed(_block(source, victims))
        pass
        if not memory_kib and scene.scanner.counters.lines > LINES // 5:
            memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert scene.marks(*honest) == before
    assert scene.marks(scene.far, scene.near) == scene.victims
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kib < 8 * 1024
    # The scene's clock stands still: one entry of each kind at the most.
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len({line[-40:] for line in told}) <= 5, told
    # Nobody who was only named in forged lines got a class.
    shown = run("tc", "class", "show", "dev", "wan0").count("parent 5100:1 ")
    assert shown <= len(honest) + 4
