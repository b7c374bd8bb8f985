"""Sockets whose other end is another user's, who may pass descriptors of which a close waits.

The close of a connected socket with SO_LINGER waits until its data is sent, socket(7).  The last
close is the receiver's where the sender has closed its own: in close(2), in a recvmsg(2) without
space for the descriptor, and in the close of the socket in which it still waits.
"""

from __future__ import annotations

import errno
import socket

from . import _core
from ._passing import Received
from ._types import HasFileno

_MOST_MESSAGES = 65536  # nothing is added meanwhile: SO_SNDBUF of the senders is the real bound
_MOST_CONNECTIONS = 65536  # as before: the listener's backlog


def refuse_descriptors(sock: HasFileno) -> bool:
    """Let the kernel refuse descriptors for a Unix socket: their sender gets EPERM.

    Of a listener it holds for the connections too, from before they are accepted.

    Args:
        sock: borrowed.

    Returns:
        False: the kernel is older than Linux 6.16, and does not know SO_PASSRIGHTS.

    Raises:
        OSError: setsockopt(2) failed.
    """
    try:
        _core.pass_rights(sock.fileno(), False)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return False
    return True


def discard(received: Received) -> None:
    """Close the descriptors of a message; sockets among them do not linger."""
    _core.discard_received(received)


def drain(sock: HasFileno) -> None:
    """Receive and discard what waits in a Unix socket, just before its close.

    The receiving side is shut down, so that nothing can be sent to it any more.

    Args:
        sock: borrowed; no other process receives from it.
    """
    _core.drain_socket(sock.fileno(), _MOST_MESSAGES)


def drain_backlog(listener: HasFileno) -> None:
    """Accept and drain the connections that wait at a Unix listener, just before its close.

    Args:
        listener: borrowed; shut down, and no other process accepts from it.
    """
    _core.drain_backlog(listener.fileno(), _MOST_CONNECTIONS)


def close_listening(sock: socket.socket, *, shared: bool) -> None:
    """Close a socket that other processes had, and that some may have changed: without a wait.

    Args:
        sock: of any kind; taken.
        shared: another process may still accept or receive from it, so that this is not its
            last close; what waits in it is left.
    """
    if sock.fileno() < 0:
        return
    _core.end_linger(sock.fileno())
    if sock.family == socket.AF_UNIX and not shared:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            drain_backlog(sock)
        else:
            drain(sock)
    sock.close()
