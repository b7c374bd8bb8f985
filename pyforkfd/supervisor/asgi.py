"""An ASGI application as a worker: uvicorn serves, on the supervisor's listeners.

As a function that a zygote calls, or as a program:

    function = "pyforkfd.supervisor.asgi:serve"
    kwargs = { app = "shop:app", log_level = "warning" }

    command = ["python3", "-m", "pyforkfd.supervisor.asgi", "shop:app", "--log-level=warning"]

uvicorn gives up listeners and idle connections at once; here the accepting is ours, so that it
can be paused, and so that nobody's connection is closed while a request is on its way.  Of
uvicorn's own, these are used: ``Config`` with ``http_protocol_class``, ``ws_protocol_class``,
``encoded_headers``, ``ssl`` and ``get_loop_factory``; ``Server`` with ``startup``, ``on_tick``,
``lifespan`` and ``server_state``.  None has an underscore; uvicorn calls none of them stable.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import uvicorn

import pyforkfd as ff

from .worker._worker import Order, Worker, current

__all__ = ["main", "serve"]

log = logging.getLogger("pyforkfd.supervisor.asgi")

Application: TypeAlias = str | Callable[..., Any]

_AT_ONCE = 8  # accepted in a turn: the rest is left to the other workers
_OUT_OF_DESCRIPTORS = 0.5  # seconds until the next try
_OURS = {"app", "host", "port", "uds", "fd", "workers", "reload", "limit_max_requests"}
_CLOSE = (b"connection", b"close")


def serve(app: Application, **options: Any) -> None:
    """Serve until the supervisor, or SIGTERM, says that it is enough.

    Args:
        app: ``"package.module:attribute"``, or the application itself.
        options: uvicorn's, see uvicorn.Config, but for where to listen and for workers.

    Raises:
        ValueError: an option that the supervisor decides; or there is no listener.
        SystemExit: the application could not be imported or started; it has said why.
    """
    if taken := sorted(_OURS & options.keys()):
        raise ValueError(f"serve: {', '.join(taken)}: the supervisor decides that")
    worker = current()
    listeners = worker.listeners() if worker else _systemd_listeners()
    if not listeners:
        raise ValueError("serve: no listener was given to this process (LISTEN_FDS, FORKFD_WORKER)")
    config = uvicorn.Config(app, **options)
    if not config.loaded:
        config.load()
    factory = config.get_loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_Server(config, worker, listeners).serve())


def _systemd_listeners() -> dict[str, socket.socket]:
    return {given.name: given.listener() for given in ff.listen_fds()}


class _Server(uvicorn.Server):  # type: ignore[misc]  # the same answer without uvicorn's types
    """Accepts by itself, and leaves in the order that loses nothing."""

    def __init__(
        self, config: uvicorn.Config, worker: Worker | None, listeners: dict[str, socket.socket]
    ) -> None:
        super().__init__(config)
        self._worker = worker
        self._given = listeners
        self._acceptors: dict[str, _Acceptor] = {}
        self._connecting: set[asyncio.Task[None]] = set()  # accepted, not uvicorn's yet
        self._counted = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # the application's own start; it binds nothing
        for name, sock in self._given.items():
            self._accept_from(name, sock)
        worker = self._worker
        if worker is None:
            ff.notify(ready=True)
            return
        for order in ("pause", "resume", "stop_accepting", "resume_accepting"):
            worker.on(order, lambda _: self._follow())
        worker.on("accept", self._borrow)
        worker.on("return", self._give_back)
        worker.on("drain", lambda _: self._drain())
        worker.on("orphaned", lambda _: self._drain())
        worker.attach()
        self._follow()
        worker.ready()

    def _accept_from(self, name: str, sock: socket.socket) -> None:
        sock.setblocking(False)
        acceptor = self._acceptors[name] = _Acceptor(sock, self._greet)
        acceptor.start()

    def _greet(self, sock: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(sock))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self._protocol, sock, ssl=self.config.ssl)
        except OSError as error:  # the client has gone; ssl.SSLError is one as well
            log.debug("a connection came to nothing: %s", error)
            sock.close()

    def _protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def _follow(self) -> None:
        accepting = self._worker is None or self._worker.accepting
        for acceptor in self._acceptors.values():
            acceptor.start() if accepting else acceptor.stop()

    def _borrow(self, order: Order) -> None:
        """Shards of a sibling that is not there."""
        for name, fd in order.fds.items():
            if name not in self._acceptors:
                self._accept_from(name, socket.socket(fileno=fd.detach()))
        self._follow()

    def _give_back(self, order: Order) -> None:
        for name in order.fds:
            if (acceptor := self._acceptors.pop(name, None)) is not None:
                acceptor.close()

    @property
    def _draining(self) -> bool:
        return self._worker is not None and (self._worker.draining or self._worker.orphaned)

    def _drain(self) -> None:
        """Whoever is connected gets one more answer, which says that it was the last.

        No connection is closed for being idle, or for never having said anything: its request
        may be on its way.  Those that stay silent are cut by stop_signal, when the
        supervisor's patience ends.
        """
        for acceptor in self._acceptors.values():
            acceptor.close()
        if _CLOSE not in self.config.encoded_headers:
            # The list in use has it at once, those that each second brings from the other.
            self.config.encoded_headers.append(_CLOSE)
            self.server_state.default_headers.append(_CLOSE)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self._worker is not None:
            total = self.server_state.total_requests
            self._worker.count(total - self._counted)
            self._counted = total
        if self._draining:
            self._close_websockets()
            if not self.server_state.connections and not self._connecting:
                return True
        enough: bool = await super().on_tick(counter)
        return enough

    def _close_websockets(self) -> None:
        kind = self.config.ws_protocol_class
        for connection in list(self.server_state.connections):
            if kind is not None and isinstance(connection, kind):
                connection.shutdown()  # says 1012, service restart: the client comes again

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for acceptor in self._acceptors.values():
            acceptor.close()
        await super().shutdown(sockets=[])
        if self._worker is not None:
            self._worker.detach()


class _Acceptor:
    """Accepts from one socket while it is started."""

    def __init__(self, sock: socket.socket, greet: Callable[[socket.socket], None]) -> None:
        self._sock = sock
        self._greet = greet
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._started = False

    def start(self) -> None:
        if not self._started and self._sock.fileno() >= 0:
            self._started = True
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def stop(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._started:
            self._started = False
            self._loop.remove_reader(self._sock.fileno())

    def close(self) -> None:
        """Close this process's copy: connections that wait are for the others."""
        self.stop()
        self._sock.close()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no more descriptors, most likely: accept(2)
                log.error("accept: %s", error)
                self.stop()
                self._retry = self._loop.call_later(_OUT_OF_DESCRIPTORS, self.start)
                return
            sock.setblocking(False)
            self._greet(sock)


def main(args: Sequence[str] | None = None) -> None:
    """Serve what the command line says; uvicorn's options by their names."""
    parser = argparse.ArgumentParser(prog="python -m pyforkfd.supervisor.asgi")
    parser.add_argument("app", help="package.module:attribute")
    parser.add_argument("--app-dir", default=".", help="where modules are looked for first")
    for name, parameter in inspect.signature(uvicorn.Config).parameters.items():
        if name not in _OURS:
            _add_option(parser, name, parameter.default)
    options = vars(parser.parse_args(args))
    sys.path.insert(0, options.pop("app_dir"))
    serve(**options)


def _add_option(parser: argparse.ArgumentParser, name: str, default: Any) -> None:
    flag = "--" + name.replace("_", "-")
    if isinstance(default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
    elif default is None or isinstance(default, str | int | float):
        kind = _value if default is None else type(default)
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS)


def _value(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


if __name__ == "__main__":
    main()
