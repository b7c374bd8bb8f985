"""An ASGI application as a worker: uvicorn serves, on the supervisor's listeners.

As a function that a zygote calls, or as a program:

    function = "pyforkfd.supervisor.asgi:serve"
    kwargs = { app = "shop:app", log_level = "warning" }

    command = ["python3", "-m", "pyforkfd.supervisor.asgi", "shop:app", "--log-level=warning"]

uvicorn closes listeners and idle connections at once when it ends.  This module accepts by
itself, so that accepting can be paused and no connection is closed while a request is on its
way.  These parts of uvicorn are used: ``Config`` with ``http_protocol_class``,
``ws_protocol_class``, ``encoded_headers``, ``ssl`` and ``get_loop_factory``; ``Server`` with
``startup``, ``on_tick``, ``lifespan`` and ``server_state``.  None has an underscore; uvicorn
calls none of them stable.
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

_AT_ONCE = 8  # connections accepted in a turn: the rest is left to the other workers
_OUT_OF_DESCRIPTORS = 0.5  # seconds until the next try
_RESERVED = {"app", "host", "port", "uds", "fd", "workers", "reload", "limit_max_requests"}
_CLOSE = (b"connection", b"close")


def serve(app: Application, **options: Any) -> None:
    """Serve until the supervisor orders a drain, or SIGTERM comes.

    Args:
        app: ``"package.module:attribute"``, or the application itself.
        options: options of uvicorn.Config, without those for listeners and workers.

    Raises:
        ValueError: an option belongs to the supervisor, or there is no listener.
        SystemExit: the application could not be imported or started; uvicorn has logged why.
    """
    if taken := sorted(_RESERVED & options.keys()):
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
    """A server that accepts by itself and drains without losing a request."""

    def __init__(
        self, config: uvicorn.Config, worker: Worker | None, listeners: dict[str, socket.socket]
    ) -> None:
        super().__init__(config)
        self._worker = worker
        self._listeners = listeners
        self._acceptors: dict[str, _Acceptor] = {}
        self._connecting: set[asyncio.Task[None]] = set()  # accepted, not yet handed to uvicorn
        self._counted = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # starts the application, binds nothing
        for name, sock in self._listeners.items():
            self._accept_from(name, sock)
        worker = self._worker
        if worker is None:
            ff.notify(ready=True)
            return
        for order in ("pause", "resume", "stop_accepting", "resume_accepting"):
            worker.on(order, lambda _: self._apply_accepting())
        worker.on("accept", self._borrow)
        worker.on("return", self._give_back)
        worker.on("drain", lambda _: self._drain())
        worker.on("orphaned", lambda _: self._drain())
        worker.attach()
        self._apply_accepting()
        worker.ready()

    def _accept_from(self, name: str, sock: socket.socket) -> None:
        sock.setblocking(False)
        acceptor = self._acceptors[name] = _Acceptor(sock, self._connect_soon)
        acceptor.start()

    def _connect_soon(self, sock: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(sock))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self._protocol, sock, ssl=self.config.ssl)
        except OSError as error:  # the client is gone; ssl.SSLError is an OSError too
            log.debug("connection: not established: %s", error)
            sock.close()

    def _protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def _apply_accepting(self) -> None:
        accepting = self._worker is None or self._worker.accepting
        for acceptor in self._acceptors.values():
            acceptor.start() if accepting else acceptor.stop()

    def _borrow(self, order: Order) -> None:
        """Accept from the shards of an absent sibling too."""
        for name, fd in order.fds.items():
            if name not in self._acceptors:
                self._accept_from(name, socket.socket(fileno=fd.detach()))
        self._apply_accepting()

    def _give_back(self, order: Order) -> None:
        for name in order.fds:
            if (acceptor := self._acceptors.pop(name, None)) is not None:
                acceptor.close()

    @property
    def _draining(self) -> bool:
        return self._worker is not None and (self._worker.draining or self._worker.orphaned)

    def _drain(self) -> None:
        """Answer each connection once more, with ``Connection: close``.

        No connection is closed for being idle, or for never having sent anything: its request
        may be on its way.  Those that stay silent are closed by stop_signal, when
        drain_timeout has passed.
        """
        for acceptor in self._acceptors.values():
            acceptor.close()
        if _CLOSE not in self.config.encoded_headers:
            # Headers are made anew each second from the first list; the second is in use now.
            self.config.encoded_headers.append(_CLOSE)
            self.server_state.default_headers.append(_CLOSE)

    async def on_tick(self, counter: int) -> bool:
        """Count requests and look for the end of a drain, ten times a second."""
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
                connection.shutdown()  # closes with 1012, service restart: the client reconnects

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for acceptor in self._acceptors.values():
            acceptor.close()
        await super().shutdown(sockets=[])
        if self._worker is not None:
            self._worker.detach()


class _Acceptor:
    """A reader of one listener that accepts while it is started."""

    def __init__(self, sock: socket.socket, on_accept: Callable[[socket.socket], None]) -> None:
        self._sock = sock
        self._on_accept = on_accept
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
        """Close this process's copy; its siblings accept the connections that wait."""
        self.stop()
        self._sock.close()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # RLIMIT_NOFILE, most likely: accept(2)
                log.error("accept: %s", error)
                self.stop()
                self._retry = self._loop.call_later(_OUT_OF_DESCRIPTORS, self.start)
                return
            sock.setblocking(False)
            self._on_accept(sock)


def main(args: Sequence[str] | None = None) -> None:
    """Serve the application that the command line names, with uvicorn's options."""
    parser = argparse.ArgumentParser(prog="python -m pyforkfd.supervisor.asgi")
    parser.add_argument("app", help="package.module:attribute")
    parser.add_argument(
        "--app-dir", default=".", help="the directory in which modules are searched first"
    )
    for name, parameter in inspect.signature(uvicorn.Config).parameters.items():
        if name not in _RESERVED:
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
