"""The state of a listening socket that all processes which have it share: checked, restored."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pyforkfd import _core

_SO_DETACH_FILTER, _SO_BINDTOIFINDEX = 27, 62  # asm-generic/socket.h
_IP_MINTTL, _IPV6_MINHOPCOUNT = 21, 73  # linux/in.h, linux/in6.h
# Options by which the kernel withholds connections or datagrams, and that no server sets on a
# listener that it was passed.
_OPTIONS = (
    (socket.SOL_SOCKET, _SO_BINDTOIFINDEX, "SO_BINDTOIFINDEX"),
    (socket.IPPROTO_IP, _IP_MINTTL, "IP_MINTTL"),
    (socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, "IPV6_MINHOPCOUNT"),
)
_INTERNET = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Good:
    """The state that a socket is to have, as it had it before a worker did.

    Attributes:
        address: that it is bound to.
        listens: whether it is of a type that has connections.
        inode: of its path; None: it has none.
        options: name -> value.
    """

    address: Any
    listens: bool
    inode: int | None
    options: Mapping[str, int]

    @classmethod
    def of(cls, sock: socket.socket) -> Good:
        """Take the present state of a socket for the good one."""
        listens = sock.type in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
        address, inode = sock.getsockname(), None
        if sock.family == socket.AF_UNIX and isinstance(address, str) and address:
            with suppress(OSError):
                inode = os.stat(address).st_ino
        return cls(address=address, listens=listens, inode=inode, options=_options(sock))


def _options(sock: socket.socket) -> dict[str, int]:
    found = {}
    for level, option, name in _OPTIONS:
        try:
            found[name] = sock.getsockopt(level, option)
        except OSError:
            continue  # not of this kind of socket, or a kernel without it
    return found


def find_damage(sock: socket.socket, good: Good) -> str:
    """Find what a process that has a socket has done to it.

    A filter is not only found, but detached.

    Args:
        sock: the socket.
        good: the state that it is to have.

    Returns:
        Words that follow the name of the listener; empty: nothing was done to it.
    """
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    shut = any(events & (select.POLLRDHUP | select.POLLHUP) for _, events in poll.poll(0))
    if good.listens and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen any more: shut down" if shut else "was connected: does not listen"
    if shut:
        return "was shut down"
    if (address := sock.getsockname()) != good.address:
        return f"is bound to {address!r}, not {good.address!r}"
    if not good.listens and _is_connected(sock):
        return "was connected: takes datagrams of one sender only"
    for name, value in _options(sock).items():
        if value != good.options.get(name, value):
            return f"has {name}={value}, not {good.options[name]}"
    if good.listens and sock.family not in _INTERNET:
        return ""  # a connection is no data that passes a filter
    return _detach_filter(sock)


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _detach_filter(sock: socket.socket) -> str:
    """Detach a filter, which could drop everything; only the kernel can tell if there is one."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    except OSError as error:
        return "has a locked filter" if error.errno == errno.EPERM else ""  # ENOENT: none
    return "had a filter"


def restore(sock: socket.socket, good: Good, backlog: int) -> None:
    """Restore the state of a socket; connections that waited to be accepted are lost.

    Args:
        sock: the socket.
        good: the state that it is to have.
        backlog: for listen(2).

    Raises:
        OSError: that is impossible: the socket was shut down and is no TCP socket, its filter
            is locked, its port is taken.
    """
    if sock.family in _INTERNET:
        _rebind(sock, good)
    if good.listens:
        sock.listen(backlog)
    for level, option, name in _OPTIONS:
        if name in good.options and sock.getsockopt(level, option) != good.options[name]:
            sock.setsockopt(level, option, good.options[name])
    if damage := find_damage(sock, good):
        raise OSError(errno.EINVAL, f"it {damage}")


def _rebind(sock: socket.socket, good: Good) -> None:
    listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not listening or sock.getsockname() != good.address:
        _core.disconnect(sock.fileno())
    if listening and sock.getsockname() == good.address:
        return
    try:
        # A port that the kernel chose is given back with the connection or the backlog.
        sock.bind(good.address)
    except OSError as error:
        if error.errno != errno.EINVAL:  # bound already
            raise
