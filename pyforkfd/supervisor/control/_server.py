"""The control socket: authorization of its clients, and requests that never block the loop."""

from __future__ import annotations

import logging
import os
import pwd
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import pyforkfd as ff
from pyforkfd._closing import Closing
from pyforkfd._trusted_files import demand_socket_place
from pyforkfd._untrusted_peers import drain, drain_backlog, refuse_descriptors
from pyforkfd.supervisor._failures import report
from pyforkfd.supervisor._reactor import READABLE, WRITABLE, Reactor
from pyforkfd.supervisor._shortage import is_shortage, reserved
from pyforkfd.supervisor.spec._spec import Control

from ._messages import LONGEST_REQUEST, Body, ControlError, parse, send

log = logging.getLogger("pyforkfd.supervisor")

_MOST_CLIENTS = 64
_MOST_QUEUED = 1024  # messages of a stream for a client that does not read
_REST = 0.5  # seconds without a look at the listener while no connection can be accepted


class Client:
    """One connection, with one request at a time."""

    def __init__(self, server: ControlSocket, channel: ff.FdChannel) -> None:
        self.busy = False  # a request has no reply yet
        self._server = server
        self.channel = channel
        self._queue: deque[Body] = deque()
        self._on_end: list[Callable[[], None]] = []
        self._error_at_end = ""  # the reply where the supervisor ends first
        self._broken = False

    @property
    def closed(self) -> bool:
        """Whether the connection is closed; further messages are discarded."""
        return self.channel.closed

    def reply(self, body: Body | None = None) -> None:
        """End the request with success.

        Args:
            body: fields of the reply.
        """
        self._end({"ok": True, **(body or {})})

    def refuse(self, why: str) -> None:
        """End the request with an error.

        Args:
            why: the reason.
        """
        self._end({"ok": False, "error": why})

    def stream(self, body: Body) -> None:
        """Send a message while the request goes on; a client that does not read is disconnected."""
        if self.closed or self._broken:
            return
        self._queue.append(body)
        if len(self._queue) > _MOST_QUEUED:
            log.warning("control: disconnected a client: %d messages not read", _MOST_QUEUED)
            self._break_off()
            return
        self._write()

    def defer(self, error_at_end: str, on_end: Callable[[], None] | None = None) -> None:
        """Leave the reply for later.

        Args:
            error_at_end: the error that is sent if the supervisor ends before; empty: success
                is sent.
            on_end: called once when the request has ended, by a reply or by its client.
        """
        self._error_at_end = error_at_end
        if on_end is not None:
            self._on_end.append(on_end)

    def begin(self) -> None:
        """Begin a request: the next one is read after the reply to this."""
        self.busy = True
        self._watch()

    def ready(self, events: int) -> None:
        """Send queued messages, or notice that the client has closed.

        Args:
            events: of the descriptor, epoll_ctl(2).
        """
        if events & ~(READABLE | WRITABLE):
            self._server.drop(self)
        elif self._queue:
            self._write()

    def finish(self) -> None:
        """Reply to the request and disconnect, as the supervisor ends."""
        if self.busy:
            if self._error_at_end:
                self.refuse(self._error_at_end)
            else:
                self.reply()
        self._server.drop(self)

    def cleanup(self) -> None:
        """Call the hooks for the end of the request."""
        hooks, self._on_end = self._on_end, []
        for hook in hooks:
            hook()

    def _end(self, body: Body) -> None:
        if self.closed or self._broken or not self.busy:
            return
        self.cleanup()
        self.busy = False
        self._queue.append(body)
        self._write()

    def _write(self) -> None:
        try:
            while self._queue:
                send(self.channel, self._queue[0])
                self._queue.popleft()
        except TimeoutError:
            pass
        except OSError:
            self._break_off()
            return
        self._watch()

    def _break_off(self) -> None:
        """Shut the connection down; the next round drops it, since the caller may still use it."""
        self._broken = True
        self._queue.clear()
        sock = socket.socket(fileno=self.channel.fileno())
        try:
            sock.shutdown(socket.SHUT_RDWR)
        finally:
            sock.detach()  # the channel's

    def _watch(self) -> None:
        # A hang-up is reported whatever is waited for, epoll_ctl(2).
        wanted = 0 if self.busy or self._queue else READABLE
        if self._queue:
            wanted |= WRITABLE
        self._server.reactor.change(self.channel.fileno(), wanted)


