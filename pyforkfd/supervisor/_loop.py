"""The loop: one thread that carries events to the heart and its actions to the rooms."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyforkfd as ff
from pyforkfd.zygote import ZygoteError

from ._causes import cause
from ._diff import diff
from ._events import (
    Action,
    Announce,
    BecameReady,
    Crashed,
    Ended,
    Event,
    Exit,
    Forget,
    Kill,
    Lend,
    Note,
    Reload,
    Reloaded,
    Retire,
    RollBack,
    Scale,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    Stop,
    TakeBack,
    Tell,
    Tick,
    WentStale,
)
from ._handover import Handover
from ._keeper import Keeper, become_kept
from ._launch import Given, launch, tell, zygote_for
from ._model import Phase, State, Worker, due, initial
from ._notify_socket import NotifySocket, worker_of
from ._reactor import Reactor
from ._readiness import accepts, inodes
from ._signals import SignalQueue
from ._sockets import Sockets
from ._spec import Service, SpecError
from ._state import step
from ._strangers import reap_strangers
from ._succession import Succession
from ._upgrade import Upgrade
from ._validate import validate
from ._zygotes import Zygotes

log = logging.getLogger("pyforkfd.supervisor")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2)
_LOOK_FOR_ACCEPT = 0.02  # seconds between looks at a program that does not say it is ready
_REAP_STRANGERS = 0.2


@dataclass(slots=True)
class Running:
    """A worker's process, and what belongs to it."""

    process: ff.Process
    channel: ff.FdChannel
    listeners: frozenset[int]
    status: str = ""


