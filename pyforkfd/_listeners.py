"""Listening sockets: made, adopted after a check, and taken over from a service manager."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from . import _core
from ._errors import DescriptorError, ListenerError
from ._unix_listener import unix_listener

_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
_FIRST = 3  # SD_LISTEN_FDS_START

_FILE_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFLNK: "a symbolic link",
    0: "an anonymous inode (eventfd, epoll, pidfd, ...)",
}
_INTERNET_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_UNIX_KINDS = {
    "unix": socket.SOCK_STREAM,
    "unixgram": socket.SOCK_DGRAM,
    "unixpacket": socket.SOCK_SEQPACKET,
}
_PROTOCOLS = {
    socket.IPPROTO_TCP: "TCP",
    socket.IPPROTO_UDP: "UDP",
    socket.IPPROTO_SCTP: "SCTP",
    262: "MPTCP",  # IPPROTO_MPTCP, in socket since Python 3.12
}


def bind(
    address: str,
    *,
    backlog: int = 4096,
    reuse_port: bool = False,
    nodelay: bool = True,
    ipv6_only: bool = False,
    mode: int | None = None,
) -> socket.socket:
    """Make a socket that clients can reach; one for connections listens.

    Args:
        address: ``tcp://host:port`` or ``udp://host:port`` (``[::1]`` for IPv6; no host is
            every address, IPv6 and IPv4; port 0 is one of the kernel's choice),
            ``unix:/path``, ``unix:@name`` in the abstract namespace, likewise
            ``unixgram:`` for datagrams and ``unixpacket:`` for SOCK_SEQPACKET,
            ``vsock:port`` or ``vsock:cid:port``.
        backlog: connections that may wait; the kernel limits it to net.core.somaxconn.
        reuse_port: SO_REUSEPORT, several sockets share the port, socket(7); TCP and UDP.
        nodelay: TCP_NODELAY.  Accepted sockets inherit it, so setting it here is enough.
        ipv6_only: an IPv6 listener does not take IPv4 connections.
        mode: permissions of a path, exactly these whatever the umask; never more than
            these, not for a moment.  None: 0o777 less the umask.

    A path whose listener is gone is replaced; one that has a listener is not.

    Returns:
        A blocking, close-on-exec socket; the caller owns it.

    Raises:
        ValueError: the address or an option for it makes no sense.
        OSError: the kernel refuses it; the message names the address.
    """
    made: socket.socket | None = None
    try:
        if match := re.fullmatch(r"(tcp|udp)://(?:\[([^]]*)\]|([^:/]*)):(\d+)", address):
            kind = _INTERNET_KINDS[match[1]]
            host, port = match[2] or match[3], int(match[4])
            made = internet_socket(kind, host, port, ipv6_only, reuse_port, nodelay)
        elif match := re.fullmatch(r"vsock:(?:(\d+|any):)?(\d+)", address):
            kind = socket.SOCK_STREAM
            made = socket.socket(socket.AF_VSOCK, kind)
            cid = socket.VMADDR_CID_ANY if match[1] in (None, "any") else int(match[1])
            made.bind((cid, int(match[2])))
        elif match := re.fullmatch(r"(unix(?:gram|packet)?):(.+)", address, re.DOTALL):
            kind = _UNIX_KINDS[match[1]]
            if match[2][0] != "@":
                return unix_listener(match[2], mode, backlog, kind)
            made = socket.socket(socket.AF_UNIX, kind)
            made.bind(b"\0" + os.fsencode(match[2][1:]))
        else:
            raise ValueError(
                f"bind {address!r}: none of tcp://host:port, udp://host:port, unix:/path, "
                "unix:@name, unixgram:, unixpacket:, vsock:port"
            )
        if reuse_port and made.family not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError(f"bind {address}: reuse_port is for TCP and UDP")
        if mode is not None:
            raise ValueError(f"bind {address}: only a path has a mode")
        if kind != socket.SOCK_DGRAM:
            made.listen(backlog)
    except OSError as error:
        if made is not None:
            made.close()
        if error.errno is None:  # a port above 65535, a path too long
            raise
        raise OSError(error.errno, f"bind {address}: {error.strerror}") from None
    except (ValueError, OverflowError):
        if made is not None:
            made.close()
        raise
    return made


def internet_socket(
    kind: socket.SocketKind,
    host: str,
    port: int,
    ipv6_only: bool,
    reuse_port: bool,
    nodelay: bool,
) -> socket.socket:
    """Make the socket of :func:`bind` for TCP and UDP, which does not listen yet."""
    if port > 0xFFFF:
        raise ValueError(f"bind: port {port} is above 65535")
    if not host and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"
    family, _, protocol, _, where = socket.getaddrinfo(
        host or "::", port, type=kind, flags=socket.AI_PASSIVE
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        if kind == socket.SOCK_STREAM:  # for datagrams it would let others take them
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, ipv6_only)
        if reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if nodelay and kind == socket.SOCK_STREAM:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.bind(where)
    except BaseException:
        made.close()
        raise
    return made


def describe_socket(found: socket.socket) -> str:
    """Return an article and a name: "a TCP socket"."""
    if found.family in (socket.AF_INET, socket.AF_INET6):
        return f"a {_PROTOCOLS.get(found.proto, 'raw IP')} socket"
    kind = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "datagram"}.get(found.type)
    kind = kind or getattr(found.type, "name", str(found.type))
    family = {socket.AF_UNIX: "Unix", socket.AF_VSOCK: "vsock"}.get(found.family)
    family = family or getattr(found.family, "name", str(found.family))
    return f"a {family} {kind} socket"


def open_kind(fd: int, error_class: type[DescriptorError]) -> int:
    """Return the kind of file that a descriptor is, a key of _FILE_KINDS."""
    try:
        return stat.S_IFMT(os.fstat(fd).st_mode)
    except OSError as error:
        raise error_class(
            error.errno or errno.EBADF,
            fd,
            "is closed: if a parent was to pass it, it was close-on-exec at the exec, or not in "
            f"the parent's map (pyforkfd: fds={{{fd}: ...}}; subprocess: pass_fds)",
        ) from None


def borrowed_socket(fd: int, error_class: type[DescriptorError]) -> socket.socket:
    """Return a socket object of a descriptor; the caller detaches it, or takes the descriptor.

    Raises:
        DescriptorError: the descriptor is closed or no socket.
    """
    kind = open_kind(fd, error_class)
    if kind != stat.S_IFSOCK:
        raise error_class(errno.ENOTSOCK, fd, f"is {_FILE_KINDS[kind]}, not a socket")
    return socket.socket(fileno=fd)


def listener_from_fd(
    fd: int,
    *,
    family: socket.AddressFamily | None = None,
    type: socket.SocketKind = socket.SOCK_STREAM,
    blocking: bool | None = None,
) -> socket.socket:
    """Adopt a descriptor that was passed to us, once it has proved to be a listener.

    Like Go's net.FileListener, but the descriptor itself is taken and not a duplicate.  It
    is inspected with SO_DOMAIN, SO_TYPE, SO_PROTOCOL and SO_ACCEPTCONN, socket(7).  There
    is no second listen(2): a listener works as it is in every process that has it.

    Args:
        fd: the descriptor; taken on success (made close-on-exec), left as it was on an error.
        family: the address family that it must have; None: any.
        type: the type that it must have.
        blocking: None leaves O_NONBLOCK as it is.  The flag belongs to the open file:
            setting it here sets it for every process that has this listener.

    Raises:
        ListenerError: the descriptor is closed, no socket, of another family or type, or
            does not listen.  ``fd``, ``reason`` and the message name it.
    """
    found = borrowed_socket(fd, ListenerError)
    try:
        what = describe_socket(found)
        if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ListenerError(errno.EINVAL, fd, _why_not_listening(found, what))
        if family is not None and found.family != family:
            raise ListenerError(
                errno.EAFNOSUPPORT,
                fd,
                f"listens, but is {what} of {socket.AddressFamily(found.family).name}, "
                f"not {family.name}",
            )
        if found.type != type:
            raise ListenerError(errno.EPROTOTYPE, fd, f"listens, but is {what}, not {type.name}")
        if blocking is None:
            blocking = not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
        found.setblocking(blocking)
        found.set_inheritable(False)
    except BaseException:
        found.detach()
        raise
    return found


def _why_not_listening(found: socket.socket, what: str) -> str:
    if found.type not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        return f"is {what}, which has no connections to listen for"
    try:
        found.getpeername()
    except OSError:
        return f"is {what} but not listening"
    return f"is {what} but connected, not listening"


@dataclass(frozen=True, slots=True)
class ListenFd:
    """A descriptor that a service manager has passed to us; the receiver owns it.

    Attributes:
        name: its name in LISTEN_FDNAMES (FileDescriptorName= in systemd); names may repeat.
        fd: its number; close-on-exec.
    """

    name: str
    fd: int

    def listener(
        self,
        *,
        family: socket.AddressFamily | None = None,
        type: socket.SocketKind = socket.SOCK_STREAM,
        blocking: bool | None = None,
    ) -> socket.socket:
        """Adopt the descriptor as a listener: :func:`listener_from_fd`."""
        return listener_from_fd(self.fd, family=family, type=type, blocking=blocking)


def listen_fds(*, unset_environment: bool = True) -> tuple[ListenFd, ...]:
    """Return the descriptors that a service manager has passed to this process, sd_listen_fds(3).

    None are returned where nothing was passed, or not to us: LISTEN_PID must be our pid, and
    LISTEN_PIDFDID, where it is set and the kernel has pidfs (Linux 6.9), the inode of our
    pidfd.  The descriptors are made close-on-exec, all of them or none.

    Args:
        unset_environment: remove the variables, so that no child of ours takes them for
            its own; done whatever the outcome.

    Raises:
        ValueError: a variable makes no sense.
        ListenerError: a descriptor that was announced is not open.
    """
    pid, pidfdid, count, names = (os.environ.get(name) for name in _VARIABLES)
    if unset_environment:
        for name in _VARIABLES:
            os.environ.pop(name, None)
    if pid is None or count is None:
        return ()
    if _number("LISTEN_PID", pid) != os.getpid():
        return ()
    inode = _core.own_pidfd_inode() if pidfdid is not None else None
    if pidfdid is not None and inode is not None and _number("LISTEN_PIDFDID", pidfdid) != inode:
        return ()
    fds = range(_FIRST, _FIRST + _number("LISTEN_FDS", count))
    if fds.stop > 2**31:
        raise ValueError(f"LISTEN_FDS={count}: not a number of descriptors")
    named = ["unknown"] * len(fds) if names is None else names.split(":") if fds else []
    if len(named) != len(fds):
        raise ValueError(f"LISTEN_FDNAMES={names}: {len(named)} names for {len(fds)} descriptors")
    for fd in fds:
        open_kind(fd, ListenerError)
    for fd in fds:
        os.set_inheritable(fd, False)
    return tuple(ListenFd(name, fd) for name, fd in zip(named, fds, strict=True))


def _number(variable: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,20}", text):
        raise ValueError(f"{variable}={text}: not a number")
    return int(text)


def listen_environment(names: Sequence[str], *, pid: int) -> dict[str, str]:
    """Return the variables that pass the descriptors 3, 4, ... to the process ``pid``.

    For programs that start a child by other means than :func:`spawn`, which does this by
    itself.  The pid is known only after the fork, so the child must call this.

    Args:
        names: a name for each descriptor, from 3 on.
        pid: the process that is to take them.

    Raises:
        ValueError: a name has a colon or cannot be printed.
    """
    for name in names:
        if ":" in name or not name.isprintable() or not name.isascii():
            raise ValueError(f"listen_environment: {name!r} is no name for LISTEN_FDNAMES")
    return {
        "LISTEN_PID": str(pid),
        "LISTEN_FDS": str(len(names)),
        "LISTEN_FDNAMES": ":".join(names),
    }
