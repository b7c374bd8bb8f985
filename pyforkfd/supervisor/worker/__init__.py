"""A worker's side of the supervisor: listeners, readiness, orders, heartbeat.

    from pyforkfd.supervisor import worker

    me = worker.current()
    listener = me.listeners()["http"]
    me.on("drain", lambda order: listener.close())
    me.start_thread()  # or me.attach(loop), or me.poll() in a loop of one's own
    me.ready()

A program can be a worker without this module: LISTEN_FDS and NOTIFY_SOCKET are enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyforkfd._lazy import lazy

if TYPE_CHECKING:
    from ._protocol import Order
    from ._worker import Worker, current

__all__ = ["Order", "Worker", "current"]

if not TYPE_CHECKING:
    # The supervisor imports the protocol from this package, and nothing else of it.
    __getattr__, __dir__ = lazy(
        __name__, {"Order": "_protocol", "Worker": "_worker", "current": "_worker"}
    )
