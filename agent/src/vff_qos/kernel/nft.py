"""Our nft table through libnftables' JSON (package python3-nftables of the distribution)."""

from __future__ import annotations

import errno
import struct
from typing import Any

import nftables

from ..core.plan.layout import TABLE
from ..errors import KernelRefused
from .packed.netlink import HEADER, NETLINK_NETFILTER, NLM_F_REQUEST, Netlink, attr, attrs

# include/uapi/linux/netfilter/nf_tables.h
_GETTABLE = 10 << 8 | 1
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_NFGENMSG = struct.Struct(">BBH")  # family, version, res_id
_NFPROTO_INET = 1
_NAME = {"family": "inet", "name": TABLE}


def _run(commands: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    nft = nftables.Nftables()
    nft.set_json_output(True)
    # Elements of maps are the agent's, and many.
    nft.set_terse_output(True)
    code, output, error = nft.json_cmd({"nftables": commands})
    if code:
        # libnftables tells the errno only in words.
        number = errno.EPERM if "not permitted" in error else errno.EINVAL
        raise KernelRefused(number, f"{what} ({' '.join(error.split())[:200]})")
    return output["nftables"] if isinstance(output, dict) else []


def _flags() -> int | None:
    """Flags of our table; None if there is no table.

    Asked of the kernel: libnftables 1.0.6 reads freed memory and may abort when it lists a table
    with flags as JSON, ours (dormant) or somebody else's (firewalld sets ``owner``).
    """
    body = _NFGENMSG.pack(_NFPROTO_INET, 0, 0) + attr(_TABLE_NAME, TABLE.encode() + b"\0")
    netlink = Netlink(NETLINK_NETFILTER)
    try:
        errors, replies = netlink.batch(
            [lambda seq: HEADER.pack(16 + len(body), _GETTABLE, NLM_F_REQUEST, seq, 0) + body]
        )
    finally:
        netlink.close()
    if errors.get(0) == errno.ENOENT:
        return None
    if errors:
        raise KernelRefused(errors[0], f"reading nft table inet {TABLE}")
    payload = replies[0].payload
    found = {number: payload[a:b] for number, a, b in attrs(payload, _NFGENMSG.size)}
    return int.from_bytes(found.get(_TABLE_FLAGS, b""), "big")


def read_table() -> list[dict[str, Any]] | None:
    """Everything in our table as libnftables lists it; None if there is no table."""
    flags = _flags()
    if flags is None:
        return None
    if flags:
        return [{"table": {**_NAME, "flags": flags}}]
    return _run([{"list": {"table": _NAME}}], f"reading nft table inet {TABLE}")


def replace_table(objects: list[dict[str, Any]]) -> None:
    """Make the table anew, in one transaction: packets see the old or the new one."""
    commands = [{"add": {"table": _NAME}}, {"delete": {"table": _NAME}}]
    _run(commands + [{"add": item} for item in objects], f"writing nft table inet {TABLE}")


def delete_table() -> None:
    """Delete the table; no error if it is gone."""
    commands = [{"add": {"table": _NAME}}, {"delete": {"table": _NAME}}]
    _run(commands, f"removing nft table inet {TABLE}")
