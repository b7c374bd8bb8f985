"""The messages of workers: over their channels, and over their notify sockets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from pyforkfd._untrusted_peers import discard, drain
from pyforkfd.supervisor.state._events import BecameReady, Event, Leaving, WentStale
from pyforkfd.supervisor.state._model import Worker
from pyforkfd.supervisor.worker._messages import (
    LogSwitched,
    Message,
    Ready,
    Status,
    Stopping,
)
from pyforkfd.supervisor.worker._protocol import ProtocolError, decode_event
from pyforkfd.supervisor.worker._receiving import receive

from ._notify_socket import NotifySocket, worker_of
from ._resources import Resources
from ._running import Running

log = logging.getLogger("pyforkfd.supervisor")


class Receiver:
    """Reads messages of workers, and turns them into events; malformed ones are counted."""

    def __init__(
        self,
        resources: Resources,
        post: Callable[[Event], None],
        on_message: Callable[[str, int, Any], None] | None,
    ) -> None:
        """Watch the notify socket that all workers have, if there is one.

        Args:
            resources: borrowed.
            post: takes the events.
            on_message: takes messages to the application: component, worker's id, data.
        """
        self._resources = resources
        self._running = resources.running
        self._post = post
        self._on_message = on_message
        if (shared := resources.notify) is not None:
            resources.reactor.add(shared.fileno(), lambda _: self.read_notify(shared))

    def read_notify(self, notify: NotifySocket, owner: int | None = None) -> None:
        """Read messages of a NOTIFY_SOCKET, sd_notify(3); those of others than its owner are lost.

        Args:
            notify: the socket.
            owner: id of the worker that has it; None: all workers have it.
        """
        running = self._running.items() if owner is None else [(owner, self._running[owner])]
        pids = {found.process.pid: worker_id for worker_id, found in running}
        for pid, fields in notify.read():
            if (worker_id := worker_of(pid, pids)) is not None:
                self._on_notify(worker_id, fields)
            elif owner is not None:
                why = f"NOTIFY_SOCKET: process {pid} is none of the worker's, or has ended"
                self._running[owner].refusals.add(why, time.monotonic())

    def _on_notify(self, worker_id: int, fields: Mapping[str, str]) -> None:
        if "STATUS" in fields:
            self._running[worker_id].status = fields["STATUS"]
        if fields.get("READY") == "1":
            self._post(BecameReady(worker_id))
        if fields.get("STOPPING") == "1":
            self._post(Leaving(worker_id))
        if fields.get("WATCHDOG") == "1":
            self._resources.watch.beat(worker_id)
        if fields.get("WATCHDOG") == "trigger":
            self._post(WentStale(worker_id, "the worker reported WATCHDOG=trigger"))

    def read_channel(self, worker_id: int) -> None:
        """Read a message of a worker's channel, if there is one."""
        running = self._running[worker_id]
        try:
            received = receive(running.channel, 0)
            if received is None:
                self.close_channel(running)
                return
            try:
                event = decode_event(received)
            finally:
                discard(received)
        except TimeoutError:
            return
        except ProtocolError as error:
            running.refusals.add(str(error), time.monotonic())
            return
        except OSError as error:
            log.error("%s: worker %d: channel: %s", running.worker.component, worker_id, error)
            self.close_channel(running)
            return
        match event:
            case Ready():
                self._post(BecameReady(worker_id, speaks=True))
            case Stopping():
                self._post(Leaving(worker_id))
            case Status(text):
                running.status = text
            case LogSwitched(turn) if self._resources.output.file is not None:
                self._resources.output.file.confirm(worker_id, turn)
            case Message(data):
                self._on_app_message(running.worker, data)

    def _on_app_message(self, worker: Worker, data: Any) -> None:
        if self._on_message is None:
            return
        try:
            self._on_message(worker.component, worker.id, data)
        except Exception:  # the application's fault, perhaps on a message that is hostile
            log.exception("%s: worker %d: on_message failed", worker.component, worker.id)

    def report_refusals(self, now: float) -> None:
        """Report how many messages were refused since, where that is due."""
        for running in self._running.values():
            running.refusals.flush(now)

    def close_channel(self, running: Running) -> None:
        """Close our end of a worker's channel, if it is open."""
        running.refusals.flush(time.monotonic(), end=True)
        if not running.channel.closed:
            drain(running.channel)
            self._resources.reactor.remove(running.channel.fileno())
            self._resources.succession.drop_channel(running.worker.id)
            running.channel.close()
