"""Which line said whose a flow is, and when: looked up in the source of claims when it is asked.

The agent keeps no text.  A file, a container's log or the journal still has it, and is read here as
the agent reads it: the same grammar, the same taint.  A webhook leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..core.claims.accesslog import TORN, Claim, spellings_of
from ..core.claims.email import decode_email
from ..core.health.report import TEXT
from ..core.settings import Settings, identity_of
from ..core.source_settings import SourceSettings
from ..errors import SourceError
from ..sources import open_source

#: So many different words on one flow are kept, the latest.
_WORDS = 4


class Said(NamedTuple):
    """Words on flows by their clients' packed ends; ``problem``: why there are none."""

    words: dict[bytes, list[Claim]]
    problem: str = ""


def look_up(settings: Settings, clients: Iterable[bytes], deep: bool) -> Said:
    """What the source's latest text says of some flows.

    That is 4 MiB of a file (64 MiB if ``deep``), or 16,384 entries of the journal (262,144).
    """
    wanted = {text: client for client in clients for text in spellings_of(client)}
    found: dict[bytes, list[Claim]] = {}
    if not wanted:
        return Said(found)
    texts = [source for source in settings.sources if source.trust == TEXT]
    problems = [
        problem for one in texts if (problem := _search(settings, one, wanted, found, deep))
    ]
    told = [source for source in settings.sources if source.trust != TEXT]
    if told:
        types = " or ".join(dict.fromkeys(source.type for source in told))
        problems.append(f"the engine told it by the {types}, which leaves no line behind")
    return Said(found, "; ".join(problems))


def _search(
    settings: Settings,
    one: SourceSettings,
    wanted: dict[bytes, bytes],
    found: dict[bytes, list[Claim]],
    deep: bool,
) -> str:
    """Add what one source says; returns why it says nothing, if it cannot be read."""
    try:
        source = open_source(one, None, 0.0 if deep else None)
    except SourceError as error:
        return str(error)
    try:
        while True:
            claims = source.read()
            for claim in claims:
                if claim.source in wanted:
                    if claim.email:
                        # As the agent calls whoever is named.
                        email = identity_of(settings, one, claim.email)
                        claim = claim._replace(email=email)  # noqa: PLW2901
                    _remember(found.setdefault(wanted[claim.source], []), claim)
            if not claims and not source.more:
                return source.waiting
    except SourceError as error:
        return str(error)
    finally:
        source.close()


def _remember(words: list[Claim], claim: Claim) -> None:
    """Of equal words the latest."""
    kind = claim.email, claim.tainted
    words[:] = [*(word for word in words if (word.email, word.tainted) != kind), claim][-_WORDS:]


def as_json(words: list[Claim]) -> list[dict[str, Any]]:
    """What was said of one flow, the latest last.

    ``when`` is the engine's own stamp; ``email`` is empty where the line names nobody, None where
    it does not parse to its end.
    """
    return [
        {
            "when": word.time.decode(),
            "source": word.source.decode(),
            "detour": decode_email(word.detour),
            "email": None if word.email is None else decode_email(word.email),
            "tainted": word.tainted and word.author != TORN,
            "torn": word.author == TORN,
            "author": word.author.decode() if word.tainted and word.author != TORN else "",
        }
        for word in words
    ]


def describe(word: dict[str, Any]) -> str:
    """One word, for people."""
    line = f"the line of {word['when']}"
    if word["torn"]:
        return f"{line} lacks its end, as a full disk leaves it: it names nobody, the next counts"
    if word["email"] is None:
        return f"{line} does not parse to its end: somebody may have moved bytes there"
    if not word["email"]:
        return f"{line} names no user"
    if word["tainted"]:
        by = "" if word["author"] == "?" else f", from {word['author']}"
        return f"{line} names {word['email']} within reach of text that a stranger wrote{by}"
    return f"{line} names {word['email']}"


def why_restricted(words: list[dict[str, Any]]) -> str:
    """Why a flow is in doubt, as far as its lines tell; empty if they do not."""
    doubted = [w for w in words if w["tainted"] or w["email"] is None]
    named = {w["email"] for w in words if w["email"] and not w["tainted"]}
    if len(named) > 1:
        return f"two users are named for it: {'; '.join(describe(w) for w in words)}"
    return describe(doubted[-1]) if doubted else ""
