"""The addresses of a service, tried without a trace: who holds them, and what refuses them."""

from __future__ import annotations

import errno
import os
import socket
import stat

from pyforkfd._listeners import internet_socket
from pyforkfd.supervisor.spec._address import Address, parse_address
from pyforkfd.supervisor.spec._spec import Listener

_KINDS = {
    "tcp": socket.SOCK_STREAM,
    "udp": socket.SOCK_DGRAM,
    "unix": socket.SOCK_STREAM,
    "unixgram": socket.SOCK_DGRAM,
    "unixpacket": socket.SOCK_SEQPACKET,
}


def refusal(listener: Listener) -> str | None:
    """Return why :func:`pyforkfd.bind` would refuse a listener now; None: it would not.

    The socket is bound, but never listens, and is closed again.  A path is looked at only.

    Raises:
        ValueError: the address makes no sense, which is reported elsewhere.
    """
    address = parse_address(listener.address)
    try:
        if address.is_path:
            _demand_free(address.location)
        elif address.scheme != "systemd":
            _bound(address, listener).close()
    except OSError as error:
        if error.errno is None:
            return str(error)
        return str(OSError(error.errno, f"bind {listener.address}: {error.strerror}"))
    except ValueError as error:  # a host name that cannot be encoded
        return str(error)
    return None


def _bound(address: Address, listener: Listener) -> socket.socket:
    if address.is_internet:
        return internet_socket(
            _KINDS[address.scheme],
            address.location,
            address.port or 0,
            listener.ipv6_only,
            listener.shards,
            listener.nodelay,
        )
    if address.scheme != "vsock":
        return _abstract(address.location, _KINDS[address.scheme])
    made = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        cid = socket.VMADDR_CID_ANY if address.location == "any" else int(address.location)
        made.bind((cid, address.port or 0))
    except BaseException:
        made.close()
        raise
    return made


def taken(path: str, operation: str) -> str | None:
    """Return why a Unix socket cannot be bound to a path or an abstract name; None: it can.

    Args:
        path: or ``@name``.
        operation: for the message.
    """
    try:
        if path.startswith("@"):
            _abstract(path, socket.SOCK_SEQPACKET).close()
        else:
            _demand_free(path)
    except OSError as error:
        return str(OSError(error.errno or 0, f"{operation} {path}: {error.strerror}"))
    return None


def _demand_free(path: str) -> None:
    """Demand that a Unix socket can be bound to a path, as far as can be seen.

    Raises:
        OSError: EADDRINUSE, something else is there.
    """
    if os.path.lexists(path) and not _is_left(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _is_left(path: str) -> bool:
    """Return whether a path is that of a socket that nobody has any more."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    # A listener of another type refuses it (EPROTOTYPE), and never notices, unix(7).
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _abstract(name: str, kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind)
    try:
        made.bind(b"\0" + os.fsencode(name[1:]))
    except BaseException:
        made.close()
        raise
    return made