class ControlSocket(Closing):
    """A SOCK_SEQPACKET listener and its clients, served by the loop's reactor.

    The kernel reports a client's user (SO_PEERCRED, unix(7)): root, the supervisor's own user
    and ``allow_users`` may send requests.  A context manager that closes all of it.
    """

    def __init__(
        self, spec: Control, reactor: Reactor, handle: Callable[[Client, Body], None]
    ) -> None:
        """Listen.

        Args:
            spec: the configuration; its path must be set.
            reactor: borrowed.
            handle: called with each request; replies by the client's methods, now or later.
                An exception becomes a refusal; one that is no ControlError, ValueError or
                OSError is logged with its traceback.

        Raises:
            OSError: the error of bind(2): EADDRINUSE where another supervisor listens.
            UntrustedPathError: another user could replace the socket.
            KeyError: a user of ``allow_users`` does not exist.
        """
        assert spec.path is not None, "there is no path"
        self.reactor = reactor
        self._path = spec.path
        self._allowed = {0, os.geteuid(), *map(_uid, spec.allow_users)}
        self._handle = handle
        self._clients: dict[int, Client] = {}  # by fd, the least recently used first
        mode = None if spec.path.startswith("@") else spec.mode
        if mode is not None:
            demand_socket_place(spec.path, ours=True)
        self._listener = ff.FdChannel.listen(spec.path, backlog=_MOST_CLIENTS, mode=mode)
        try:
            refuse_descriptors(self._listener)  # no request has one
            self._inode = None if mode is None else os.stat(self._path).st_ino
            reactor.add(self._listener.fileno(), self._on_connection)
        except BaseException:
            self._listener.close()
            raise

    def drop(self, client: Client) -> None:
        """Close a client's connection and forget it."""
        if client.closed:
            return
        fd = client.channel.fileno()
        self.reactor.remove(fd)
        self._clients.pop(fd, None)
        _close(client.channel)
        client.cleanup()

    def close(self) -> None:
        """Reply to the requests that wait, close everything, remove the path."""
        for client in list(self._clients.values()):
            client.finish()
        if self._listener.fileno() < 0:
            return
        self.reactor.remove(self._listener.fileno())
        drain_backlog(self._listener)
        self._listener.close()
        with suppress(FileNotFoundError):
            # Another process may have put its socket there.
            if self._inode is not None and os.lstat(self._path).st_ino == self._inode:
                os.unlink(self._path)

    def _on_connection(self, events: int) -> None:
        try:
            with reserved(0.5):
                channel = self._listener.accept(timeout=0, max_message=LONGEST_REQUEST, max_fds=0)
        except TimeoutError:  # closed before it was accepted
            return
        except OSError as error:
            if is_shortage(error):
                self._make_way(error)
            return
        if why := self._refusal(channel):
            with suppress(TimeoutError, OSError):
                send(channel, {"ok": False, "error": why})
            _close(channel)
            return
        client = Client(self, channel)
        try:
            self.reactor.add(channel.fileno(), lambda found: self._on_client(client, found))
        except OSError as error:  # no memory, or no watch of epoll(7), for it
            _close(channel)
            self._make_way(error)
            return
        self._clients[channel.fileno()] = client

    def _make_way(self, error: OSError) -> None:
        """Take up the connection that waits later: what it needs is short."""
        if (idle := self._idle()) is not None:
            self.drop(idle)  # that may be enough
        else:
            log.warning("control: a connection has to wait: %s", error)
            self.reactor.rest(self._listener.fileno(), _REST)

    def _idle(self) -> Client | None:
        return next((client for client in self._clients.values() if not client.busy), None)

    def _refusal(self, channel: ff.FdChannel) -> str:
        peer = channel.peer_credentials()
        if peer.uid not in self._allowed:
            log.warning("control: refused %s (pid %d)", _user(peer.uid), peer.pid)
            return (
                f"{_user(peer.uid)} may not send requests to this supervisor: only root, "
                f"{_user(os.geteuid())} and control.allow_users may"
            )
        if len(self._clients) < _MOST_CLIENTS:
            return ""
        idle = self._idle()
        if idle is None:
            return f"{_MOST_CLIENTS} clients wait for their replies already; try again later"
        self.drop(idle)
        return ""

    def _on_client(self, client: Client, events: int) -> None:
        if client.busy or not events & READABLE:
            client.ready(events)
            return
        fd = client.channel.fileno()
        self._clients[fd] = self._clients.pop(fd)  # the most recently used
        try:
            message = client.channel.recv(timeout=0)
        except TimeoutError:
            return
        except ff.PassingError as error:
            client.begin()
            client.refuse(f"the request cannot be read: {error}")
            return
        except (EOFError, OSError):
            self.drop(client)
            return
        client.begin()
        try:
            with message:
                body = parse(message)
            self._handle(client, body)
        except (ControlError, ValueError, OSError) as error:
            client.refuse(str(error))
        except Exception as error:  # of ours: it costs the client its request, and nobody else
            client.refuse(report("control", error, ()))


def _close(channel: ff.FdChannel) -> None:
    drain(channel)  # a client may have passed a descriptor of which the close waits
    channel.close()


def _uid(user: str | int) -> int:
    return user if isinstance(user, int) else pwd.getpwnam(user).pw_uid


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
