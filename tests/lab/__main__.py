"""Command line of the lab: python -m lab COMMAND"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace

from . import image, node, recipe
from .labnode import Lab
from .measure import Report
from .node import Node
from .progress import LabError, say
from .users import DIRECTIONS, MBIT, USERS, User


def build(options: argparse.Namespace) -> None:
    """build the image if the cache has none"""
    print(image.ensure(options.suite).path)


def up(options: argparse.Namespace) -> None:
    """boot a node that stays until `down`"""
    lab = Lab(options.name, suite=options.suite, persistent=True)
    lab.node.up()
    try:
        if not options.bare:
            lab.start_engine()
        print(lab.node.inventory(lab.node.dir / "inventory.yml"))
    except BaseException:
        lab.node.down()
        raise


def ssh(options: argparse.Namespace) -> None:
    """run a command on the node, or a shell"""
    found = Node.attach(options.name)
    os.execvp("ssh", found.ssh_command(*options.command))


def down(options: argparse.Namespace) -> None:
    """stop the node and delete its files"""
    Node(options.name).down()


def status(_options: argparse.Namespace) -> None:
    """show images and nodes"""
    for suite in recipe.SUITES:
        path = image.image_path(suite)
        print(f"image {suite:10} {'built  ' if path.is_dir() else 'missing'} {path}")
    for found in node.nodes():
        state = f"running, pid {found.pid}" if found.alive() else "dead (prune deletes it)"
        print(f"node  {found.name:10} {state}, ssh port {found.port}")


def prune(_options: argparse.Namespace) -> None:
    """delete outdated images and files of dead nodes"""
    for path in image.prune():
        print(f"deleted {path}")
    for found in node.nodes():
        if not found.alive():
            found.down()
            print(f"deleted {found.dir}")


def rates(options: argparse.Namespace) -> None:
    """boot a node, move traffic for all users, print what they got"""
    users = [_paced(user) for user in USERS] if options.paced else list(USERS)
    with Lab(options.name, suite=options.suite) as lab:
        lab.start_engine(users)
        for direction in DIRECTIONS:
            print_report(lab.measure(direction, options.seconds))


def demo(_options: argparse.Namespace) -> None:
    """the whole demonstration: deploy, measure, kill switch, removal"""
    from .demo import demo as run

    if not run():
        raise LabError("the demo did not show what it should")


def _paced(user: User) -> User:
    """The user with sources that send as much as the larger limit allows."""
    offered = max(user.download or 0, user.upload or 0) // user.devices
    return replace(user, offered=offered or user.offered)


def print_report(report: Report) -> None:
    """A table for people."""
    heading = "user         protocol    direction  limit  measured  goodput flows  ping (idle) ms"
    print(heading)
    for m in report.measurements:
        limit = "none" if m.limit_bps is None else f"{m.limit_bps / MBIT:.0f}"
        print(
            f"{m.user.email:12} {m.user.protocol:11} {m.direction:9} {limit:>6} "
            f"{m.measured_bps / MBIT:9.2f} {m.goodput_bps / MBIT:8.2f} {m.flows:5} "
            f"{m.ping_ms:7.1f} ({m.ping_idle_ms:.1f})"
        )
    total = sum(m.measured_bps for m in report.measurements) / MBIT
    print(f"{'together':42} {total:7.2f} Mbit/s on the wire", flush=True)


COMMANDS = {"build": build, "up": up, "ssh": ssh, "down": down, "status": status}
COMMANDS |= {"prune": prune, "rates": rates, "demo": demo}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; 1 and one line on standard error if it fails."""
    parser = argparse.ArgumentParser(prog="lab", description="A lab node on this machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__)
        command.set_defaults(function=function)
        if name in ("build", "up", "rates"):
            command.add_argument("--suite", default="bookworm", choices=list(recipe.SUITES))
        if name in ("up", "ssh", "down", "rates"):
            command.add_argument("--name", default="node", help="default: node")
        if name == "up":
            command.add_argument("--bare", action="store_true", help="no clients, no engine")
        if name == "rates":
            command.add_argument("--seconds", type=float, default=15.0, help="default: 15")
            command.add_argument("--paced", action="store_true", help="sources near the limits")
        if name == "ssh":
            command.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    try:
        options.function(options)
    except LabError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
