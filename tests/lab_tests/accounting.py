"""What `vff-qos usage` has counted, against the bytes on the wire of each client's own link."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import NamedTuple

from lab import Lab, LabError, User
from lab.counters import Queues
from lab.progress import say, step
from lab.streams import ECHO, Target, connect
from lab.users import DIRECTIONS

#: Usage and wire may differ by so much.
WITHIN = 0.01
#: What each device sends, and gets back.  In such blocks, each of which waits for the one before:
#: no queue overflows, so that all that leaves a link arrives in the classes.
VOLUME, BLOCK = 1_000_000, 8_192
#: All is booked now, and shown.
_BOOK = "systemctl start vff-qos-gc.service && vff-qos usage --json"


class Moved(NamedTuple):
    """Bytes of a user since whenever."""

    download: int
    upload: int


def check(lab: Lab, users: tuple[User, ...]) -> None:
    """Move a volume in both directions; LabError if what is counted is not what was on the wire."""
    internet = lab.node.internet
    devices = [device for device in lab.devices if device.user in users]
    # The router's ports have a queue that counts; so have the other ends from now on.
    counted = (f"tc qdisc replace dev {device.uplink} root pfifo limit 10000" for device in devices)
    internet.run("clients", "\n".join(counted))
    down, up = Queues(internet.namespace("inet")), Queues(internet.namespace("clients"))

    def wire() -> dict[str, Moved]:
        sent, received = up.read(), down.read()
        return {
            user.email: Moved(
                sum(received[device.router_port] for device in devices if device.user == user),
                sum(sent[device.uplink] for device in devices if device.user == user),
            )
            for user in users
        }

    with ExitStack() as stack, step(f"moving {VOLUME / 1e6:g} MB of {len(devices)} devices"):
        stack.enter_context(closing(Target(internet, [d.target_port for d in devices])))
        pool = stack.enter_context(ThreadPoolExecutor(len(devices)))
        socks = [
            stack.enter_context(connect(internet, device.target_port, ECHO)) for device in devices
        ]

        def echo(number: int, volume: int) -> None:
            for _block in range(0, volume, BLOCK):
                socks[number].sendall(bytes(BLOCK))
                left = BLOCK
                while left:
                    if not (data := socks[number].recv(left)):
                        raise LabError(f"{devices[number].user.email}'s connection has ended")
                    left -= len(data)

        def move(volume: int) -> None:
            list(pool.map(lambda number: echo(number, volume), range(len(socks))))

        move(1)
        # What goes before is nobody's.
        lab.await_marks(len(devices))
        before, counted_before = wire(), _usage(lab, users)
        move(VOLUME)
        after, counted_after = wire(), _usage(lab, users)
    wrong = []
    for user in users:
        for direction in DIRECTIONS:
            was, is_, had, has = (
                getattr(one[user.email], direction)
                for one in (before, after, counted_before, counted_after)
            )
            off = (has - had) / (is_ - was) - 1
            text = (
                f"{user.email} {direction}: {is_ - was} bytes on the wire, {has - had} counted "
                f"({off:+.2%})"
            )
            say(text)
            if abs(off) > WITHIN:
                wrong.append(text)
    if wrong:
        raise LabError("usage is not what was on the wire:\n" + "\n".join(wrong))


def _usage(lab: Lab, users: tuple[User, ...]) -> dict[str, Moved]:
    found = {user.email: Moved(0, 0) for user in users}  # until something was counted
    for one in json.loads(lab.node.ssh(_BOOK))["users"]:
        found[one["email"]] = Moved(one["download_bytes"], one["upload_bytes"])
    return found
