"""A WireGuard between a device and the node: the kernel's there, Debian's wireguard-go here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import TracebackType

from . import network
from .labnode import Lab
from .node import die_with_parent
from .progress import LabError, step
from .recipe import HERE
from .users import Device

NODE, PEER, PREFIX = "10.66.0.1", "10.66.0.2", 24
_DEVICE, _PEER_DEVICE, _TOOL = "wg-lab", "wg-peer", "/opt/lab/wg"
#: Of the peer's datagrams, which take the device's link by it.
_MARK = 66
_PATIENCE_S = 20.0


class WireGuard:
    """A tunnel by a device's link, until the block ends; the node is `NODE` within."""

    def __init__(self, lab: Lab, device: Device, port: int) -> None:
        """The node listens at ``port``.  LabError where the programs are not installed."""
        for program in ("wireguard-go", "wg"):
            if shutil.which(program) is None:
                raise LabError(
                    f"{program} is missing: install the packages in {HERE / 'packages.txt'}"
                )
        self._lab, self._device, self._port = lab, device, port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> WireGuard:
        try:
            with step("starting WireGuard"):
                self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _start(self) -> None:
        node, internet = self._lab.node, self._lab.node.internet
        (ours, our_public), (theirs, their_public) = _keys(), _keys()
        node.put(Path(shutil.which("wg") or "wg"), _TOOL)
        node.ssh(
            f"""set -e; chmod 755 {_TOOL}; ip link add {_DEVICE} type wireguard
echo {theirs} | {_TOOL} set {_DEVICE} listen-port {self._port} private-key /dev/stdin \
    peer {our_public} allowed-ips {PEER}/32
ip address add {NODE}/{PREFIX} dev {_DEVICE}; ip link set {_DEVICE} up"""
        )
        self._process = subprocess.Popen(
            ["nsenter", f"--net={internet.namespace('clients')}", "--"]
            + ["wireguard-go", "--foreground", _PEER_DEVICE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent(),
        )
        device = self._device
        internet.run(
            "clients",
            f"""timeout {_PATIENCE_S:.0f} sh -c 'until wg show {_PEER_DEVICE}; do sleep 0.1; done'
echo {ours} | wg set {_PEER_DEVICE} fwmark {_MARK} private-key /dev/stdin \
    peer {their_public} endpoint {network.NODE_IPV4}:{self._port} allowed-ips {NODE}/32
ip address add {PEER}/{PREFIX} dev {_PEER_DEVICE}; ip link set {_PEER_DEVICE} up
ip rule add fwmark {_MARK} table {_MARK}
ip route add default via {device.ipv4_router} dev {device.uplink} table {_MARK}""",
        )

    def _stop(self) -> None:
        internet = self._lab.node.internet
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            internet.run(
                "clients",
                f"ip rule del fwmark {_MARK} table {_MARK}; ip route flush table {_MARK}",
            )
        self._lab.node.ssh(f"ip link del {_DEVICE}; rm -f {_TOOL}")


def _keys() -> tuple[str, str]:
    """A private key and its public one."""
    private = _wg("genkey")
    return private, _wg("pubkey", private)


def _wg(what: str, given: str = "") -> str:
    done = subprocess.run(["wg", what], input=given, capture_output=True, text=True, check=True)
    return done.stdout.strip()
