"""SOCK_SEQPACKET sockets: checked, connected, made to listen, waited for."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from . import _core
from ._errors import ChannelError
from ._listeners import borrowed_socket, describe_socket, unix_listener
from ._types import StrPath


def demand_connection(fd: int) -> None:
    """Raise a ChannelError unless a socket is a connected one; make it close-on-exec."""
    found = borrowed_socket(fd, ChannelError)
    try:
        what = describe_socket(found)
        if (found.family, found.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            raise ChannelError(errno.EPROTOTYPE, fd, f"is {what}, not a Unix seqpacket socket")
        if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ChannelError(errno.EINVAL, fd, f"is {what} but listens: accept() from it")
        try:
            found.getpeername()
        except OSError:
            raise ChannelError(errno.ENOTCONN, fd, f"is {what} but not connected") from None
        found.set_inheritable(False)
    finally:
        found.detach()


def connect(sock: socket.socket, address: bytes, timeout: float | None) -> None:
    """Connect, and wait for that; raise BlockingIOError at the timeout."""
    # A non-blocking one does not wait for the backlog at all, and fails with EAGAIN: unix(7).
    sock.setblocking(timeout != 0)
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        if deadline is not None:
            left = max(deadline - time.monotonic(), 1e-6)  # 0 would be without end
            _set_send_timeout(sock, left)
        sock.connect(address)
        try:
            sock.getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            continue  # a signal came; socket.connect() takes that for success
        break
    _set_send_timeout(sock, 0)
    sock.setblocking(True)


def _set_send_timeout(sock: socket.socket, seconds: float) -> None:
    whole = min(int(seconds), 2**31)
    value = struct.pack("@ll", whole, int((seconds - int(seconds)) * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def listening(address: str, backlog: int, mode: int | None) -> socket.socket:
    """Make a listener; the caller owns it."""
    if not address.startswith("@"):
        return unix_listener(address, mode, backlog, socket.SOCK_SEQPACKET)
    if mode is not None:
        raise ValueError(f"listen {address}: only a path has a mode")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        made.bind(raw_address(address))
        made.listen(backlog)
    except BaseException:
        made.close()
        raise
    return made


def raw_address(address: StrPath) -> bytes:
    """Return an address as the kernel has it: a path, or a null byte and a name."""
    raw = os.fsencode(address)
    return b"\0" + raw[1:] if raw.startswith(b"@") else raw


def wait(fd: int, events: int, deadline: float | None) -> bool:
    """Wait until a descriptor is ready or time.monotonic() has reached the deadline."""
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    return _core.wait_ready(fd, events, left)


async def ready(fd: int, *, writable: bool) -> None:
    """Wait on the running loop; nothing is read from the socket, so this may be cancelled."""
    import asyncio  # here: a third of what importing us would cost

    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    # A number of its own, since a loop has one of a kind per number and many may wait.
    number = os.dup(fd)
    try:
        (loop.add_writer if writable else loop.add_reader)(number, wake)
        try:
            await woken
        finally:
            (loop.remove_writer if writable else loop.remove_reader)(number)
    finally:
        os.close(number)
