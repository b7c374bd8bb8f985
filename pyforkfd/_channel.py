"""A connection that carries whole messages with descriptors."""

from __future__ import annotations

import functools
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator

from . import _core
from ._closing import Closing
from ._fd import Fd
from ._passing import Buffer, Credentials, Received, peer_credentials, peer_pidfd
from ._seqpacket import connect, demand_connection, listening, raw_address, ready, wait
from ._types import HasFileno, StrPath

_IN, _OUT = select.POLLIN, select.POLLOUT
_MAX_MESSAGE = 65536
_MAX_FDS = 253
_channels: weakref.WeakSet[FdChannel] = weakref.WeakSet()


def _new_locks() -> None:
    for channel in list(_channels):
        channel._lock = threading.Lock()


@functools.cache  # a hook that has nothing to do costs every fork page faults all the same
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_new_locks)


class FdChannel(Closing):
    """A UNIX SOCK_SEQPACKET connection: a message and its descriptors arrive in one piece.

    Made by :meth:`pair` and :meth:`connect`, accepted from a :class:`ChannelListener`, or
    adopted: ``FdChannel(3)`` in a child that was given one.  It has a ``fileno()``, so
    ``spawn(..., fds={3: channel})`` passes it on.  Both ends may send, receive and share
    their end with other processes; each message goes to one receiver.

    Any other program may be at the other end: there is no header.  Only more than 253
    descriptors go in several messages, see :func:`send_fds`; ``max_fds`` above that admits
    them, and the two ends should then not be shared by several senders.

    Safe to use from many threads and on asyncio, also at once; O_NONBLOCK, which other
    processes share, is left alone.  Do not close it while another thread uses it.
    """

    __slots__ = ("__weakref__", "_fd", "_incoming", "_lock", "_unsent")

    def __init__(
        self, fd: int, *, max_message: int = _MAX_MESSAGE, max_fds: int = _MAX_FDS
    ) -> None:
        """Adopt a descriptor, once it has proved to be a connected SOCK_SEQPACKET socket.

        Args:
            fd: the descriptor; taken (made close-on-exec) on success, left as it was on an
                error.
            max_message: the longest message that may come, in bytes; a longer one is an
                error.  How long a message may be that is sent, the other end and SO_SNDBUF
                decide.
            max_fds: the most descriptors that may come with one message.

        Raises:
            ChannelError: the descriptor is no such socket; the message names what it is.
        """
        if max_message < 1 or max_fds < 0:
            raise ValueError("FdChannel: max_message is at least 1, and max_fds 0")
        demand_connection(fd)
        self._incoming = _core.ChannelReceiving(max_message, max_fds)
        self._unsent: _core.ChannelSending | None = None  # of a transfer that was begun
        self._lock = threading.Lock()  # held for moments, never while waiting for the peer
        self._fd = Fd(fd)
        _watch_forks()
        _channels.add(self)

    @classmethod
    def pair(
        cls, *, max_message: int = _MAX_MESSAGE, max_fds: int = _MAX_FDS
    ) -> tuple[FdChannel, FdChannel]:
        """Make two channels that are connected to one another, one of them for a child.

        Raises:
            OSError: socketpair(2) failed.
        """
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ends[0], ends[1]:
            one = _adopt(ends[0], max_message, max_fds)
            try:
                return one, _adopt(ends[1], max_message, max_fds)
            except BaseException:
                one.close()
                raise

    @classmethod
    def connect(
        cls,
        address: StrPath,
        *,
        timeout: float | None = None,
        max_message: int = _MAX_MESSAGE,
        max_fds: int = _MAX_FDS,
    ) -> FdChannel:
        """Connect to a :class:`ChannelListener`, or to any other listener at an address.

        Args:
            address: a path, or ``@name`` in the abstract namespace.
            timeout: seconds to wait while the listener's backlog is full; None: without end.
            max_message: see :class:`FdChannel`.
            max_fds: see :class:`FdChannel`.

        Raises:
            TimeoutError: the backlog was full for that long.
            OSError: connect(2) failed; the message names the address.
        """
        name = os.fsdecode(address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            try:
                connect(sock, raw_address(address), timeout)
            except BlockingIOError:
                raise TimeoutError(f"connect {name}: backlog full for {timeout} s") from None
            except OSError as error:
                if error.errno is None:  # a path too long
                    raise
                raise OSError(error.errno, f"connect {name}: {error.strerror}") from None
            return _adopt(sock, max_message, max_fds)

    @classmethod
    def listen(
        cls, address: StrPath, *, backlog: int = 4096, mode: int | None = None
    ) -> ChannelListener:
        """Listen for channels.

        Args:
            address: a path, or ``@name`` in the abstract namespace.  A path whose listener
                is gone is replaced; closing does not remove it.
            backlog: connections that may wait.
            mode: permissions of a path, as in :func:`bind`.

        Raises:
            ValueError: a mode is given, and the address is no path.
            OSError: bind(2) failed; the message names the address.
        """
        name = os.fsdecode(address)
        try:
            return ChannelListener(listening(name, backlog, mode))
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(error.errno, f"listen {name}: {error.strerror}") from None

    def send(
        self,
        data: Buffer | Iterable[Buffer],
        fds: Iterable[int | HasFileno] = (),
        *,
        timeout: float | None = None,
    ) -> None:
        """Send one message.

        Args:
            data: bytes-like, or an iterable of such.  It may be empty if there are
                descriptors.
            fds: borrowed; they may be closed after the return.
            timeout: seconds to wait while the receiver's buffer is full; None: without end.

        Raises:
            ValueError: the message is empty, which would mean the end; or the channel is
                closed.
            TimeoutError: the buffer was full for that long.  Nothing was sent; only of more
                than 253 descriptors a part may have gone: the rest goes before the next
                message, so that this one arrives as well.
            BrokenPipeError: the other end is closed.
            OSError: EMSGSIZE, longer than SO_SNDBUF allows; and as :func:`send_fds`.
        """
        sending = _core.ChannelSending(data, fds)
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._advance_out(sending):
                if not wait(self._fd.fileno(), _OUT, deadline):
                    raise TimeoutError(f"send: the receiver's buffer was full for {timeout} s")
        finally:
            self._leave(sending)

    async def send_async(
        self, data: Buffer | Iterable[Buffer], fds: Iterable[int | HasFileno] = ()
    ) -> None:
        """Send one message as :meth:`send` does, on the running loop.

        A cancellation leaves the channel as a TimeoutError does.
        """
        sending = _core.ChannelSending(data, fds)
        try:
            while not self._advance_out(sending):
                await ready(self._fd.fileno(), writable=True)
        finally:
            self._leave(sending)

    def recv(self, *, timeout: float | None = None) -> Received:
        """Receive one message with its descriptors, which are owned and close-on-exec.

        Args:
            timeout: seconds to wait for it; None: without end; 0: do not wait.

        Raises:
            EOFError: the other end is closed, and all its messages were received.
            TimeoutError: no message came in time.  Nothing is lost.
            PassingError: a message was too long or had too many descriptors, or
                RLIMIT_NOFILE was reached; the descriptors that came are closed, and the next
                recv() returns the next message.
            ConnectionResetError: the other end was closed before it had received all our
                messages.
            ValueError: the channel is closed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (message := self._advance_in()) is None:
            if not wait(self._fd.fileno(), _IN, deadline):
                raise TimeoutError(f"recv: no message within {timeout} s")
        return message

    async def recv_async(self) -> Received:
        """Receive one message as :meth:`recv` does, on the running loop.

        A cancellation takes no message.
        """
        while (message := self._advance_in()) is None:
            await ready(self._fd.fileno(), writable=False)
        return message

    def __iter__(self) -> Iterator[Received]:
        """Receive messages until the other end is closed."""
        while True:
            try:
                message = self.recv()
            except EOFError:
                return
            yield message

    async def __aiter__(self) -> AsyncIterator[Received]:
        """Receive messages until the other end is closed."""
        while True:
            try:
                message = await self.recv_async()
            except EOFError:
                return
            yield message

    def peer_credentials(self) -> Credentials:
        """Return the credentials of the other end, for a pair of its maker: SO_PEERCRED."""
        return peer_credentials(self._fd)

    def peer_pidfd(self, *, by_pid: bool = False) -> Fd:
        """Return a pidfd of the process at the other end: :func:`peer_pidfd`."""
        return peer_pidfd(self._fd, by_pid=by_pid)

    def fileno(self) -> int:
        """Return the descriptor's number; it stays this object's.

        Raises:
            ValueError: the channel is closed or detached.
        """
        return self._fd.fileno()

    def detach(self) -> int:
        """Give the descriptor to the caller, who owns it then; the channel is as if closed."""
        return self._fd.detach()

    def close(self) -> None:
        """Close our end: the other end receives what was sent, then the end.

        Does nothing if the channel is closed already.
        """
        self._fd.close()
        self._unsent = None

    @property
    def closed(self) -> bool:
        """Whether the channel is closed or detached."""
        return self._fd.closed

    def __repr__(self) -> str:
        return f"<FdChannel {'closed' if self.closed else self.fileno()}>"

    def _advance_out(self, sending: _core.ChannelSending) -> bool:
        with self._lock:
            number = self._fd.fileno()
            if self._unsent is not None and self._unsent is not sending:
                if not self._unsent.advance(number):
                    return False
                self._unsent = None
            try:
                done = sending.advance(number)
            except BaseException:
                self._unsent = None
                raise
            # Nothing may come between the messages of a transfer.
            self._unsent = sending if sending.begun else None
            return done

    def _leave(self, sending: _core.ChannelSending) -> None:
        with self._lock:
            if self._unsent is sending:
                sending.keep()

    def _advance_in(self) -> Received | None:
        with self._lock:
            message = self._incoming.advance(self._fd.fileno())
        if message is not None and not message.data and not message.fds:
            message.close()
            raise EOFError("the other end of the channel is closed")
        return message


class ChannelListener(Closing):
    """A listening SOCK_SEQPACKET socket, of which each connection is a :class:`FdChannel`.

    Made by :meth:`FdChannel.listen`, or around a listener that was passed to us:
    ``ChannelListener(listener_from_fd(3, type=socket.SOCK_SEQPACKET))``.  It has a
    ``fileno()``; as a context manager it closes at the end, and leaves a path where it is.
    """

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        """Take a listener.

        Args:
            sock: the socket; taken.  It is made non-blocking, since another process that
                shares it may be the first to accept; O_NONBLOCK holds for that process too.
        """
        sock.setblocking(False)
        self._sock = sock

    def accept(
        self,
        *,
        timeout: float | None = None,
        max_message: int = _MAX_MESSAGE,
        max_fds: int = _MAX_FDS,
    ) -> FdChannel:
        """Wait for a connection.

        Args:
            timeout: seconds; None: without end.
            max_message: see :class:`FdChannel`.
            max_fds: see :class:`FdChannel`.

        Raises:
            TimeoutError: no connection came in time.
            OSError: accept(2) failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (sock := self._accept()) is None:
            if not wait(self._sock.fileno(), _IN, deadline):
                raise TimeoutError(f"accept: no connection within {timeout} s")
        with sock:
            return _adopt(sock, max_message, max_fds)

    async def accept_async(
        self, *, max_message: int = _MAX_MESSAGE, max_fds: int = _MAX_FDS
    ) -> FdChannel:
        """Wait for a connection as :meth:`accept` does, on the running loop.

        A cancellation takes no connection.
        """
        while (sock := self._accept()) is None:
            await ready(self._sock.fileno(), writable=False)
        with sock:
            return _adopt(sock, max_message, max_fds)

    def fileno(self) -> int:
        """Return the descriptor's number, which stays this object's; -1 once it is closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the listener; a path stays, and :meth:`FdChannel.listen` replaces it."""
        self._sock.close()

    def __repr__(self) -> str:
        return f"<ChannelListener {self.fileno()} {self._sock.getsockname()!r}>"

    def _accept(self) -> socket.socket | None:
        try:
            return self._sock.accept()[0]
        except BlockingIOError:
            return None


def _adopt(sock: socket.socket, max_message: int, max_fds: int) -> FdChannel:
    channel = FdChannel(sock.fileno(), max_message=max_message, max_fds=max_fds)
    sock.detach()
    return channel
