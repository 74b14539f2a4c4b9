"""What needs a lab node: the way of a packet, fair shares, round trips, the engine's limits."""

from __future__ import annotations

import json

from lab import Lab, LabError, Node, User, operate, role_variables
from lab.labnode import GUEST
from lab.trials import TRIAL_USERS, accuracy, easily_full, fairness, latency, trial_variables
from lab.users import DIRECTIONS, MBIT

from .rows import Report

ROOT = operate.ROOT
OUT = ROOT / "build" / "bench"
_USERS = (1, 1_000, 10_000)
_PEER_USERS = 1_000
#: What the emulated node moves through the engine: (bit/s, transports).
_SWEEP = ((1 * MBIT, ("tcp", "udp")), (5 * MBIT, ("tcp", "udp")), (20 * MBIT, ("tcp",)))
#: Of two trees, all at once; the node moves them with processor to spare.
_TREES = tuple(
    User(f"{name}@lab", "vless", down * MBIT, up * MBIT, offered=3 * down * MBIT)
    for name, down, up in (("one", 4, 2), ("two", 3, 3), ("three", 2, 2), ("four", 3, 2))
)


def measure(report: Report, quick: bool) -> None:
    """All of it, on three nodes, one after the other."""
    with Node("bench-datapath", counted=True) as node:
        datapath(report, node, rounds=3 if quick else 5)
    with Lab("bench") as lab:
        lab.start_engine(TRIAL_USERS)
        report.progress("deploying with the playbook")
        inventory = operate.inventory(lab.node, OUT / "inventory", trial_variables())
        operate.make("qos", inventory)
        shares(report, lab)
        round_trips(report, lab, runs=1 if quick else 3)
        if not quick:
            sweep(report, lab)
    with Lab(node=Node("bench-trees", queues=2)) as lab:
        two_trees(report, lab)


def datapath(report: Report, node: Node, rounds: int) -> None:
    """Packets through the tree by number of users, and against one filter for each user.

    Per 10^9 instructions, which are a second of the node's clock: caches have no part in it.
    """
    report.progress("packages for the agent's code on the node")
    node.ssh("DEBIAN_FRONTEND=noninteractive apt-get -qq -y install python3-yaml python3-nftables")
    node.put(ROOT / "agent" / "src", "/opt/lab/agent")
    (pyroute2,) = (ROOT / "roles" / "qos" / "files" / "wheels").glob("pyroute2-*.whl")
    node.put(pyroute2, "/opt/lab/pyroute2.zip")
    node.put(GUEST / "datapath.py", "/opt/lab/datapath.py")
    report.progress(f"trees of {', '.join(map(str, _USERS))} users (some minutes)")
    job = {"users": _USERS, "peer_users": _PEER_USERS, "rounds": rounds, "packets": 20_000}
    done = node.run(
        "PYTHONPATH=/opt/lab/agent:/opt/lab/pyroute2.zip /usr/bin/python3 /opt/lab/datapath.py",
        stdin=json.dumps(job),
        timeout_s=1_200,
    )
    for senders, cases in json.loads(done.stdout).items():
        # Of each round, against the case of one user in the same round.
        one = cases["1 users"]
        names = {f"{users} users": f"users_{users}" for users in _USERS}
        names |= {"no shaping": "none", "one filter per user": f"peer_{_PEER_USERS}"}
        names["1 user who borrows"] = "users_1_borrows"
        names["1 user of two trees"] = "users_1_trees_2"
        # What a node has before us, with the hook that marks; "none" is without it, too.
        names |= {f"{qdisc} root": qdisc for qdisc in ("noqueue", "fq_codel", "fq")}
        for case, rates in cases.items():
            name = f"{senders}.{names[case]}"
            report.add(f"datapath.packets.{name}", rates, "per 1e9 i", counted=True)
            taken = [1e9 / rate for rate in rates]
            report.add(f"datapath.instructions.{name}", taken, "i", counted=True)
            if case != "1 users":
                ratios = [rate / base for rate, base in zip(rates, one, strict=True)]
                report.add(f"datapath.ratio.{name}", ratios, "x", counted=True)
    ours, peer = f"users_{_PEER_USERS}", f"peer_{_PEER_USERS}"
    # Of packets of all users: the first user's filter is found at once.
    report.ratio(
        f"datapath.peer_ratio.{ours}",
        f"datapath.packets.all.{ours}",
        f"datapath.packets.all.{peer}",
    )


def shares(report: Report, lab: Lab) -> None:
    """Ten users with 1 to 32 flows each fill the node."""
    with easily_full(lab):
        for direction in DIRECTIONS:
            report.progress(f"10 users fill the node, {direction}")
            result = fairness(lab, direction)
            report.add(f"fairness.worst_pct.{direction}", [result.worst_pct], "%")
            report.add(f"fairness.weight_ratio.{direction}", [result.weight_ratio], "x")
            report.add(f"fairness.alone_bps.{direction}", [result.alone_bps], "bit/s")


def round_trips(report: Report, lab: Lab, runs: int) -> None:
    """What load adds to a user's round trips, and what of it is not the node's emulation."""
    for direction in DIRECTIONS:
        report.progress(f"round trips under load, {direction}")
        results = [latency(lab, direction) for _ in range(runs)]
        for name, seen in zip(("own_load", "neighbour"), zip(*results, strict=True), strict=True):
            report.add(f"latency.{name}_ms.{direction}", [r.load_ms for r in seen], "ms")
            report.add(f"latency.{name}_queue_ms.{direction}", [r.queue_ms for r in seen], "ms")


def sweep(report: Report, lab: Lab) -> None:
    """Limits as users of the real engine meet them; accuracy.py has the rates beyond emulation."""
    for direction in DIRECTIONS:
        errors = []
        for rate_bps, transports in _SWEEP:
            for transport in transports:
                report.progress(f"{direction}, {transport}, {rate_bps // MBIT} Mbit/s")
                for flows in (1, 32) if transport == "tcp" else (1,):
                    point = accuracy(lab, rate_bps, direction, transport, flows)
                    errors.append(abs(point["error_pct"]))
        report.add(f"accuracy.engine_error_pct.{direction}", errors, "%")


def two_trees(report: Report, lab: Lab) -> None:
    """Limits of users on different queues, all at once."""
    report.progress("a node with two queues and a tree for each")
    lab.start_engine(_TREES)
    variables = {"qos_trees": "auto", "qos_wan_ceil": "10gbit"}
    inventory = operate.inventory(
        lab.node, OUT / "inventory-trees", role_variables(_TREES) | variables
    )
    operate.make("qos", inventory)
    for direction in DIRECTIONS:
        seen = lab.measure(direction, users=_TREES).measurements
        errors = [abs(one.error_pct) for one in seen if one.error_pct is not None]
        report.add(f"trees.engine_error_pct.{direction}", errors, "%")
    told = json.loads(lab.node.ssh("vff-qos status --json"))["users"]
    if len({user["class"].partition(":")[0] for user in told}) != 2:
        raise LabError(f"users are not in two trees: {[user['class'] for user in told]}")
