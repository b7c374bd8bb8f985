"""The listening sockets: bound once, open as long as a worker may accept from them."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress

import pyforkfd as ff
from pyforkfd._closing import Closing
from pyforkfd._trusted_files import demand_socket_place
from pyforkfd._untrusted_peers import close_listening
from pyforkfd.supervisor._shortage import reserved
from pyforkfd.supervisor.spec._spec import Component, Listener, Service

from .listening._state import Good

Key = tuple[str, bool, int]
"""Address, whether it has shards, position: a changed backlog alone means the same socket."""
_MANAGED = re.compile("systemd:(.+)")


class Sockets(Closing):
    """The listening sockets by address and position; owned.  A context manager."""

    def __init__(
        self,
        inherited: Iterable[ff.ListenFd] = (),
        adopted: Mapping[Key, socket.socket] | None = None,
    ) -> None:
        """Begin with the sockets that are open already; nothing is bound.

        Args:
            inherited: from our own service manager, for ``systemd:NAME``; taken.
            adopted: from a predecessor; taken.

        Raises:
            ValueError: two inherited ones have the same name; all are closed.
        """
        self._inherited: dict[str, int] = {}
        self._open: dict[Key, socket.socket] = dict(adopted or {})
        self._all: Mapping[Key, socket.socket] | None = None  # as they were returned last
        self._good = {key: Good.of(found) for key, found in self._open.items()}
        twice = set()
        for one in inherited:
            if one.name in self._inherited:
                twice.add(one.name)
                os.close(one.fd)
            else:
                self._inherited[one.name] = one.fd
        if twice:
            while self._open:
                self._open.popitem()[1].close()  # a predecessor's workers have them
            self.close()
            raise ValueError(
                f"several descriptors of the service manager are called {', '.join(twice)}: "
                "give each socket a FileDescriptorName= of its own"
            )

    def get(self, listener: Listener, position: int) -> socket.socket:
        """Return the socket that the worker of a position accepts from; borrowed.

        It is bound if it is not open.  A listener with shards has a socket for each position.

        Raises:
            OSError: it cannot be bound; the error names the address.
            UntrustedPathError: another user decides where its path leads.
            ValueError: the address makes no sense, or the service manager passed no
                descriptor of that name.
        """
        key = _key(listener, position)
        if (found := self._open.get(key)) is None:
            found = self._open[key] = self._make(listener, key[2])
            self._all = None
            self._good[key] = Good.of(found)
        return found

    def keys_of(self, service: Service, spec: Component, position: int) -> dict[Key, Listener]:
        """Return the keys of the sockets of the worker of a position, and their listeners."""
        listeners = [service.listeners[name] for name in spec.listen]
        return {_key(listener, position): listener for listener in listeners}

    def good_state(self, key: Key) -> Good:
        """Return the state that a socket had before a worker had it."""
        return self._good[key]

    @staticmethod
    def is_ours(key: Key) -> bool:
        """Whether we have bound a socket, and not our service manager."""
        return not key[0].startswith("systemd:")

    def replace(self, listener: Listener, key: Key) -> None:
        """Bind a new socket in place of one that is past repair, and close that.

        Raises:
            OSError: it cannot be bound while workers have the old one.
            ValueError: it belongs to the service manager.
        """
        if not self.is_ours(key):
            raise ValueError("only the service manager can bind it again")
        good, old = self._good[key], self._open[key]
        if good.inode is not None:
            if os.stat(good.address).st_ino != good.inode:
                raise OSError(f"{good.address}: it is not our socket any more")
            os.unlink(good.address)
        elif good.listens and old.family != socket.AF_UNIX:
            with suppress(OSError):
                old.shutdown(socket.SHUT_RDWR)  # or the port would be in use
        address = listener.address
        if address.endswith(":0"):  # not another port than the one that clients know
            address = f"{address.removesuffix(':0')}:{good.address[1]}"
        made = self._make(dataclasses.replace(listener, address=address), 0)
        close_listening(old, shared=True)  # the workers that have it are retired after this
        self._open[key], self._good[key] = made, Good.of(made)
        self._all = None

    def of(self, service: Service, spec: Component, position: int) -> dict[str, socket.socket]:
        """Return the sockets of the worker of a position: listener -> socket, borrowed.

        Raises:
            OSError, ValueError: as :meth:`get`.
        """
        return {name: self.get(service.listeners[name], position) for name in spec.listen}

    def open(self, service: Service) -> None:
        """Bind each listener that a component of a specification has, unless it is open.

        Raises:
            OSError, ValueError: as :meth:`get`.
        """
        for spec in service.components.values():
            self.open_positions(service, spec, spec.workers)

    def open_positions(self, service: Service, spec: Component, count: int) -> None:
        """Bind the listeners of so many workers of a component, unless they are open.

        Raises:
            OSError, ValueError: as :meth:`get`.
        """
        for name in spec.listen:
            listener = service.listeners[name]
            for position in _positions(listener, count):
                self.get(listener, position)

    def _make(self, listener: Listener, position: int) -> socket.socket:
        address = listener.address
        if match := _MANAGED.fullmatch(address):
            return self._take(match[1])
        if match := re.fullmatch("unix(?:gram|packet)?:([^@].*)", address, re.DOTALL):
            demand_socket_place(match[1])
        if position > 0:
            address = self._with_port(listener)
        with reserved():
            return ff.bind(
                address,
                backlog=listener.backlog,
                reuse_port=listener.shards,
                nodelay=listener.nodelay,
                ipv6_only=listener.ipv6_only,
                mode=listener.mode,
            )

    def _with_port(self, listener: Listener) -> str:
        """Return the address of a further shard: where the port is 0, that of the first."""
        host, colon, port = listener.address.rpartition(":")
        if port != "0":
            return listener.address
        return f"{host}{colon}{self.get(listener, 0).getsockname()[1]}"

    def _take(self, name: str) -> socket.socket:
        fd = self._inherited.pop(name, None)
        if fd is None:
            known = ", ".join(sorted(self._inherited)) or "none"
            raise ValueError(
                f"systemd:{name}: the service manager passed no descriptor of that name "
                f"(it passed: {known})"
            )
        return socket.socket(fileno=fd)

    def keep(
        self,
        wanted: Iterable[tuple[Listener, int]],
        shared: Iterable[tuple[Listener, int]] = (),
    ) -> None:
        """Close all sockets but these; those of the service manager wait to be used again.

        Args:
            wanted: listener and position of those that stay open.
            shared: of those that workers have, who may still accept from them.
        """
        keys = {_key(listener, position) for listener, position in wanted}
        used = {_key(listener, position) for listener, position in shared}
        for key in self._open.keys() - keys:
            if match := _MANAGED.fullmatch(key[0]):
                self._inherited[match[1]] = self._open.pop(key).detach()
            else:
                close_listening(self._open.pop(key), shared=key in used)
            del self._good[key]
            self._all = None

    def all(self) -> Mapping[Key, socket.socket]:
        """Return the open sockets; borrowed.  The same object until there are others."""
        if self._all is None:
            self._all = dict(self._open)
        return self._all

    def close(self) -> None:
        """Close all sockets, inherited ones that were never used included."""
        for key, found in self._open.items():
            close_listening(found, shared=not self.is_ours(key))
        self._open.clear()
        while self._inherited:
            os.close(self._inherited.popitem()[1])


def _positions(listener: Listener, count: int) -> range:
    """Return the positions of so many workers that have a socket each."""
    return range(count if listener.shards else min(count, 1))


def _key(listener: Listener, position: int) -> Key:
    return listener.address, listener.shards, position if listener.shards else 0
