"""The engine: one thread that carries events to the heart and its actions to the rooms."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ._service_manager import Manager
from ._signals import SignalQueue
from .control._server import ControlSocket
from .control._status import Death, Deaths, summary
from .logs._log_file import Switch
from .metrics._endpoint import Endpoint
from .processes._crash_hooks import Hooks
from .processes._launch import zygote_for
from .processes._peers import Peers
from .processes._resources import leaf_name, open_rooms
from .processes._workers import Workers, is_looked_at
from .spec._spec import Service
from .state._events import (
    Action,
    Announce,
    Crashed,
    Ended,
    Event,
    Exit,
    Forget,
    Kill,
    Lend,
    Note,
    Reloaded,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    TakeBack,
    SendOrder,
    Tick,
)
from .state._model import State, due, initial
from .state._step import step
from .succession._handover import Handover
from .succession._keeper import Keeper
from .succession._succession import Succession
from .succession._upgrade import Upgrade

log = logging.getLogger("pyforkfd.supervisor")

_SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2),
)
_LOOK_FOR_ACCEPT = 0.02  # seconds between looks at a program that does not say it is ready
_LOOK = 0.2  # seconds between looks at heartbeats, logs, memory


class Engine:
    """What a :class:`Supervisor` is without what the outside may ask of it."""

    def __init__(
        self, service: Service, on_message: Callable[[str, int, Any], None] | None
    ) -> None:
        self._service = service
        self._services = {1: service}  # by generation
        self._state: State = initial(service)
        self._events: deque[Event] = deque()
        self._feeding = False
        self._on_message = on_message
        self._code: int | None = None
        self._untidy = False
        self._look_at = 0.0
        self._started = time.monotonic()
        self._replies: deque[Callable[[Reloaded], None]] = deque()
        self._peers = Peers()
        self._deaths = Deaths()

    # Life

    def _run(self, stack: contextlib.ExitStack, succession: Succession) -> int:
        past = succession.past
        self._succession = succession
        self._enter(stack, past)
        if past is not None:
            self._resume(past)
        self._feed(Tick())
        succession.serving()
        while self._code is None:
            self._manager.look(time.monotonic(), lambda: summary(self._state))
            self._reactor.run_once(self._timeout())
            self._look()
            self._feed(Tick())
        return self._code

    def _enter(self, stack: contextlib.ExitStack, past: Handover | None) -> None:
        service, succession = self._service, self._succession
        enter = stack.enter_context
        rooms = open_rooms(stack, service, succession, lambda number: self._workers.memory(number))
        self._reactor, self._output, self._watch = rooms.reactor, rooms.output, rooms.watch
        self._sockets, self._zygotes, self._cgroups = rooms.sockets, rooms.zygotes, rooms.cgroups
        if past is None:
            self._open_listeners(service)
        self._endpoint = enter(Endpoint(service.metrics, self._watch.metrics, self._reactor))
        if service.control.path is not None:
            enter(ControlSocket(service.control, self._reactor, self._orders()))
        self._manager = Manager()
        self._signals = enter(SignalQueue(_SIGNALS))
        self._hooks = Hooks(self._reactor)
        stack.callback(self._hooks.close)
        self._workers = Workers(rooms, self._feed, self._on_message)
        stack.callback(self._workers.abandon)
        self._upgrade = enter(Upgrade(self._reactor, succession))
        self._reactor.add(self._signals.fileno(), self._on_signals)
        self._reactor.add(rooms.notify.fileno(), lambda _: self._workers.hear())
        self._reactor.add(self._zygotes.fileno(), self._on_zygotes)
        if (keeper := succession.keeper) is not None:
            self._reactor.add(keeper.fileno(), lambda _: self._on_keeper(keeper))

    def _resume(self, past: Handover) -> None:
        """Go on where a predecessor was stopped."""
        self._state, self._service, self._services = past.state, past.service, {**past.services}
        self._untidy = True
        if "metrics" in self._succession.rooms:
            self._watch.metrics.restore(self._succession.rooms["metrics"])
        begun = []  # those of which there is or was a process
        for worker in past.state.workers.values():
            if (known := self._succession.worker(worker.id, worker.pid)) is not None:
                leaf = None
                if self._cgroups is not None:
                    with contextlib.suppress(OSError):  # it has none
                        leaf = self._cgroups.adopt(leaf_name(worker))
                service = self._services[worker.generation]
                self._output.readopt(worker)
                self._workers.adopt(worker, service, *known, leaf)
                self._events.append(Spawned(worker.id, known[0].pid))
                begun.append(worker)
            elif worker.pid is not None:
                self._events.append(Ended(worker.id, "exit", "nothing is known of it any more"))
                begun.append(worker)
        self._watch.adopt(begun)
        self._succession.finish()
        done = self._succession.done
        self._replies.extend([lambda _: None] * past.promised(done))  # who asked is gone
        log.info("took over %d workers", sum(1 for _ in self._workers))
        self._watch.changed(initial(self._service), self._state)
        if past.state.exited:
            self._code = past.state.exit_code  # it had only to end
        self._switch_logs(self._output.pending_switch())
        self._work_off(past.remaining(done))

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
                event = self._events.popleft()
                before = self._state
                state, actions = step(before, event, time.monotonic())
                self._go_to(state, actions)
                if isinstance(event, (Ended, SpawnFailed)) and event.worker_id in before.workers:
                    self._count_end(event, actions)
        finally:
            self._feeding = False
        for number, component, ready in self._peers.news(self._state):
            self._workers.tell(number, "peer", about={"component": component, "ready": ready})
        if self._untidy:
            self._tidy()

    def _go_to(self, state: State, actions: Sequence[Action]) -> None:
        before, self._state = self._state, state
        kept = self._succession.keeper is not None  # or nobody comes after us unannounced
        if actions or state != before:
            self._watch.changed(before, state)
            if kept:
                self._save(actions)
        for action in actions:
            self._perform(action)
            if kept:
                self._succession.advance()

    def _count_end(self, event: Ended | SpawnFailed, actions: Sequence[Action]) -> None:
        crashes = [a for a in actions if isinstance(a, Crashed) and a.worker_id == event.worker_id]
        cause = event.cause if isinstance(event, Ended) else "spawn_failed"
        if crashes:
            cause = crashes[0].cause
        self._watch.ended(event.worker_id, cause, expected=not crashes)

    def _save(self, todo: Sequence[Action]) -> None:
        """So that a successor knows what we know."""
        self._succession.rooms["metrics"] = self._watch.metrics.state()
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
        times = [self._look_at - now] if self._is_watching() else []
        if (next_step := due(self._state)) is not None:
            times.append(next_step - now)
        if any(map(is_looked_at, self._state.workers.values())):
            times.append(_LOOK_FOR_ACCEPT)
        if (deadline := self._upgrade.deadline) is not None:
            times.append(deadline - now)
        if (sign_of_life := self._manager.due()) is not None:
            times.append(sign_of_life - now)
        return min(times, default=None)

    def _is_watching(self) -> bool:
        """Something is to be looked at, though nothing happens."""
        return bool(self._state.workers) or self._workers.unswept or self._endpoint.is_open

    def _look(self) -> None:
        """At what says nothing by itself."""
        self._upgrade.look()
        self._workers.look_for_accept(self._state.workers.values())
        self._output.settle()
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK
        self._switch_logs(self._output.poll(now))
        for event in list(self._watch.look(self._state, now)):
            self._feed(event)
        events, orders = self._watch.look_at_memory(self._state, now)
        for event in events:
            self._feed(event)
        for told in orders:
            for order in told.orders:
                if order != "recycle":
                    self._workers.tell(told.worker_id, order)
        self._endpoint.look(now)
        self._hooks.look(now)
        self._workers.sweep()

    def _switch_logs(self, switch: Switch | None) -> None:
        """There is a new file: workers are to write to that one."""
        if switch is None or self._output.file is None:
            return
        for worker in switch.workers:
            about = {"turn": switch.message["turn"]}
            self._workers.tell(worker, "log", {"log": self._output.file}, about)

    def _on_signals(self, events: int) -> None:
        for number, _ in self._signals.read():
            log.info("got %s", signal.Signals(number).name)
            self._on_signal(number)

    def _on_signal(self, signum: int) -> None:
        raise NotImplementedError

    def _orders(self) -> Any:
        raise NotImplementedError

    def _on_keeper(self, keeper: Keeper) -> None:
        keeper.read()
        if keeper.gone:
            self._reactor.remove(keeper.fileno())
            log.error("the keeper has died: nobody would start us again")

    def _on_zygotes(self, events: int) -> None:
        self._zygotes.read()
        self._start_waiting()

    def _start_waiting(self) -> None:
        for number in sorted(self._workers.waiting):
            self._spawn(number)

    # Actions

    def _perform(self, action: Action) -> None:
        match action:
            case Spawn(number):
                self._spawn(number)
            case Signal(number, sig):
                self._workers.signal(number, sig)
            case Kill(number):
                self._workers.kill(number)
            case SendOrder(number, order):
                self._workers.tell(number, order)
            case Lend(number, position) | TakeBack(number, position):
                if (worker := self._state.workers.get(number)) is not None:
                    service = self._services[worker.generation]
                    back = isinstance(action, TakeBack)
                    self._workers.move_shards(worker, service, position, back=back)
            case Forget(number):
                self._untidy = True
                self._workers.forget(number)
            case Crashed():
                self._crashed(action)
            case Reloaded():
                self._reloaded(action)
            case Announce(what):
                self._manager.announce(what)
            case Note(level, text, component, number):
                where = "" if number is None else f"{component}: worker {number}: "
                log.log(logging.getLevelName(level.upper()), "%s%s", where, text)
            case Exit(code):
                self._code = code

    def _spawn(self, worker_id: int) -> None:
        worker = self._state.workers.get(worker_id)
        if worker is None:
            self._workers.waiting.discard(worker_id)
            return
        self._watch.started(worker)
        self._workers.start(worker, self._services[worker.generation])

    def _crashed(self, crash: Crashed) -> None:
        log.error(
            "%s: worker %d died (%s): %s",
            crash.component,
            crash.worker_id,
            crash.cause,
            crash.detail,
        )
        death = Death(crash.worker_id, crash.cause, crash.detail, time.monotonic())
        self._deaths.add(crash.component, crash.position, death)
        self._watch.told(crash)
        if (crew := self._state.crews.get(crash.component)) is not None:
            self._hooks.run(crew.spec.on_crash, crash)

    def _reloaded(self, outcome: Reloaded) -> None:
        self._untidy = True
        self._watch.told(outcome)
        if outcome.why:
            log.error("generation %d was given up: %s", outcome.generation, outcome.why)
        else:
            log.info("generation %d serves", outcome.generation)
            self._service = self._services.get(outcome.generation, self._service)
        self._replies.popleft()(outcome)  # each request has one outcome, in their order

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
