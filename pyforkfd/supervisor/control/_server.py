"""The control socket: who may give orders, and clients that cannot hold the loop up."""

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
from pyforkfd.supervisor._reactor import READABLE, WRITABLE, Reactor
from pyforkfd.supervisor.spec._spec import Control

from ._messages import LONGEST_REQUEST, Body, ControlError, parse, send

log = logging.getLogger("pyforkfd.supervisor")

_MOST_CLIENTS = 64
_MOST_WAITING = 1024  # messages of a stream for a client that does not read


class Client:
    """One connection, which has one request at a time."""

    def __init__(self, room: ControlSocket, channel: ff.FdChannel) -> None:
        self.busy = False  # it waits for an answer
        self._room = room
        self.channel = channel
        self._waiting: deque[Body] = deque()
        self._on_end: list[Callable[[], None]] = []
        self._last = ""  # what it is told if we end first
        self._broken = False

    @property
    def closed(self) -> bool:
        """It is gone; whatever is said to it is dropped."""
        return self.channel.closed

    def answer(self, body: Body | None = None) -> None:
        """End the request: it was done."""
        self._end({"ok": True, **(body or {})})

    def refuse(self, why: str) -> None:
        """End the request: it was not done."""
        self._end({"ok": False, "error": why})

    def stream(self, body: Body) -> None:
        """Say something while the request goes on; a client that does not read is dropped."""
        if self.closed or self._broken:
            return
        self._waiting.append(body)
        if len(self._waiting) > _MOST_WAITING:
            log.warning("control: a client that does not read is dropped")
            self._break_off()
            return
        self._write()

    def defer(self, if_we_end: str, on_end: Callable[[], None] | None = None) -> None:
        """The answer comes later.

        Args:
            if_we_end: what it is told, as an error, if the supervisor ends before; empty:
                that all is well.
            on_end: called once when the request has ended, by an answer or by its client.
        """
        self._last = if_we_end
        if on_end is not None:
            self._on_end.append(on_end)

    def begin(self) -> None:
        """It has made a request: nothing is read of the next until this one has its answer."""
        self.busy = True
        self._watch()

    def ready(self, events: int) -> None:
        """Go on with what is to be sent, or see that it has gone."""
        if events & ~(READABLE | WRITABLE):
            self._room.drop(self)
        elif self._waiting:
            self._write()

    def finish(self) -> None:
        """The supervisor ends."""
        if self.busy:
            if self._last:
                self.refuse(self._last)
            else:
                self.answer()
        self._room.drop(self)

    def cleanup(self) -> None:
        """Nobody waits for the answer any more."""
        hooks, self._on_end = self._on_end, []
        for hook in hooks:
            hook()

    def _end(self, body: Body) -> None:
        if self.closed or self._broken or not self.busy:
            return
        self.cleanup()
        self.busy = False
        self._waiting.append(body)
        self._write()

    def _write(self) -> None:
        try:
            while self._waiting:
                send(self.channel, self._waiting[0])
                self._waiting.popleft()
        except TimeoutError:
            pass
        except OSError:
            self._break_off()
            return
        self._watch()

    def _break_off(self) -> None:
        """Its end is reported to us by the next round: who calls may still use it."""
        self._broken = True
        self._waiting.clear()
        with socket.socket(fileno=os.dup(self.channel.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)

    def _watch(self) -> None:
        # Its end is reported whatever we wait for, epoll_ctl(2).
        wanted = 0 if self.busy or self._waiting else READABLE
        if self._waiting:
            wanted |= WRITABLE
        self._room.reactor.change(self.channel.fileno(), wanted)


class ControlSocket(Closing):
    """A SOCK_SEQPACKET listener and its clients, served by the loop's reactor.

    The kernel says who is there (SO_PEERCRED, unix(7)): root, the supervisor's own user and
    ``allow_users`` may give orders.  A context manager that closes all of it.
    """

    def __init__(
        self, spec: Control, reactor: Reactor, handle: Callable[[Client, Body], None]
    ) -> None:
        """Listen.

        Args:
            spec: its path must be set.
            reactor: borrowed.
            handle: called with each request; answers by the client's methods, now or later.
                A ControlError, ValueError or OSError of it becomes a refusal.

        Raises:
            OSError: as bind(2) says: EADDRINUSE where another supervisor listens.
            KeyError: a user of ``allow_users`` does not exist.
        """
        assert spec.path is not None, "there is no path"
        self.reactor = reactor
        self._path = spec.path
        self._allowed = {0, os.geteuid(), *map(_uid, spec.allow_users)}
        self._handle = handle
        self._clients: dict[int, Client] = {}  # by descriptor, the least recently used first
        mode = None if spec.path.startswith("@") else spec.mode
        self._listener = ff.FdChannel.listen(spec.path, backlog=_MOST_CLIENTS, mode=mode)
        try:
            self._inode = None if mode is None else os.stat(self._path).st_ino
            reactor.add(self._listener.fileno(), self._on_connection)
        except BaseException:
            self._listener.close()
            raise

    def drop(self, client: Client) -> None:
        """Close a client's connection and forget it."""
        if client.closed:
            return
        number = client.channel.fileno()
        self.reactor.remove(number)
        self._clients.pop(number, None)
        client.channel.close()
        client.cleanup()

    def close(self) -> None:
        """Answer whoever waits, close everything, remove the path."""
        for client in list(self._clients.values()):
            client.finish()
        if self._listener.fileno() < 0:
            return
        self.reactor.remove(self._listener.fileno())
        self._listener.close()
        with suppress(FileNotFoundError):
            # Somebody may have put a socket of his own there.
            if self._inode is not None and os.lstat(self._path).st_ino == self._inode:
                os.unlink(self._path)

    def _on_connection(self, events: int) -> None:
        try:
            channel = self._listener.accept(timeout=0, max_message=LONGEST_REQUEST, max_fds=0)
        except (TimeoutError, OSError):  # gone before it was accepted, or no descriptor free
            return
        if why := self._unwelcome(channel):
            with channel, suppress(TimeoutError, OSError):
                send(channel, {"ok": False, "error": why})
            return
        client = Client(self, channel)
        self._clients[channel.fileno()] = client
        self.reactor.add(channel.fileno(), lambda found: self._on_client(client, found))

    def _unwelcome(self, channel: ff.FdChannel) -> str:
        peer = channel.peer_credentials()
        if peer.uid not in self._allowed:
            log.warning("control: refused %s (pid %d)", _user(peer.uid), peer.pid)
            return (
                f"{_user(peer.uid)} may not give orders to this supervisor: only root, "
                f"{_user(os.geteuid())} and control.allow_users may"
            )
        if len(self._clients) < _MOST_CLIENTS:
            return ""
        idle = next((client for client in self._clients.values() if not client.busy), None)
        if idle is None:
            return f"{_MOST_CLIENTS} clients wait for their answers already"
        self.drop(idle)
        return ""

    def _on_client(self, client: Client, events: int) -> None:
        if client.busy or not events & READABLE:
            client.ready(events)
            return
        number = client.channel.fileno()
        self._clients[number] = self._clients.pop(number)  # the last that is used
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


def _uid(user: str | int) -> int:
    return user if isinstance(user, int) else pwd.getpwnam(user).pw_uid


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
