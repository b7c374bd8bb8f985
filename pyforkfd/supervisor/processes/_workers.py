"""The workers' processes: started, watched, told, signalled, ended, and forgotten."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyforkfd as ff
from pyforkfd.supervisor.cgroups._file import CgroupError
from pyforkfd.supervisor.cgroups._leaf import Leaf
from pyforkfd.supervisor.health._resident_memory import resident_memory
from pyforkfd.supervisor.logs._records import Origin
from pyforkfd.supervisor.spec._spec import Service, Stream
from pyforkfd.supervisor.state._events import (
    BecameReady,
    Ended,
    Event,
    Leaving,
    Spawned,
    SpawnFailed,
    WentStale,
)
from pyforkfd.supervisor.state._model import Phase, Worker
from pyforkfd.supervisor.worker._messages import (
    Accept,
    LogSwitched,
    Message,
    OrderMessage,
    Ready,
    Return,
    Status,
    Stopping,
)
from pyforkfd.supervisor.worker._protocol import ProtocolError, decode_event, order_name
from pyforkfd.supervisor.worker._receiving import Refusals, receive
from pyforkfd.zygote import ZygoteError

from ._cause_of_death import cause
from ._launch import Given, launch, send_order, zygote_for
from ._notify_socket import worker_of
from ._orphans import reap_strangers
from ._readiness import accepts, inodes
from ._resources import Rooms, end_leaf, leaf_name, sweep_leafs

log = logging.getLogger("pyforkfd.supervisor")

_FAREWELL = 2.0  # seconds for killed processes to be gone when we end


@dataclass(slots=True)
class Running:
    """A worker's process, and what belongs to it."""

    worker: Worker
    process: ff.Process
    channel: ff.FdChannel
    listeners: frozenset[int]
    leaf: Leaf | None = None
    status: str = ""
    refusals: Refusals = field(init=False)

    def __post_init__(self) -> None:
        self.refusals = Refusals(self._report_refusal)

    def _report_refusal(self, text: str) -> None:
        component, worker_id = self.worker.component, self.worker.id
        log.warning("%s: worker %d: message refused: %s", component, worker_id, text)


