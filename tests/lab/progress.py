"""Progress for people: what is being done, for how long, on standard error."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

TTY_TICK_S = 0.5
LOG_TICK_S = 10.0  # a line every ten seconds is enough in a log file


class LabError(Exception):
    """The lab cannot go on; the message is one line for a person."""


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Show `what` with the elapsed seconds until the block ends."""
    tty = sys.stderr.isatty()
    started = time.monotonic()
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(TTY_TICK_S if tty else LOG_TICK_S):
            elapsed = f"lab: {what} ... {time.monotonic() - started:.0f} s"
            print(elapsed, end="\r" if tty else "\n", file=sys.stderr, flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    outcome = "failed after"
    try:
        yield
        outcome = "done in"
    finally:
        stop.set()
        ticker.join()
        say(f"{what}: {outcome} {time.monotonic() - started:.1f} s")
