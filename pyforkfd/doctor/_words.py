"""Descriptors described in words."""

from __future__ import annotations

import socket

from pyforkfd._fd_details import Address, EpollDetails, EventfdDetails, PidfdDetails, SocketDetails
from pyforkfd._fd_table import FdInfo
from pyforkfd._tables import printable

_FAMILIES: dict[int, str] = {
    socket.AF_UNIX: "UNIX",
    socket.AF_NETLINK: "netlink",
    socket.AF_PACKET: "packet",
    socket.AF_VSOCK: "vsock",
}
_PROTOCOLS: dict[int, str] = {
    socket.IPPROTO_TCP: "TCP",
    socket.IPPROTO_UDP: "UDP",
    socket.IPPROTO_SCTP: "SCTP",
    262: "MPTCP",
}
_TYPES: dict[int, str] = {
    socket.SOCK_STREAM: "stream",
    socket.SOCK_DGRAM: "datagram",
    socket.SOCK_SEQPACKET: "seqpacket",
    socket.SOCK_RAW: "raw",
}


def describe(row: FdInfo) -> str:
    """Describe the file of a descriptor: ``TCP 127.0.0.1:80, listening, 0 of 128 waiting``."""
    return printable(_words(row))


def _words(row: FdInfo) -> str:
    known = row.details
    if isinstance(known, SocketDetails):
        return _socket(known)
    if isinstance(known, EpollDetails):
        return f"epoll, watches {len(known.watches)}"
    if isinstance(known, EventfdDetails):
        return f"eventfd, count {known.count}"
    if isinstance(known, PidfdDetails):
        return f"pidfd of process {known.pid}" if known.pid > 0 else "pidfd of an ended process"
    named = row.kind in ("file", "directory", "tty") or row.target.startswith(row.kind)
    return row.target if named else f"{row.kind} {row.target}"


def _socket(known: SocketDetails) -> str:
    name = _PROTOCOLS.get(known.protocol)
    if known.family not in (socket.AF_INET, socket.AF_INET6) or name is None:
        family = _FAMILIES.get(known.family) or getattr(known.family, "name", str(known.family))
        kind = _TYPES.get(known.type) or getattr(known.type, "name", str(known.type))
        name = f"{family} {kind}"
    if known.local:
        name += f" {_address(known.local)}"
    if known.listening:
        name += ", listening"
        if known.backlog is not None:
            name += f", {known.waiting} of {known.backlog} waiting"
    elif known.peer is not None:
        name += f", connected to {_address(known.peer) or 'a nameless peer'}"
    return name


def _address(address: Address) -> str:
    if isinstance(address, bytes):
        return "@" + address[1:].decode(errors="backslashreplace")
    if isinstance(address, str):
        return address
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