@dataclass(slots=True)
class Workers:
    """All that run, by their id.

    Attributes:
        rooms: what they are made with.
        post: takes what happens to them.
        on_message: takes what they send to the application: component, worker, data.
        waiting: ids of those that wait for their zygote.
    """

    rooms: Rooms
    post: Callable[[Event], None]
    on_message: Callable[[str, int, Any], None] | None = None
    waiting: set[int] = field(default_factory=set)
    _running: dict[int, Running] = field(default_factory=dict)
    _emptying: list[Leaf] = field(default_factory=list)  # killed, but not empty yet

    def __contains__(self, worker_id: int) -> bool:
        return worker_id in self._running

    def __iter__(self) -> Iterator[Running]:
        return iter(list(self._running.values()))

    # Birth

    def start(self, worker: Worker, service: Service) -> None:
        """Start one, or have it wait for its zygote; posts Spawned or SpawnFailed."""
        number = worker.id
        self.waiting.discard(number)
        if number in self._running:
            return
        leaf: Leaf | None = None
        writers: list[ff.HasFileno] = []
        try:
            zygote = None
            if worker.spec.function is not None:
                zygote = self.rooms.zygotes.get(zygote_for(service, worker.spec), worker.generation)
                if zygote is None:
                    self.waiting.add(number)
                    return
            leaf = self._leaf(worker)
            given = self._given(worker, service, leaf, writers)
            process, channel = launch(worker, given, zygote)
        except (OSError, ValueError, ZygoteError) as error:
            self.rooms.output.worker_gone(number, time.monotonic())
            if leaf is not None:
                self._emptying.append(leaf)
                self.sweep()
            self.post(SpawnFailed(number, str(error)))
            return
        finally:
            for writer in writers:
                writer.close()  # type: ignore[attr-defined]  # the worker has its own
        self.rooms.succession.put_worker(number, process, channel)
        self.adopt(worker, service, process, channel, leaf)
        self.post(Spawned(number, process.pid))

    def adopt(
        self,
        worker: Worker,
        service: Service,
        process: ff.Process,
        channel: ff.FdChannel,
        leaf: Leaf | None,
    ) -> None:
        """Watch a process; it, its channel and its leaf are taken."""
        number = worker.id
        known = inodes(sock.fileno() for sock in self._listeners(worker, service).values())
        self._running[number] = Running(worker, process, channel, known, leaf)
        self.rooms.reactor.add(process.fileno(), lambda _: self._on_end(number))
        if not channel.closed:
            self.rooms.reactor.add(channel.fileno(), lambda _: self._on_channel(number))
        if leaf is not None:
            self.rooms.pressure.watch(worker, leaf)

    def _listeners(self, worker: Worker, service: Service) -> dict[str, Any]:
        listeners, position = service.listeners, worker.position
        return {n: self.rooms.sockets.get(listeners[n], position) for n in worker.spec.listen}

    def _leaf(self, worker: Worker) -> Leaf | None:
        tree = self.rooms.cgroups
        if tree is None or worker.spec.cgroup == "off":
            return None
        leaf = tree.leaf(leaf_name(worker), worker.spec.limits)
        for what in leaf.missing:
            log.warning("%s: worker %d: %s", worker.component, worker.id, what)
        return leaf

    def _given(
        self, worker: Worker, service: Service, leaf: Leaf | None, writers: list[ff.HasFileno]
    ) -> Given:
        rooms = self.rooms
        origin = Origin(component=worker.component, worker=worker.id, generation=worker.generation)

        def stream(name: str, wanted: Stream) -> ff.FdSource | None:
            if wanted != "capture":
                return ff.DEVNULL if wanted == "null" else None
            writers.append(rooms.output.capture(origin, name).writer)
            return writers[-1]

        extras: dict[str, ff.HasFileno] = {"page": rooms.watch.page}
        if rooms.output.file is not None:
            rooms.output.file.give(worker.id)
            extras["log"] = rooms.output.file
        return Given(
            listeners=self._listeners(worker, service),
            notify_path=rooms.notify.path,
            die_with_us=rooms.succession.keeper is None,
            stdout=stream("stdout", worker.spec.stdout),
            stderr=stream("stderr", worker.spec.stderr),
            cgroup=None if leaf is None else leaf.fileno(),
            extras=extras,
            slot=rooms.watch.slot_of(worker.id),
        )

    # Life

    def signal(self, worker_id: int, signum: int) -> None:
        """Send a signal; one that waits for its zygote is given up."""
        if (running := self._running.get(worker_id)) is not None:
            running.process.send_signal(signum)
        else:
            self._give_up(worker_id)

    def kill(self, worker_id: int) -> None:
        """SIGKILL to all of it; one that waits for its zygote is given up."""
        if (running := self._running.get(worker_id)) is not None:
            _kill_tree(running)
            running.process.kill()
        else:
            self._give_up(worker_id)

    def _give_up(self, worker_id: int) -> None:
        if worker_id in self.waiting:  # or it has failed already, and nobody has heard of it yet
            self.waiting.discard(worker_id)
            self.post(SpawnFailed(worker_id, "it was given up while its zygote started"))

    def send(
        self, worker_id: int, order: OrderMessage, fds: Mapping[str, ff.HasFileno] = {}
    ) -> None:
        """Send an order over a worker's channel; never wait.

        Args:
            worker_id: of the worker; nothing is sent to one that has no process.
            order: the order.
            fds: name -> descriptor that goes with it; borrowed.

        Raises:
            ValueError: the order is no JSON or too long.
        """
        running = self._running.get(worker_id)
        if running is None:
            return
        if running.channel.closed or not send_order(running.channel, order, fds):
            log.warning(
                "%s: worker %d: order %s: not sent: its channel is full or closed",
                running.worker.component,
                worker_id,
                order_name(order),
            )

    def move_shards(self, worker: Worker, service: Service, position: int, *, back: bool) -> None:
        """Lend it another position's shards, or take them back."""
        shards = {
            f"{name}/{position}": self.rooms.sockets.get(service.listeners[name], position)
            for name in worker.spec.listen
            if service.listeners[name].shards
        }
        self.send(worker.id, Return() if back else Accept(), shards)

    def memory(self, worker_id: int) -> int | None:
        """Bytes that it uses: its cgroup's, else its main process's."""
        running = self._running.get(worker_id)
        if running is None:
            return None
        if running.leaf is not None:
            try:
                return running.leaf.working_set()
            except CgroupError:
                pass  # without the memory controller
        return resident_memory(running.process.pid)

    def read_notify(self) -> None:
        """Read the messages of NOTIFY_SOCKET, sd_notify(3)."""
        pids = {running.process.pid: worker_id for worker_id, running in self._running.items()}
        for pid, fields in self.rooms.notify.read():
            if (worker_id := worker_of(pid, pids)) is not None:
                self._on_notify(worker_id, fields)

    def _on_notify(self, worker_id: int, fields: Mapping[str, str]) -> None:
        if "STATUS" in fields:
            self._running[worker_id].status = fields["STATUS"]
        if fields.get("READY") == "1":
            self.post(BecameReady(worker_id))
        if fields.get("STOPPING") == "1":
            self.post(Leaving(worker_id))
        if fields.get("WATCHDOG") == "1":
            self.rooms.watch.beat(worker_id)
        if fields.get("WATCHDOG") == "trigger":
            self.post(WentStale(worker_id, "the worker reported WATCHDOG=trigger"))

    def _on_channel(self, worker_id: int) -> None:
        running = self._running[worker_id]
        try:
            received = receive(running.channel, 0)
            if received is None:
                self._close_channel(running)
                return
            with received:
                event = decode_event(received)
        except TimeoutError:
            return
        except ProtocolError as error:
            running.refusals.add(str(error), time.monotonic())
            return
        except OSError as error:
            log.error("%s: worker %d: channel: %s", running.worker.component, worker_id, error)
            self._close_channel(running)
            return
        match event:
            case Ready():
                self.post(BecameReady(worker_id, speaks=True))
            case Stopping():
                self.post(Leaving(worker_id))
            case Status(text):
                running.status = text
            case LogSwitched(turn) if self.rooms.output.file is not None:
                self.rooms.output.file.confirm(worker_id, turn)
            case Message(data) if self.on_message is not None:
                self.on_message(running.worker.component, worker_id, data)

    def report_refusals(self, now: float) -> None:
        """Report how many messages were refused since, where that is due."""
        for running in self:
            running.refusals.flush(now)

    def look_for_accept(self, workers: Iterable[Worker]) -> None:
        """At those of them that do not say when they are ready."""
        for worker in list(workers):
            running = self._running.get(worker.id) if is_looked_at(worker) else None
            if running is not None and accepts(running.process.pid, running.listeners):
                self.post(BecameReady(worker.id))

    # Death

    def _on_end(self, worker_id: int) -> None:
        running = self._running[worker_id]
        _kill_tree(running)
        status = running.process.poll()
        if status is None:
            return
        kills = running.leaf.oom_kills() if running.leaf is not None else None
        why, detail = cause(status, oom_kills=kills or 0)
        self.post(Ended(worker_id, why, detail))

    def forget(self, worker_id: int) -> None:
        """Free what belonged to one that has ended."""
        self.waiting.discard(worker_id)
        running = self._running.pop(worker_id, None)
        if running is None:
            return
        self.rooms.succession.drop_worker(worker_id)
        self.rooms.reactor.remove(running.process.fileno())
        running.process.close()
        self._close_channel(running)
        self.rooms.output.worker_gone(worker_id, time.monotonic())
        if running.leaf is not None:
            self.rooms.pressure.forget(worker_id)
            self._emptying.append(running.leaf)
            self.sweep()

    def _close_channel(self, running: Running) -> None:
        running.refusals.flush(time.monotonic(), end=True)
        if not running.channel.closed:
            self.rooms.reactor.remove(running.channel.fileno())
            self.rooms.succession.drop_channel(running.worker.id)
            running.channel.close()

    def sweep(self) -> None:
        """Remove cgroups that have become empty; as pid 1, reap what is nobody's."""
        sweep_leafs(self._emptying)
        if os.getpid() == 1:
            reap_strangers({running.process.pid for running in self})

    @property
    def unswept(self) -> bool:
        """There is something for :meth:`sweep` that nobody will tell of."""
        return bool(self._emptying) or os.getpid() == 1

    def abandon(self) -> None:
        """Something went wrong in here: no worker may be left alone."""
        for running in self:
            _kill_tree(running)
            running.process.kill()
            running.process.wait()
            self.forget(running.worker.id)
        until = time.monotonic() + _FAREWELL
        for leaf in self._emptying:
            end_leaf(leaf, until)


def is_looked_at(worker: Worker) -> bool:
    """Whether only a look can tell when it is ready."""
    return worker.phase is Phase.BOOTING and worker.spec.readiness == "accept"


def _kill_tree(running: Running) -> None:
    if running.leaf is not None:
        try:
            running.leaf.kill()
        except CgroupError as error:
            log.warning("%s", error)
    try:
        # Its number is its own until it is reaped, so nobody else's group is meant.
        os.killpg(running.process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # all of it has ended; or only what may not be signalled is left