class Supervisor:
    """Runs a service until it is told to stop.

    One thread does it all, and nothing in it waits but the reactor; only a spawn waits for
    the exec, as every spawn does.
    """

    def __init__(
        self, service: Service, *, read_again: Callable[[], Service] | None = None
    ) -> None:
        """Describe it; nothing is bound or started yet.

        Args:
            service: what to run.
            read_again: for a reload, what to run then; None: the same.

        Raises:
            SpecError: the service makes no sense; all its problems.
        """
        if problems := validate(service):
            raise SpecError(tuple(problems))
        self._read_again = read_again
        self._service = service
        self._services = {1: service}  # by generation
        self._state: State = initial(service)
        self._events: deque[Event] = deque()
        self._feeding = False
        self._running: dict[int, Running] = {}
        self._waiting: set[int] = set()  # workers whose zygote starts
        self._code: int | None = None
        self._untidy = False
        self._replies: deque[Callable[[Reloaded], None]] = deque()

    def run(self) -> int:
        """Run until everything has ended.

        Must be called in the main thread, whose signals it takes for that time.  Where the
        service wants a keeper the process becomes that, and this program its child: all that
        comes before is run twice.  Where a predecessor has left a service, that is what runs.

        Returns:
            An exit code: 0, or 1 if nothing could be kept running.

        Raises:
            OSError, ValueError: a listener could not be made; nothing was started.
            HandoverError: what a predecessor has left cannot be taken over.
        """
        with contextlib.ExitStack() as stack:
            self._succession = stack.enter_context(Succession())
            if self._succession.rehearsal is not None:
                return self._succession.prove()
            alone = self._succession.past is None and self._succession.keeper is None
            if self._service.keeper and alone:
                become_kept()
            with self._succession.guarded():
                return self._run(stack, self._succession.past)

    def _run(self, stack: contextlib.ExitStack, past: Handover | None) -> int:
        self._reactor = stack.enter_context(Reactor())
        self._sockets = stack.enter_context(Sockets(ff.listen_fds(), self._succession.sockets()))
        if past is None:
            self._open_listeners(self._service)
        self._signals = stack.enter_context(SignalQueue(_SIGNALS))
        path = f"{self._succession.directory}/notify"
        adopted = self._succession.notify_socket()
        self._notify = stack.enter_context(NotifySocket(path, adopted))
        self._succession.put_notify(self._notify)
        self._zygotes = Zygotes()
        stack.callback(self._zygotes.close)
        stack.callback(self._abandon)
        self._upgrade = stack.enter_context(Upgrade(self._reactor, self._succession))
        self._reactor.add(self._signals.fileno(), self._on_signals)
        self._reactor.add(self._notify.fileno(), self._on_notify)
        self._reactor.add(self._zygotes.fileno(), self._on_zygotes)
        if (keeper := self._succession.keeper) is not None:
            self._reactor.add(keeper.fileno(), lambda _: self._on_keeper(keeper))
        if past is not None:
            self._resume(past)
        self._feed(Tick())
        self._succession.serving()
        while self._code is None:
            self._reactor.run_once(self._timeout())
            self._look()
            self._feed(Tick())
        return self._code

    def _resume(self, past: Handover) -> None:
        """Go on where a predecessor was stopped."""
        self._state, self._service, self._services = past.state, past.service, {**past.services}
        self._untidy = True
        for worker in past.state.workers.values():
            if (known := self._succession.worker(worker.id, worker.pid)) is not None:
                self._watch(worker, *known)
                self._events.append(Spawned(worker.id, known[0].pid))
            elif worker.pid is not None:
                self._events.append(Ended(worker.id, "exit", "nothing is known of it any more"))
        self._succession.finish()
        done = self._succession.done
        self._replies.extend([lambda _: None] * past.promised(done))  # who asked is gone
        log.info("took over %d workers", len(self._running))
        if past.state.exited:
            self._code = past.state.exit_code  # it had only to end
        self._work_off(past.remaining(done))

    # What the outside asks for

    def reload(
        self,
        reply: Callable[[Reloaded], None] = lambda _: None,
        *,
        only: frozenset[str] | None = None,
    ) -> None:
        """Boot a new generation.

        Args:
            reply: called when it is ready, or why it is not.
            only: components to replace; None: all.
        """
        try:
            service = self._service if self._read_again is None else self._read_again()
            if problems := validate(service):
                raise SpecError(tuple(problems))
            self._open_listeners(service)
        except (OSError, ValueError) as error:
            self._untidy = True
            log.error("reload: %s", error)
            reply(Reloaded(self._state.generation, str(error)))
            return
        changed = {*diff(self._service, service).components.changed}
        told = {
            name
            for name, spec in service.components.items()
            if spec.reload_signal is not None and name not in changed
        }
        wanted = frozenset(service.components) if only is None else only
        replaced = (wanted | changed) - told

        def done(outcome: Reloaded) -> None:
            if not outcome.why:
                for name in wanted & told:
                    self.signal_component(name)
            reply(outcome)

        self._services[self._state.generation + 1] = service
        self._replies.append(done)
        self._feed(Reload(dict(service.components), replaced))

    def roll_back(self, reply: Callable[[Reloaded], None] = lambda _: None) -> None:
        """Go back to the generation that is paused."""
        self._replies.append(reply)
        self._feed(RollBack())

    def scale(self, component: str, count: int) -> None:
        """Run another number of workers.

        Raises:
            ValueError: there is no such component, or the number makes no sense.
            OSError: a shard for a new worker could not be made.
        """
        if component not in self._state.crews:
            known = ", ".join(sorted(self._state.crews))
            raise ValueError(f"scale: no component {component!r} (there are {known})")
        if count < 0:
            raise ValueError(f"scale {component}: {count} is negative")
        crew = self._state.crews[component]
        service = self._services[crew.generation]
        for name in crew.spec.listen:
            for position in range(count):
                self._sockets.get(service.listeners[name], position)
        self._feed(Scale(component, count))

    def retire(self, worker: int, why: str) -> None:
        """Replace one worker."""
        self._feed(Retire(worker, why))

    def stop(self, *, now: bool = False) -> None:
        """End: workers finish what they have begun, or with ``now`` are killed."""
        self._feed(Stop(now))

    def upgrade(self) -> None:
        """Execute this program anew in our place, once it has shown that it can take over.

        Workers, listeners, and our pid stay.  Where it cannot the log says why.
        """
        self._save(())  # sockets may have changed since
        self._upgrade.begin(self._execute)

    def _execute(self) -> None:
        if self._state.stopping:
            return
        self._zygotes.keep(())  # they would be children that nobody knows
        self._save(())
        self._upgrade.execute()
        for number in sorted(self._waiting):  # we are still here
            self._spawn(number)
        self._feed(Tick())

    def signal_component(self, component: str, number: int | None = None) -> None:
        """Send a signal to all workers of a component; None: its reload_signal."""
        for worker in self._state.workers.values():
            if worker.component == component and worker.id in self._running:
                sig = worker.spec.reload_signal if number is None else number
                if sig is not None:
                    self._running[worker.id].process.send_signal(sig)

    # Events

    def _feed(self, event: Event) -> None:
        """Take an event, and all that its actions bring about."""
        self._events.append(event)
        if not self._feeding:  # or whoever does works off this one as well
            self._work_off()

    def _work_off(self, left: Sequence[Action] = ()) -> None:
        """Perform what is left to do, then take all events."""
        self._feeding = True
        try:
            self._go_to(self._state, left)
            while self._events:
                self._go_to(*step(self._state, self._events.popleft(), time.monotonic()))
        finally:
            self._feeding = False
        if self._untidy:
            self._tidy()

    def _go_to(self, state: State, actions: Sequence[Action]) -> None:
        changed = bool(actions) or state != self._state
        self._state = state
        if changed:
            self._save(actions)
        for action in actions:
            self._perform(action)
            self._succession.advance()

    def _save(self, todo: Sequence[Action]) -> None:
        """So that a successor knows what we know."""
        self._succession.save(
            Handover(
                state=self._state,
                service=self._service,
                services=self._services,
                todo=tuple(todo),
                sockets=self._succession.put_sockets(self._sockets.all()),
                directory=self._succession.directory,
                rooms=self._succession.rooms,
            )
        )

    def _timeout(self) -> float | None:
        now = time.monotonic()
        times = [] if (next_step := due(self._state)) is None else [next_step - now]
        if any(map(_is_looked_at, self._state.workers.values())):
            times.append(_LOOK_FOR_ACCEPT)
        if os.getpid() == 1:
            times.append(_REAP_STRANGERS)
        if (deadline := self._upgrade.deadline) is not None:
            times.append(deadline - now)
        return min(times, default=None)

    def _look(self) -> None:
        """At what says nothing by itself."""
        self._upgrade.look()
        for worker in list(self._state.workers.values()):
            running = self._running.get(worker.id)
            if running is None or not _is_looked_at(worker):
                continue
            if accepts(running.process.pid, running.listeners):
                self._feed(BecameReady(worker.id))
        if os.getpid() == 1:
            reap_strangers({running.process.pid for running in self._running.values()})

    def _on_signals(self, events: int) -> None:
        for number, _ in self._signals.read():
            log.info("got %s", signal.Signals(number).name)
            if number == signal.SIGHUP:
                self.reload()
            elif number == signal.SIGUSR2:
                self.upgrade()
            else:
                self.stop(now=number == signal.SIGQUIT)

    def _on_notify(self, events: int) -> None:
        pids = {running.process.pid: number for number, running in self._running.items()}
        for pid, said in self._notify.read():
            if (worker := worker_of(pid, pids)) is not None:
                self._hear(worker, said)

    def _hear(self, worker: int, said: dict[str, str]) -> None:
        if "STATUS" in said:
            self._running[worker].status = said["STATUS"]
        if said.get("READY") == "1":
            self._feed(BecameReady(worker))
        if said.get("WATCHDOG") == "trigger":
            self._feed(WentStale(worker, "it says of itself that it is not well"))

    def _on_channel(self, worker: int) -> None:
        running = self._running[worker]
        try:
            message = running.channel.recv(timeout=0)
        except TimeoutError:
            return
        except (EOFError, OSError):  # it has closed its end: nothing more will come
            self._reactor.remove(running.channel.fileno())
            self._succession.drop_channel(worker)
            running.channel.close()
            return
        with message:
            try:
                said = json.loads(message.data)
            except ValueError:
                log.warning("worker %d: not a message: %r", worker, message.data[:80])
                return
        if said.get("event") == "ready":
            self._feed(BecameReady(worker, speaks=True))

    def _on_keeper(self, keeper: Keeper) -> None:
        keeper.read()
        if keeper.gone:
            self._reactor.remove(keeper.fileno())
            log.error("the keeper has died: nobody would start us again")

    def _on_zygotes(self, events: int) -> None:
        self._zygotes.read()
        for number in sorted(self._waiting):
            self._spawn(number)
        self._feed(Tick())

    def _on_end(self, number: int) -> None:
        running = self._running[number]
        # Its number is its own until it is reaped, so nobody else's group is meant.
        _kill_group(running.process.pid)
        status = running.process.poll()
        if status is None:
            return
        why, detail = cause(status)
        self._feed(Ended(number, why, detail))

    # Actions

    def _perform(self, action: Action) -> None:
        match action:
            case Spawn(number):
                self._spawn(number)
            case Signal(number, sig):
                if running := self._running.get(number):
                    running.process.send_signal(sig)
                else:
                    self._cancel(number)
            case Kill(number):
                if running := self._running.get(number):
                    _kill_group(running.process.pid)
                    running.process.kill()
                else:
                    self._cancel(number)
            case Tell(number, order):
                self._tell(number, order)
            case Lend(number, position) | TakeBack(number, position):
                self._move_shards(number, position, back=isinstance(action, TakeBack))
            case Forget(number):
                self._forget(number)
            case Crashed(number, component, why, detail):
                log.error("%s: worker %d died (%s): %s", component, number, why, detail)
            case Reloaded():
                self._reloaded(action)
            case Announce(what):
                self._announce(what)
            case Note(level, text, component, number):
                where = "" if number is None else f"{component}: worker {number}: "
                log.log(logging.getLevelName(level.upper()), "%s%s", where, text)
            case Exit(code):
                self._code = code

    def _spawn(self, number: int) -> None:
        worker = self._state.workers.get(number)
        if worker is None or number in self._running:
            self._waiting.discard(number)
            return
        try:
            zygote = None
            service = self._services[worker.generation]
            if worker.spec.function is not None:
                zygote = self._zygotes.get(zygote_for(service, worker.spec), worker.generation)
                if zygote is None:
                    self._waiting.add(number)
                    return
            self._waiting.discard(number)
            given = Given(
                listeners=self._listeners_of(worker),
                notify_path=self._notify.path,
                die_with_us=self._succession.keeper is None,
            )
            process, channel = launch(worker, given, zygote)
        except (OSError, ValueError, ZygoteError) as error:
            self._waiting.discard(number)
            self._events.append(SpawnFailed(number, str(error)))
            return
        self._succession.put_worker(number, process, channel)
        self._watch(worker, process, channel)
        self._events.append(Spawned(number, process.pid))

    def _listeners_of(self, worker: Worker) -> dict[str, socket.socket]:
        listeners = self._services[worker.generation].listeners
        return {n: self._sockets.get(listeners[n], worker.position) for n in worker.spec.listen}

    def _watch(self, worker: Worker, process: ff.Process, channel: ff.FdChannel) -> None:
        number = worker.id
        known = inodes(sock.fileno() for sock in self._listeners_of(worker).values())
        self._running[number] = Running(process, channel, known)
        self._reactor.add(process.fileno(), lambda _: self._on_end(number))
        if not channel.closed:
            self._reactor.add(channel.fileno(), lambda _: self._on_channel(number))

    def _cancel(self, number: int) -> None:
        """End a worker that waits for its zygote."""
        self._waiting.discard(number)
        self._events.append(SpawnFailed(number, "it was given up while its zygote started"))

    def _tell(self, number: int, order: str, **fds: ff.HasFileno) -> None:
        running = self._running[number]
        if running.channel.closed or not tell(running.channel, order, fds):
            log.warning("worker %d does not take the order %s", number, order)

    def _move_shards(self, number: int, position: int, *, back: bool) -> None:
        worker = self._state.workers.get(number)
        if worker is None or number not in self._running:
            return
        service = self._services[worker.generation]
        shards = {
            f"{name}/{position}": self._sockets.get(service.listeners[name], position)
            for name in worker.spec.listen
            if service.listeners[name].shards
        }
        self._tell(number, "return" if back else "accept", **shards)

    def _forget(self, number: int) -> None:
        self._untidy = True
        running = self._running.pop(number, None)
        if running is None:
            return
        self._succession.drop_worker(number)
        self._reactor.remove(running.process.fileno())
        running.process.close()
        if not running.channel.closed:
            self._reactor.remove(running.channel.fileno())
            running.channel.close()

    def _reloaded(self, outcome: Reloaded) -> None:
        self._untidy = True
        if outcome.why:
            log.error("generation %d was given up: %s", outcome.generation, outcome.why)
        else:
            log.info("generation %d serves", outcome.generation)
            self._service = self._services.get(outcome.generation, self._service)
        self._replies.popleft()(outcome)  # each request has one outcome, in their order

    def _announce(self, what: str) -> None:
        try:
            ff.notify(
                ready=what == "ready", reloading=what == "reloading", stopping=what == "stopping"
            )
        except OSError as error:
            log.warning("the service manager was not told %s: %s", what, error)

    # What nobody uses any more

    def _open_listeners(self, service: Service) -> None:
        for spec in service.components.values():
            for name in spec.listen:
                for position in range(spec.workers):
                    self._sockets.get(service.listeners[name], position)

    def _tidy(self) -> None:
        self._untidy = False
        state = self._state
        groups = [state.crews]
        if state.pending is not None:
            groups.append(state.pending.crews)
        if state.previous is not None:
            groups.append(state.previous.crews)
        crews = [crew for group in groups for crew in group.values()]
        used = {crew.generation for crew in crews}
        used.update(worker.generation for worker in state.workers.values())
        used.add(max(self._services))
        self._services = {n: s for n, s in self._services.items() if n in used}
        self._sockets.keep(
            (self._services[crew.generation].listeners[name], position)
            for crew in crews
            for name in crew.spec.listen
            for position in range(crew.widest)
        )
        self._zygotes.keep(
            (zygote_for(self._services[crew.generation], crew.spec).name, crew.generation)
            for crew in crews
            if crew.spec.function is not None
        )

    def _abandon(self) -> None:
        """Something went wrong in here: no worker may be left alone."""
        for number, running in list(self._running.items()):
            _kill_group(running.process.pid)
            running.process.kill()
            running.process.wait()
            self._forget(number)


def _is_looked_at(worker: Worker) -> bool:
    return worker.phase is Phase.BOOTING and worker.spec.readiness == "accept"


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # all of it has ended; or only what may not be signalled is left
