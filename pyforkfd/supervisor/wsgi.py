"""A WSGI application as a worker: gunicorn's threads serve, on the supervisor's listeners.

As a function that a zygote calls, or as a program:

    function = "pyforkfd.supervisor.wsgi:serve"
    kwargs = { app = "shop:app", threads = 8 }

    command = ["python3", "-m", "pyforkfd.supervisor.wsgi", "--threads=8", "shop:app"]

The worker is gunicorn's ``gthread`` without gunicorn's master, which would close idle
connections two seconds after a worker is to leave.  These parts of gunicorn are used:
``BaseApplication``, ``cfg``, and of ``ThreadWorker`` the methods ``init_process``,
``init_signals``, ``run``, ``notify``, ``wait_for_and_dispatch_events``, ``enqueue_req``,
``murder_keepalived`` and ``on_pending_socket_readable``, with ``poller``, ``pending_conns``,
``nr``, ``nr_conns``, ``worker_connections``, ``max_keepalived`` and ``alive``.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.config import Config
from gunicorn.workers.gthread import ThreadWorker

import pyforkfd as ff

from .worker._worker import Worker, current

__all__ = ["main", "serve"]

Application: TypeAlias = str | Callable[..., Any]

_SILENT = 3600.0  # seconds until the first request of a connection, at most
_RESERVED = {"bind", "workers", "worker_class", "daemon", "pidfile", "reload", "max_requests"}


def serve(app: Application, **options: Any) -> None:
    """Serve until the supervisor orders a drain, or SIGTERM comes.

    Args:
        app: ``"package.module:attribute"``, or the application itself.
        options: gunicorn's settings by their names, without those for listeners and workers;
            ``threads`` is the one that matters.

    Raises:
        ValueError: an option belongs to the supervisor or does not exist in gunicorn, or there
            is no listener.
    """
    if taken := sorted(_RESERVED & options.keys()):
        raise ValueError(f"serve: {', '.join(taken)}: the supervisor decides that")
    worker = current()
    listeners = worker.listeners() if worker else _systemd_listeners()
    if not listeners:
        raise ValueError("serve: no listener was given to this process (LISTEN_FDS, FORKFD_WORKER)")
    application = _Application(app, options)
    cfg = application.cfg
    age = 0 if worker is None else worker.number
    sockets = list(listeners.values())
    _Thread.ours = worker
    _Thread(
        age, os.getppid(), sockets, application, cfg.timeout, cfg, cfg.logger_class(cfg)
    ).init_process()


def _systemd_listeners() -> dict[str, socket.socket]:
    return {given.name: given.listener() for given in ff.listen_fds()}


class _Application(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """The settings and the application, as gunicorn's worker expects them."""

    def __init__(self, app: Application, options: Mapping[str, Any]) -> None:
        self._app = app
        self._options = options
        super().__init__()

    def do_load_config(self) -> None:
        self.load_default_config()
        self.load_config()
        self.cfg.validate()

    def load_config(self) -> None:
        for name, value in self._options.items():
            if name not in self.cfg.settings:
                raise ValueError(f"serve: gunicorn has no setting {name!r}")
            self.cfg.set(name, value)

    def load(self) -> Any:
        return util.import_app(self._app) if isinstance(self._app, str) else self._app


class _Thread(ThreadWorker):  # type: ignore[misc]
    """A worker of gunicorn that follows orders and drains without losing a request."""

    ours: Worker | None = None
    worker_connections: int

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._most = self.worker_connections
        self._reported_ready = False
        self._counted = 0

    def init_signals(self) -> None:
        super().init_signals()
        # gunicorn's handler of SIGABRT shows no stacks, which dump_signal is for.
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        faulthandler.disable()
        faulthandler.enable()

    def run(self) -> None:
        if self.ours is not None and self.ours.listens:
            self.poller.register(self.ours, selectors.EVENT_READ, lambda _: self._on_channel())
        super().run()

    def _on_channel(self) -> None:
        assert self.ours is not None
        self._follow_orders()
        if self.ours.orphaned:  # a channel at its end stays readable
            self.poller.unregister(self.ours)
            self.alive = False

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait no longer than until the next beat."""
        if self.ours is not None:
            timeout = min(timeout, self.ours.interval)
        super().wait_for_and_dispatch_events(timeout)

    def notify(self) -> None:
        """Report readiness and follow orders, in every turn of gunicorn's loop."""
        super().notify()
        if not self._reported_ready:  # the loop runs, and has begun to accept
            self._reported_ready = True
            if self.ours is None:
                ff.notify(ready=True)
            else:
                self.ours.ready()
        if not self.alive:
            for conn in self.pending_conns:
                conn.timeout = 0.0  # it has never sent anything
        if self.ours is not None:
            self._follow_orders()

    def _follow_orders(self) -> None:
        assert self.ours is not None
        self.ours.poll()
        total: int = self.nr
        self.ours.count(total - self._counted)
        self._counted = total
        # gunicorn accepts nothing while it has worker_connections of them.
        self.worker_connections = self._most if self.ours.accepting else 0
        if self.ours.draining:
            self.max_keepalived = 0  # so every answer has Connection: close
            if self.nr_conns == 0:
                self.alive = False

    def enqueue_req(self, conn: Any) -> None:
        """Give a connection a thread once it has sent something, not before."""
        if conn.initialized or conn.data_ready:
            super().enqueue_req(conn)
            return
        conn.timeout = time.monotonic() + _SILENT
        self.pending_conns.append(conn)
        readable = functools.partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, readable)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close idle connections after ``keepalive`` seconds, but none during a drain.

        Its request may be on its way; stop_signal closes those that stay silent.
        """
        if force or self.ours is None or not self.ours.draining or not self.alive:
            super().murder_keepalived(force)


def main(args: Sequence[str] | None = None) -> None:
    """Serve the application that the command line names, with gunicorn's options."""
    parser = Config(prog="python -m pyforkfd.supervisor.wsgi").parser()
    options = {k: v for k, v in vars(parser.parse_args(args)).items() if v is not None}
    positional = options.pop("args", [])
    if len(positional) != 1:
        parser.error("name one application: package.module:attribute")
    sys.path.insert(0, options.pop("chdir", "."))
    serve(positional[0], **options)


if __name__ == "__main__":
    main()
