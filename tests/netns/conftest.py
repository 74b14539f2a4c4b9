"""Every test here gets a network namespace of its own, with conntrack switched on."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import vff_qos
from vff_qos.core.plan import plan as planner
from vff_qos.core.plan.desired import desired as desired_objects
from vff_qos.core.plan.objects import Filter, KernelObject
from vff_qos.core.settings import Settings
from vff_qos.kernel.packed.flow_events import FlowEvents
from vff_qos.kernel.packed.nft_elements import StaticMaps

from .containers import Host
from .customers import Site
from .harness import (
    CLONE_NEWNET,
    LIBC,
    SETTINGS,
    Network,
    Node,
    missing_filters,
    run,
)
from .hostile import Scene
from .peer import Peer, ends_of
from .trees import TRACK, make_trees

# Commands run from the checkout, as the imports do.
_AGENT = os.path.dirname(os.path.dirname(vff_qos.__file__))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_AGENT, os.environ.get("PYTHONPATH"))))


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Move this process into a new namespace; children follow."""
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if LIBC.unshare(CLONE_NEWNET) != 0:
        pytest.skip(f"unshare: {os.strerror(ctypes.get_errno())}")
    try:
        run("ip", "link", "set", "lo", "up")
        run("nft", "-f", "-", stdin=TRACK)
        yield
    finally:
        assert LIBC.setns(home, CLONE_NEWNET) == 0
        os.close(home)


@pytest.fixture
def trees() -> tuple[str, str]:
    """Two devices with the HTB trees that bootstrap makes (names of IFB and WAN).

    Leaves are pfifo and nothing classifies: kernels without fq_codel and cls_fw run this, too.
    """
    return make_trees()


@pytest.fixture
def node(tmp_path: Path, trees: tuple[str, str]) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def site(node: Node) -> Iterator[Site]:
    """Customers of a node whose agent runs and whose nft table is there."""
    made = Site(node)
    node.make_table()
    node.start()
    yield made
    made.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    for container in made.containers:
        container.kill()


@pytest.fixture
def net(namespace: None) -> Iterator[Network]:
    network = Network()
    yield network
    network.close()


@pytest.fixture(params=[False, True], ids=["whole", "split"])
def settings(
    request: pytest.FixtureRequest, net: Network, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Settings; in a kernel without our filters, plans are made without them."""
    if missing_filters():
        complete = desired_objects

        def desired(
            settings: Settings, wan: str, mtu: int, queues: int | None
        ) -> list[KernelObject]:
            return [o for o in complete(settings, wan, mtu, queues) if not isinstance(o, Filter)]

        monkeypatch.setattr(planner, "desired", desired)
    return replace(SETTINGS, split=request.param)


@pytest.fixture
def scene(tmp_path: Path, trees: tuple[str, str]) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.assigner.close()


@pytest.fixture
def full(net: Network) -> Settings:
    """Settings for tests that cannot do without filters."""
    if missing := missing_filters():
        pytest.skip(f"this kernel lacks: {missing}")
    return SETTINGS


@pytest.fixture
def maps() -> Iterator[StaticMaps]:
    made = StaticMaps()
    yield made
    made.close()


@pytest.fixture
def peer(namespace: None) -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


@pytest.fixture
def events(peer: Peer) -> Iterator[FlowEvents]:
    made = FlowEvents(ends_of())
    assert made.filtered
    yield made
    made.close()
