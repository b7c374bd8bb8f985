"""The guard of the listening sockets: what a worker has done to one is found and put right."""

from __future__ import annotations

import logging
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from pyforkfd._closing import Closing
from pyforkfd.supervisor._reactor import Reactor
from pyforkfd.supervisor.processes._running import Running, RunningWorkers
from pyforkfd.supervisor.processes._sockets import Key, Sockets
from pyforkfd.supervisor.spec._spec import Listener, Service
from pyforkfd.supervisor.state._events import Event, Retire
from pyforkfd.supervisor.worker._receiving import Refusals

from ._state import find_damage, restore

log = logging.getLogger("pyforkfd.supervisor")

_INTERVAL = 1.0  # seconds between two checks of all sockets
_RECENT = 2.0  # seconds for which a worker that has ended is suspected
_MOST_NAMED = 8  # workers in a message
_CHANGES = select.EPOLLRDHUP | select.EPOLLET  # EPOLLHUP is always reported, epoll_ctl(2)


@dataclass(frozen=True, slots=True)
class _Gone:
    """A worker that has ended lately."""

    at: float
    worker_id: int
    component: str
    sockets: frozenset[Key]


class SocketGuard(Closing):
    """Watches what workers do to the open files of the listening sockets that they share.

    A worker can shut one down, connect it, or let it drop everything, for all its siblings.
    That is put right on the same socket where the kernel permits it, else by a new socket, which
    new workers get; where neither is possible the listener is dead until the service is
    restarted.  A hang-up is found at once, all else within a second.

    Attributes:
        dead: sockets that could not be put right -> why, for people.
    """

    def __init__(
        self,
        sockets: Sockets,
        running: RunningWorkers,
        reactor: Reactor,
        post: Callable[[Event], None],
    ) -> None:
        """Begin without a socket.

        Args:
            sockets: borrowed.
            running: the workers that have a process; borrowed.
            reactor: reports hang-ups; borrowed.
            post: takes events.
        """
        self.dead: dict[Key, str] = {}
        self._sockets, self._running = sockets, running
        self._reactor, self._post = reactor, post
        self._epoll: select.epoll | None = None
        self._watched: Mapping[Key, socket.socket] = {}
        self._listeners: dict[Key, Listener] = {}
        self._gone: deque[_Gone] = deque(maxlen=64)
        self._refusals = Refusals(log.warning)
        self._check_at = 0.0

    def know(self, listeners: Mapping[Key, Listener]) -> None:
        """Take the specification that a socket is to follow from now on: its name, its backlog."""
        self._listeners.update(listeners)

    def ended(self, running: Running) -> None:
        """Check the sockets of a worker that has ended."""
        worker = running.worker
        gone = _Gone(time.monotonic(), worker.id, worker.component, frozenset(running.sockets))
        self._gone.append(gone)
        self.check(running.sockets)

    def poll(self, now: float) -> None:
        """Check all sockets, once a second; calls in between do nothing."""
        if now >= self._check_at:
            self._check_at = now + _INTERVAL
            self._refusals.flush(now)
            self.check()

    def check(self, keys: Collection[Key] | None = None) -> None:
        """Check sockets, and put them right.

        Args:
            keys: those to check; None: all.
        """
        present = self._sockets.all()
        self._watch(present)
        for key in self.dead.keys() - present.keys():
            del self.dead[key]
        for key in present if keys is None else keys:
            if key in present:
                self._check_one(key, present[key])

    def demand(self, service: Service) -> None:
        """Check all sockets, and demand that those which a service listens on are not dead.

        Raises:
            OSError: one is; the message names the listener, and why.
        """
        self.check()
        wanted = {
            service.listeners[name].address
            for c in service.components.values()
            for name in c.listen
        }
        for (address, _, _), why in self.dead.items():
            if address in wanted:
                raise OSError(why)

    def _check_one(self, key: Key, sock: socket.socket) -> None:
        listener = self._listeners.get(key)
        good = self._sockets.good_state(key)
        try:
            damage = find_damage(sock, good)
            if not damage and good.listens and self._sockets.is_ours(key) and listener is not None:
                sock.listen(listener.backlog)  # a worker's listen(2) has changed it for all
        except OSError as error:
            damage = f"cannot be checked: {error}"
        if not damage:
            self.dead.pop(key, None)
        else:
            self._repair(key, sock, damage)

    def _repair(self, key: Key, sock: socket.socket, damage: str) -> None:
        listener = self._listeners.get(key)
        where = _name(key, listener)
        text = f"{where} {damage} ({self._suspects(key)})"
        backlog = socket.SOMAXCONN if listener is None else listener.backlog
        try:
            restore(sock, self._sockets.good_state(key), backlog)
        except OSError as error:
            why = error.strerror or str(error)
        else:
            self.dead.pop(key, None)
            self._refusals.add(f"{text}: put right", time.monotonic())
            return
        try:
            if listener is None:
                raise OSError("no worker has it")
            self._sockets.replace(listener, key)
        except (OSError, ValueError) as error:
            lost = f"{where}: dead, and cannot be put right: {why}; {error}: restart the service"
            if key not in self.dead:
                log.error("%s: %s", text, lost)
            self.dead[key] = lost
            return
        self.dead.pop(key, None)
        self._refusals.add(f"{text}: replaced by a new socket, since {why}", time.monotonic())
        self._watch(self._sockets.all())
        for running in list(self._running.values()):
            if running.sockets.pop(key, None) is not None:
                self._post(Retire(running.worker.id, f"its socket of {where} was replaced"))

    def _suspects(self, key: Key) -> str:
        """Name the workers that may have done it: those that leave, else all that have it."""
        since = time.monotonic() - _RECENT
        here = [running for running in self._running.values() if key in running.sockets]
        found = {
            one.worker_id: one.component
            for one in self._gone
            if one.at >= since and key in one.sockets
        }
        found |= {r.worker.id: r.worker.component for r in here if r.leaving}
        if not found:
            found = {r.worker.id: r.worker.component for r in here}
        names = [f"{component}: worker {worker_id}" for worker_id, component in found.items()]
        if not names:
            return "by no worker that is known"
        more = f", or {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        return "by " + ", or ".join(names[:_MOST_NAMED]) + more

    def _watch(self, sockets: Mapping[Key, socket.socket]) -> None:
        """Watch these sockets for hang-ups, and no others.

        A new epoll each time that they change: one that was closed here would stay in the old
        one as long as a worker has it, epoll(7).
        """
        if sockets == self._watched:
            return
        self._forget_epoll()
        self._watched = sockets
        epoll = self._epoll = select.epoll()
        for sock in sockets.values():
            epoll.register(sock.fileno(), _CHANGES)
        self._reactor.add(epoll.fileno(), self._on_change)

    def _on_change(self, events: int) -> None:
        if self._epoll is None:
            return
        changed = {fd for fd, _ in self._epoll.poll(0)}
        self.check([key for key, sock in self._watched.items() if sock.fileno() in changed])

    def _forget_epoll(self) -> None:
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            self._reactor.remove(epoll.fileno())
            epoll.close()

    def close(self) -> None:
        """Stop watching; the sockets stay open."""
        self._forget_epoll()
        self._watched = {}


def _name(key: Key, listener: Listener | None) -> str:
    address, shards, position = key
    name = "listener" if listener is None else f"listener {listener.name}"
    return f"{name} ({address}, shard {position})" if shards else f"{name} ({address})"
