"""The workers' processes: start, messages, signals, end."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pyforkfd as ff
from pyforkfd._process import TRACER_PAUSE
from pyforkfd._untrusted_peers import drain, refuse_descriptors
from pyforkfd.supervisor._shortage import is_shortage, reserved
from pyforkfd.supervisor.cgroups._file import CgroupError
from pyforkfd.supervisor.cgroups._leaf import Leaf
from pyforkfd.supervisor.control._status import WorkerDetails
from pyforkfd.supervisor.logs._log_file import Switch
from pyforkfd.supervisor.spec._root_workers import powerless_root
from pyforkfd.supervisor.spec._spec import Service
from pyforkfd.supervisor.state._events import (
    BecameReady,
    Ended,
    Event,
    Spawned,
    SpawnFailed,
)
from pyforkfd.supervisor.state._model import Phase, Worker
from pyforkfd.supervisor.worker._messages import (
    Accept,
    Drain,
    OrderMessage,
    Return,
    SwitchLog,
)
from pyforkfd.supervisor.worker._protocol import order_name
from pyforkfd.zygote import Zygote, ZygoteError

from ._cause_of_death import cause
from ._launch import Launch, prepare, send_order
from ._notify_socket import NotifySocket
from ._orphans import reap_orphans
from ._readiness import accepts, inodes
from ._receiver import Receiver
from ._resources import Resources, end_leaf, sweep_leafs
from ._running import Running
from ._zygotes import import_directories, zygote_for
from .listening._guard import SocketGuard

log = logging.getLogger("pyforkfd.supervisor")

_EARLY = 10.0  # seconds in which a program that cannot change its user has ended
_DENIED = re.compile(rb"not permitted|EPERM|[Pp]ermission ?(denied|Error)")
_FAREWELL = 2.0  # seconds for killed processes to end when the supervisor does


class Workers:
    """Starts and ends workers' processes, and turns what happens to them into events.

    Attributes:
        resources: what workers are started with; borrowed.
        waiting: ids of workers that wait for their zygote, or for their turn.
        guard: of the listening sockets.
        receiver: of the messages of workers.
    """

    def __init__(
        self,
        resources: Resources,
        post: Callable[[Event], None],
        on_message: Callable[[str, int, Any], None] | None = None,
    ) -> None:
        """Begin without a worker.

        Args:
            resources: borrowed.
            post: takes the events.
            on_message: takes messages to the application: component, worker's id, data.
        """
        self.resources = resources
        self.post = post
        self.receiver = Receiver(resources, post, on_message)
        self.waiting: set[int] = set()
        self._running = resources.running
        self._emptying = resources.emptying
        self._powerless: set[tuple[str, int]] = set()  # components that were reported
        self.guard = SocketGuard(resources.sockets, resources.running, resources.reactor, post)

    def __contains__(self, worker_id: int) -> bool:
        return worker_id in self._running

    def __iter__(self) -> Iterator[Running]:
        return iter(list(self._running.values()))

    # Birth

    def start(self, worker: Worker, service: Service) -> None:
        """Start a worker, or let it wait for its zygote; posts Spawned or SpawnFailed."""
        self.waiting.discard(worker.id)
        if worker.id in self._running:
            return
        try:
            with reserved():
                zygote = None
                if worker.spec.function is not None:
                    zygote = self._zygote(worker, service)
                    if zygote is None:
                        self.waiting.add(worker.id)
                        return
                launch = prepare(worker, service, self.resources, zygote)
                process, channel = launch.start()
        except Exception as error:  # whatever it is: no other worker is to pay for this one
            if not isinstance(error, OSError | ValueError | LookupError | ZygoteError):
                log.exception("%s: worker %d: not started", worker.component, worker.id)
            self.sweep()
            why = str(error) or type(error).__name__
            self.post(SpawnFailed(worker.id, why, is_shortage(error)))
            return
        self.resources.succession.put_worker(worker.id, process, channel, launch.notify)
        try:
            self.adopt(worker, service, process, channel, launch.notify, launch.leaf)
        except OSError as error:  # no memory, or no watch of epoll(7), for its descriptors
            self._undo_start(worker.id, process, launch)
            self.post(SpawnFailed(worker.id, str(error), is_shortage(error)))
            return
        self.post(Spawned(worker.id, process.pid))
        self._report_powerless(worker)

    def _report_powerless(self, worker: Worker) -> None:
        """Report, once for a component and generation, that its workers are a weak root."""
        key = (worker.component, worker.generation)
        if worker.spec.privileges.capabilities is not None or key in self._powerless:
            return
        self._powerless.add(key)
        if (remedy := powerless_root(worker.spec)) is not None:
            log.info(
                "%s: runs as root without capabilities: setuid, setgid and chown fail with "
                "EPERM; if it changes its user itself, %s",
                worker.component,
                remedy,
            )

    def _undo_start(self, worker_id: int, process: ff.Process, launch: Launch) -> None:
        """End a worker that cannot be watched, and free what belonged to it."""
        process.kill()
        process.wait()
        drain(launch.channel)
        drain(launch.notify)
        self.resources.succession.drop_worker(worker_id)
        process.close()
        launch.channel.close()
        launch.notify.close()
        self.resources.output.worker_gone(worker_id, time.monotonic())
        if launch.leaf is not None:
            self._emptying.append(launch.leaf)

    def _zygote(self, worker: Worker, service: Service) -> Zygote | None:
        spec = zygote_for(service, worker.spec)

        def directories() -> list[str]:
            found, refused = import_directories(service, worker.spec)
            for why in refused:
                log.info("%s", why)
            return found

        return self.resources.zygotes.get(spec, worker.generation, directories)

    def adopt(
        self,
        worker: Worker,
        service: Service,
        process: ff.Process,
        channel: ff.FdChannel,
        notify: NotifySocket | None,
        leaf: Leaf | None,
    ) -> None:
        """Watch a worker's process.

        Args:
            worker: as the state has it.
            service: the specification of its generation.
            process: taken.
            channel: taken; it may be closed already.
            notify: taken.
            leaf: taken.

        Raises:
            OSError: ENOMEM or ENOSPC of epoll_ctl(2): nothing is taken.
        """
        worker_id, reactor = worker.id, self.resources.reactor
        sockets = self.resources.sockets.of(service, worker.spec, worker.position)
        known = inodes(sock.fileno() for sock in sockets.values())
        keys = self.resources.sockets.keys_of(service, worker.spec, worker.position)
        self.guard.know(keys)
        with ExitStack() as undo:
            reactor.add(process.fileno(), lambda _: self._on_end(worker_id))
            undo.callback(reactor.remove, process.fileno())
            if not channel.closed:
                refuse_descriptors(channel)  # a predecessor's may accept them
                reactor.add(channel.fileno(), lambda _: self.receiver.read_channel(worker_id))
                undo.callback(reactor.remove, channel.fileno())
            if notify is not None:
                reactor.add(notify.fileno(), lambda _: self.receiver.read_notify(notify, worker_id))
            undo.pop_all()
        self._running[worker_id] = Running(worker, process, channel, notify, known, keys, leaf)
        if leaf is not None:
            self.resources.pressure.watch(worker, leaf)

    # Life

    def signal(self, worker_id: int, signum: int) -> None:
        """Send a signal to a worker; one that waits to be started is given up."""
        if (running := self._running.get(worker_id)) is not None:
            running.leaving = running.leaving or signum == running.worker.spec.stop_signal
            running.process.send_signal(signum)
        else:
            self._give_up(worker_id)

    def kill(self, worker_id: int) -> None:
        """Kill a worker with its children; one that waits to be started is given up."""
        if (running := self._running.get(worker_id)) is not None:
            _kill_tree(running)
            running.process.kill()
        else:
            self._give_up(worker_id)

    def _give_up(self, worker_id: int) -> None:
        if worker_id in self.waiting:  # else its start has failed, and the event is on its way
            self.waiting.discard(worker_id)
            self.post(SpawnFailed(worker_id, "it was given up before it was started"))

    def send(
        self, worker_id: int, order: OrderMessage, fds: Mapping[str, ff.HasFileno] = {}
    ) -> None:
        """Send an order over a worker's channel; never wait."""
        running = self._running.get(worker_id)
        if running is None:
            return
        running.leaving = running.leaving or isinstance(order, Drain)
        if running.channel.closed or not send_order(running.channel, order, fds):
            log.warning(
                "%s: worker %d: order %s: not sent: its channel is full or closed",
                running.worker.component,
                worker_id,
                order_name(order),
            )

    def move_shards(self, worker: Worker, service: Service, position: int, *, back: bool) -> None:
        """Lend another position's shards to a worker, or take them back."""
        shards = {
            f"{name}/{position}": self.resources.sockets.get(service.listeners[name], position)
            for name in worker.spec.listen
            if service.listeners[name].shards
        }
        if not back and (running := self._running.get(worker.id)) is not None:
            running.sockets |= self.resources.sockets.keys_of(service, worker.spec, position)
        self.send(worker.id, Return() if back else Accept(), shards)

    def measure(self, now: float) -> dict[int, WorkerDetails]:
        """Measure the workers that have a process: id -> heartbeat, memory, reported status."""
        return {
            worker_id: WorkerDetails(
                text=running.status,
                beat_age=self.resources.watch.beat_age(worker_id, now),
                memory=self._running.memory(worker_id),
            )
            for worker_id, running in self._running.items()
        }

    def send_log_file(self, switch: Switch | None) -> None:
        """Send the new log file to the workers that have an older one; None: there is none."""
        file = self.resources.output.file
        if switch is None or file is None:
            return
        for worker_id in switch.workers:
            self.send(worker_id, SwitchLog(switch.turn), {"log": file})

    def poll_readiness(self, workers: Iterable[Worker]) -> None:
        """Poll /proc for those of the workers that do not report their readiness."""
        for worker in list(workers):
            running = self._running.get(worker.id) if is_polled(worker) else None
            if running is not None and accepts(running.process.pid, running.listeners):
                self.post(BecameReady(worker.id))

    # Death

    def _on_end(self, worker_id: int) -> None:
        running = self._running[worker_id]
        _kill_tree(running)
        status = running.process.poll()
        if status is None:  # its tracer reaps it first
            self.resources.reactor.rest(running.process.fileno(), TRACER_PAUSE)
            return
        self.guard.ended(running)
        kills = None
        if running.leaf is not None:
            try:
                kills = running.leaf.oom_kills()
            except CgroupError as error:
                log.warning("%s: worker %d: %s", running.worker.component, worker_id, error)
        remedy = None if status.success else self._remedy(running.worker)
        self.post(Ended(worker_id, *cause(status, oom_kills=kills or 0, remedy=remedy)))

    def _remedy(self, worker: Worker) -> str | None:
        """Return what to write, if a worker seems to have failed for want of a capability."""
        spec = worker.spec
        if time.monotonic() - worker.born > _EARLY or (remedy := powerless_root(spec)) is None:
            return None
        lines = self.resources.output.last_lines(spec.name, worker.id)
        return remedy if spec.stderr != "capture" or any(map(_DENIED.search, lines)) else None

    def forget(self, worker_id: int) -> None:
        """Free what belonged to a worker that was reaped or not started."""
        self.waiting.discard(worker_id)
        running = self._running.pop(worker_id, None)
        if running is None:
            return
        if running.notify is not None:
            drain(running.notify)  # before the keeper closes its duplicate
        self.receiver.close_channel(running)
        self.resources.succession.drop_worker(worker_id)
        self.resources.reactor.remove(running.process.fileno())
        running.process.close()
        if running.notify is not None:
            self.resources.reactor.remove(running.notify.fileno())
            running.notify.close()
        self.resources.output.worker_gone(worker_id, time.monotonic())
        if running.leaf is not None:
            self.resources.pressure.forget(worker_id)
            self._emptying.append(running.leaf)
            self.sweep()

    def sweep(self) -> None:
        """Remove cgroups that have become empty; as pid 1, reap orphans."""
        sweep_leafs(self._emptying)
        if os.getpid() == 1:
            reap_orphans({running.process.pid for running in self})

    @property
    def unswept(self) -> bool:
        """Whether :meth:`sweep` has work that no event will announce."""
        return bool(self._emptying) or os.getpid() == 1

    def abandon(self) -> None:
        """Kill and reap all workers: the supervisor ends, and none may outlive it.

        After an orderly stop there is none.
        """
        self.guard.close()
        for running in self:
            _kill_tree(running)
            running.process.kill()
            running.process.wait()
            self.forget(running.worker.id)
        until = time.monotonic() + _FAREWELL
        for leaf in self._emptying:
            end_leaf(leaf, until)


def is_polled(worker: Worker) -> bool:
    """Return whether a worker's readiness must be found by polling /proc."""
    return worker.phase is Phase.BOOTING and worker.spec.readiness == "accept"


def _kill_tree(running: Running) -> None:
    if running.leaf is not None:
        try:
            running.leaf.kill()
        except CgroupError as error:
            log.warning("%s", error)
    try:
        # The pid is the worker's until it is reaped, so this is no other process' group.
        os.killpg(running.process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # all of the group has ended, or what is left may not be signalled
