"""What of sing-box keeps limits from holding: its stream of connections.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .findings import DEGRADED, OK, Finding


@dataclass(frozen=True)
class Answer:
    """What became of the question for connections, asked as the agent asks.

    ``secret_problem``: why the agent's account cannot have the secret; ``trouble``: why there is no
    stream; empty where all is well.
    """

    address: str
    connections: int = 0
    secret_problem: str = ""
    trouble: str = ""


def examine(answers: Iterable[Answer]) -> Iterator[Finding]:
    """A finding for each."""
    for answer in answers:
        if answer.secret_problem:
            yield Finding(
                DEGRADED, "singbox_secret",
                f"{answer.address}: sing-box cannot be asked: {answer.secret_problem}",
                "write the secret of sing-box's service 'api' there, alone, as root:vff-qos with "
                "mode 0640; it is read with the next try, within 30 s",
            )  # fmt: skip
        elif answer.trouble:
            yield Finding(
                DEGRADED, "singbox_api", f"none of its users is limited: {answer.trouble}",
                "docs/ENGINES.md (sing-box) has the configuration; the agent tries again by itself",
            )  # fmt: skip
        else:
            yield Finding(
                OK, "singbox_api",
                f"sing-box at {answer.address} tells of connections: {answer.connections} now",
            )  # fmt: skip
