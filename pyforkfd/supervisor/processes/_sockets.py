"""The listening sockets: made once, kept as long as anybody is to accept from them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping

import pyforkfd as ff
from pyforkfd._closing import Closing
from pyforkfd.supervisor.spec._spec import Listener

# What a socket is known by: whoever changes nothing but a backlog means the same one.
Key = tuple[str, bool, int]


class Sockets(Closing):
    """Sockets by address and position.  Owns them; a context manager that closes them."""

    def __init__(
        self,
        inherited: Iterable[ff.ListenFd] = (),
        adopted: Mapping[Key, socket.socket] | None = None,
    ) -> None:
        """Nothing is bound yet.

        Args:
            inherited: from our own service manager, for ``systemd:NAME``; taken.
            adopted: from a predecessor; taken.

        Raises:
            ValueError: two that were inherited have the same name; all are closed.
        """
        self._inherited: dict[str, int] = {}
        self._open: dict[Key, socket.socket] = dict(adopted or {})
        twice = set()
        for given in inherited:
            if given.name in self._inherited:
                twice.add(given.name)
                os.close(given.fd)
            else:
                self._inherited[given.name] = given.fd
        if twice:
            self.close()
            raise ValueError(
                f"several descriptors of the service manager are called {', '.join(twice)}: give "
                "each socket a FileDescriptorName= of its own"
            )

    def get(self, listener: Listener, position: int) -> socket.socket:
        """The socket that the worker of a position accepts from; borrowed.

        It is made if it is not there.  A listener with shards has one for each position.

        Raises:
            OSError: as the kernel refuses; it names the address.
            ValueError: the address makes no sense, or the service manager gave nothing of
                that name.
        """
        key = _key(listener, position)
        if (found := self._open.get(key)) is None:
            found = self._open[key] = self._make(listener, key[2])
        return found

    def _make(self, listener: Listener, position: int) -> socket.socket:
        address = listener.address
        if match := re.fullmatch("systemd:(.+)", address):
            return self._take(match[1])
        if position > 0:
            address = self._with_port(listener)
        return ff.bind(
            address,
            backlog=listener.backlog,
            reuse_port=listener.shards,
            nodelay=listener.nodelay,
            ipv6_only=listener.ipv6_only,
            mode=listener.mode,
        )

    def _with_port(self, listener: Listener) -> str:
        """Port 0 is chosen once: the other shards are on the port of the first."""
        host, colon, port = listener.address.rpartition(":")
        if port != "0":
            return listener.address
        return f"{host}{colon}{self.get(listener, 0).getsockname()[1]}"

    def _take(self, name: str) -> socket.socket:
        fd = self._inherited.pop(name, None)
        if fd is None:
            known = ", ".join(sorted(self._inherited)) or "none"
            raise ValueError(
                f"systemd:{name}: no descriptor of that name was given to us ({known})"
            )
        return socket.socket(fileno=fd)

    def keep(self, wanted: Iterable[tuple[Listener, int]]) -> None:
        """Close all but these."""
        keys = {_key(listener, position) for listener, position in wanted}
        for key in self._open.keys() - keys:
            self._open.pop(key).close()

    def all(self) -> dict[Key, socket.socket]:
        """Those that are open; borrowed."""
        return dict(self._open)

    def close(self) -> None:
        """Close them all, those included that nobody asked for."""
        for found in self._open.values():
            found.close()
        self._open.clear()
        while self._inherited:
            os.close(self._inherited.popitem()[1])


def _key(listener: Listener, position: int) -> Key:
    return listener.address, listener.shards, position if listener.shards else 0
