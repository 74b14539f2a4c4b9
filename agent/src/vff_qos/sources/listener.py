"""The listening socket of the webhook: systemd's, or one of our own."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
import struct

from ..errors import SourceError

_BACKLOG = 1_024
_FIRST_INHERITED_FD = 3
_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h
#: What getsockopt() of Python takes: 256 groups.
_MAX_GROUPS_BYTES = 1_024


def open_listener(listen: str, group: str, mode: int) -> tuple[socket.socket, str]:
    """The socket that listens at ``unix:/path``, ``@name`` (abstract, see unix(7)) or
    ``127.0.0.1:port``, without blocking; and the path that is to be unlinked with it, empty if
    none.

    ``group`` and ``mode`` are given to a unix socket; an inherited one keeps its own, an abstract
    one has none (see `may_write`).  Raises SourceError if it cannot listen there.
    """
    inherited = _inherited(listen)
    if inherited is not None:
        inherited.setblocking(False)
        return inherited, ""
    path = listen[5:] if listen.startswith("unix:") else ""
    bound = False
    try:
        if is_abstract(listen):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"\0{listen[1:]}")
            listener.listen(_BACKLOG)
        elif not path:
            listener = _listen_tcp(listen)
        else:
            _remove_stale(path)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            bound = True
            if group:
                os.chown(path, -1, grp.getgrnam(group).gr_gid)
            os.chmod(path, mode)
            listener.listen(_BACKLOG)
    except KeyError as error:
        raise SourceError(f"{listen}: there is no group {group}") from error
    except OSError as error:
        hint = ""
        if bound and error.errno == errno.EPERM:
            hint = f"; the agent's user must be a member of {group}"
        raise SourceError(
            f"{listen}: cannot listen: {os.strerror(error.errno or 0)}{hint}"
        ) from error
    listener.setblocking(False)
    return listener, path


def _listen_tcp(listen: str) -> socket.socket:
    host, _colon, port = listen.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port)))
    listener.listen(_BACKLOG)
    return listener


def _remove_stale(path: str) -> None:
    """Take away the socket of a run that was killed.  Raises SourceError if it is in use."""
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SourceError(f"{path}: is not a socket; remove it or name another path")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise SourceError(f"{path}: another process listens there")


def _inherited(listen: str) -> socket.socket | None:
    """The listening socket that systemd has opened for us (sd_listen_fds(3)), if it has.

    A copy: the descriptor itself stays, for whoever listens there again.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = int(os.environ.get("LISTEN_FDS", "0"))
    for descriptor in range(_FIRST_INHERITED_FD, _FIRST_INHERITED_FD + count):
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=os.dup(descriptor))
        name = listener.getsockname()
        if listener.family == socket.AF_UNIX:
            # Names of abstract sockets are bytes.
            have = f"@{name[1:].decode()}" if isinstance(name, bytes) else f"unix:{name}"
        else:
            have = f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
        if have == listen:
            return listener
        listener.close()
    return None


def keep_inherited() -> None:
    """Before this process begins anew: what systemd has opened for us is still ours."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        count = int(os.environ.get("LISTEN_FDS", "0"))
        for descriptor in range(_FIRST_INHERITED_FD, _FIRST_INHERITED_FD + count):
            os.set_inheritable(descriptor, True)


def is_abstract(listen: str) -> bool:
    """Whether a socket has a name of unix(7) that is no file."""
    return listen.startswith("@")


def group_number(listen: str, group: str) -> int:
    """The number of the group that may write; root's where none is named.  Raises SourceError."""
    try:
        return grp.getgrnam(group).gr_gid if group else 0
    except KeyError as error:
        raise SourceError(f"{listen}: there is no group {group}") from error


def may_write(sock: socket.socket, uid: int, gid: int, group: int) -> bool:
    """Whether who has connected to an abstract socket may: it has no mode that the kernel asks, so
    that this is what ``0660`` would say.

    ``uid`` and ``gid`` are the peer's (SO_PEERCRED).
    """
    if uid == 0 or group == gid:
        return True
    try:
        groups = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        return False  # in so many groups is no engine
    return group in struct.unpack(f"={len(groups) // 4}I", groups)


def is_loopback(address: str) -> bool:
    """Whether an address is one of this host that no other host can have."""
    return address.startswith("127.") or address == "::1"
