"""The loop: one thread that carries events to the state machine and performs its actions."""

from __future__ import annotations

import functools
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ._failures import report
from ._recorder import Recorder
from ._service_manager import Manager
from ._signals import SignalQueue
from .control._requests import Supervised
from .control._status import Death, Deaths, summary
from .logs._excerpt import excerpt
from .metrics._endpoint import Endpoint
from .processes._adoption import adopt_workers
from .processes._crash_hooks import Hooks
from .processes._generations import Generations
from .processes._peers import Peers
from .processes._resources import Resources
from .processes._starts import Starts
from .processes._workers import Workers, is_polled
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
    Reload,
    Reloaded,
    RollBack,
    SendOrder,
    Signal,
    Spawn,
    SpawnFailed,
    TakeBack,
    Tick,
)
from .state._model import State, initial
from .state._queries import due
from .state._step import Step, advance
from .succession._handover import Handover
from .succession._keeper import Keeper
from .succession._upgrade import Upgrade
from .worker._messages import Peer
from .worker._protocol import order

log = logging.getLogger("pyforkfd.supervisor")

_POLL_READINESS = 0.02  # seconds between polls of /proc for a worker that does not report
_POLL = 0.2  # seconds between polls of heartbeats, logs, memory
_NOTHING = State(crews={})

Reply = Callable[[Reloaded], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The receivers of what reaches a service from outside.

    Attributes:
        requests: carries out the requests of the control socket.
        on_signal: called with the number of each signal to the supervisor.
        on_message: called with each message of a worker: component, worker's id, data.
    """

    requests: Supervised
    on_signal: Callable[[int], None]
    on_message: Callable[[str, int, Any], None] | None


class Engine:
    """A service that runs: its state, its resources, and the loop.

    It is whole from the start: :func:`open_engine` opens everything that it is made of.

    Attributes:
        state: of the state machine.
        generations: specifications by generation.
        workers: processes.
        resources: borrowed.
        deaths: crashes since the start.
        started: when the loop was made, on the clock of time.monotonic().
    """

    def __init__(
        self,
        service: Service,
        resources: Resources,
        front: Front,
        *,
        endpoint: Endpoint,
        manager: Manager,
        signals: SignalQueue,
        hooks: Hooks,
        upgrade: Upgrade,
    ) -> None:
        """Watch the descriptors of the resources; nothing is started yet.

        Args:
            service: the specification; a predecessor's replaces it.
            resources: borrowed, as all that follow.
            front: receives signals and messages.
            endpoint: of the metrics.
            manager: takes reports.
            signals: to the supervisor.
            hooks: of crashes.
            upgrade: of this program.
        """
        self.resources = resources
        self.state = initial(service)
        self.generations = Generations(
            service, {1: service}, sockets=resources.sockets, zygotes=resources.zygotes
        )
        self.workers = Workers(resources, self.feed, front.on_message)
        self.deaths = Deaths()
        self.started = time.monotonic()
        self._succession = resources.succession
        self._watch, self._output = resources.watch, resources.output
        self._endpoint, self._manager, self._hooks = endpoint, manager, hooks
        self._upgrade = upgrade
        self._recorder = Recorder(resources)
        self._signals, self._on_signal = signals, front.on_signal
        self._events: deque[Event] = deque()
        self._feeding = False
        self._replies: deque[Reply] = deque()
        self._peers = Peers()
        self._exit_code: int | None = None
        self._starts = Starts()
        self._polled: set[int] = set()  # ids of workers whose readiness must be polled
        self._untidy = False  # something may be unused
        self._poll_at = 0.0
        reactor = resources.reactor
        reactor.add(signals.fileno(), self._on_signals)
        reactor.add(resources.zygotes.fileno(), self._on_zygotes)
        if (keeper := self._succession.keeper) is not None:
            reactor.add(keeper.fileno(), lambda _: self._on_keeper(keeper))

    # Life

    def run(self) -> int:
        """Run until the last worker has ended; returns the exit code."""
        if (past := self._succession.past) is not None:
            self._resume(past)
        else:
            self._note_all()
        self._starts.begin_turn()
        self.feed(Tick())
        self._succession.serving()
        while self._exit_code is None:
            now = time.monotonic()
            self._starts.begin_turn()
            self._manager.update(now, functools.partial(summary, self.state, now))
            self.resources.reactor.run_once(self._timeout())
            self._poll()
            for worker_id in self._starts.due():
                self._spawn(worker_id)
            self.feed(Tick())
        return self._exit_code

    def _resume(self, past: Handover) -> None:
        """Go on where a predecessor ended."""
        self.state = past.state
        self.generations = Generations(
            past.service,
            past.services,
            sockets=self.resources.sockets,
            zygotes=self.resources.zygotes,
        )
        self._untidy = True
        if "metrics" in self._succession.resources:
            self._watch.metrics.restore(self._succession.resources["metrics"])
        self._events.extend(adopt_workers(past, self.resources, self.workers, self.generations))
        self._succession.finish()
        done = self._succession.done
        # The clients that made these requests are disconnected.
        self._replies.extend([lambda _: None] * past.promised(done))
        log.info("took over %d workers", sum(1 for _ in self.workers))
        self._note_all()
        if past.state.exited:
            self._exit_code = past.state.exit_code  # it had only to end
        self.workers.send_log_file(self._output.pending_switch())
        self._work_off(past.remaining(done))

    def _note_all(self) -> None:
        """Note every worker and crew of the first state as changed."""
        state = self.state
        self._note(_NOTHING, Step(state, (), list(state.workers), list(state.crews)))

    # Requests

    def request(self, event: Reload | RollBack, reply: Reply) -> None:
        """Begin another generation; ``reply`` is called with the outcome."""
        self._replies.append(reply)
        self.feed(event)

    def next_generation(self) -> int:
        """Return the number of the generation that the next reload begins."""
        waiting = sum(isinstance(event, Reload) for event in self._events)
        return self.state.generation + 1 + waiting

    def addresses(self) -> list[str]:
        """Return the addresses that are bound, as the specification writes them."""
        listeners = {address for address, _, _ in self.resources.sockets.all()}
        return sorted(listeners.union(self._endpoint.addresses))

    def upgrade(self) -> None:
        """Execute this program anew in our place, once a trial has shown that it can take over."""
        if self._recorder.save_all(self.state, self.generations):  # sockets may be others
            self._upgrade.begin(self._execute)

    def _execute(self) -> None:
        if self.state.stopping:
            return
        self.resources.zygotes.keep(())  # the successor would not know these children
        if self._recorder.save_all(self.state, self.generations):
            self._upgrade.execute()
        self._start_waiting()  # it failed: this program goes on
        self.feed(Tick())

    def tidy_later(self) -> None:
        """Close what is unused after the next event."""
        self._untidy = True

    # Events

    def feed(self, event: Event) -> None:
        """Take an event, and all events that its actions bring about."""
        self._events.append(event)
        if not self._feeding:  # else the loop that feeds takes this one as well
            self._work_off()

    def _work_off(self, left: Sequence[Action] = ()) -> None:
        """Perform the actions that are left, then take all events."""
        self._feeding = True
        try:
            self._go_to(Step(self.state, left))
            while self._events:
                event = self._events.popleft()
                before = self.state
                try:
                    taken = advance(before, event, time.monotonic())
                except Exception as error:
                    if not isinstance(event, Reload | RollBack):
                        raise
                    why = report("reload", error, ())
                    taken = Step(before, [Reloaded(before.generation, why)])
                self._go_to(taken)
                if isinstance(event, (Ended, SpawnFailed)) and event.worker_id in before.workers:
                    self._count_end(event, taken.actions)
        finally:
            self._feeding = False
        for worker_id, component, ready in self._peers.news(self.state):
            self.workers.send(worker_id, Peer(component, ready))
        if self._untidy or not self.generations.are_as_used(self.state):
            self._untidy = False
            self.generations.discard_unused(self.state)

    def _go_to(self, taken: Step) -> None:
        before, self.state = self.state, taken.state
        has_keeper = self._succession.keeper is not None  # else no successor comes unannounced
        if taken.actions or taken.state is not before:
            self._note(before, taken)
            if has_keeper:
                self._recorder.save_step(taken, self.generations)
        for action in taken.actions:
            self._perform(action)
            if has_keeper:
                self._succession.advance()

    def _note(self, before: State, taken: Step) -> None:
        """Report the changes of a step to those who follow them."""
        self._watch.changed(before, taken.state, taken.workers, taken.crews)
        self._peers.changed(before, taken.state, taken.workers)
        for worker_id in taken.workers:
            worker = taken.state.workers.get(worker_id)
            if worker is not None and is_polled(worker):
                self._polled.add(worker_id)
            else:
                self._polled.discard(worker_id)

    def _count_end(self, event: Ended | SpawnFailed, actions: Sequence[Action]) -> None:
        crashes = [a for a in actions if isinstance(a, Crashed) and a.worker_id == event.worker_id]
        cause = event.cause if isinstance(event, Ended) else "spawn_failed"
        if crashes:
            cause = crashes[0].cause
        self._watch.ended(event.worker_id, cause, expected=not crashes)

    # Polling

    def _timeout(self) -> float | None:
        now = time.monotonic()
        if self._starts.waiting:
            return 0.0
        times = [self._poll_at - now] if self._must_poll() else []
        if (next_step := due(self.state)) is not None:
            times.append(next_step - now)
        if self._polled:
            times.append(_POLL_READINESS)
        if (deadline := self._upgrade.deadline) is not None:
            times.append(deadline - now)
        if (next_report := self._manager.due()) is not None:
            times.append(next_report - now)
        return min(times, default=None)

    def _must_poll(self) -> bool:
        return bool(self.state.workers) or self.workers.unswept or self._endpoint.is_open

    def _poll(self) -> None:
        """Poll everything that no descriptor announces."""
        self._upgrade.look()
        self.workers.poll_readiness(self.state.workers[n] for n in sorted(self._polled))
        self._output.settle()
        now = time.monotonic()
        if now < self._poll_at:
            return
        self._poll_at = now + _POLL
        self.workers.receiver.report_refusals(now)
        self.workers.guard.poll(now)
        self.workers.send_log_file(self._output.poll(now))
        for event in list(self._watch.poll(self.state, now)):
            self.feed(event)
        events, advice = self._watch.poll_memory(self.state, now)
        for event in events:
            self.feed(event)
        for one in advice:
            for name in one.orders:
                if name != "recycle":
                    self.workers.send(one.worker_id, order(name))
        self._endpoint.poll(now)
        self._hooks.end_late(now)
        self.workers.sweep()

    # Descriptors that are ready

    def _on_signals(self, events: int) -> None:
        for signum, _ in self._signals.read():
            name = signal.Signals(signum).name
            log.info("got %s", name)
            try:
                self._on_signal(signum)
            except Exception as error:  # a request like any other: the service goes on
                report(name, error, (OSError, ValueError))

    def _on_keeper(self, keeper: Keeper) -> None:
        keeper.read()
        if keeper.gone:
            self.resources.reactor.remove(keeper.fileno())
            log.error("the keeper has died: the supervisor would not be started again")

    def _on_zygotes(self, events: int) -> None:
        self.resources.zygotes.read()
        self._start_waiting()

    def _start_waiting(self) -> None:
        for worker_id in sorted(self.workers.waiting.difference(self._starts.waiting)):
            self._spawn(worker_id)

    # Actions

    def _perform(self, action: Action) -> None:
        match action:
            case Spawn(worker_id) if self._starts.postpone(worker_id):
                self.workers.waiting.add(worker_id)  # so that it can be given up
                if (worker := self.state.workers.get(worker_id)) is not None:
                    self._watch.started(worker)  # its end is counted, whenever it comes
            case Spawn(worker_id):
                self._spawn(worker_id)
            case Signal(worker_id, signum):
                self.workers.signal(worker_id, signum)
            case Kill(worker_id):
                self.workers.kill(worker_id)
            case SendOrder(worker_id, name):
                self.workers.send(worker_id, order(name))
            case Lend(worker_id, position) | TakeBack(worker_id, position):
                if (worker := self.state.workers.get(worker_id)) is not None:
                    service = self.generations[worker.generation]
                    back = isinstance(action, TakeBack)
                    self.workers.move_shards(worker, service, position, back=back)
            case Forget(worker_id):
                self.workers.forget(worker_id)
            case Crashed():
                self._crashed(action)
            case Reloaded():
                self._reloaded(action)
            case Announce(what):
                self._manager.announce(what)
            case Note(level, text, component, worker):
                where = "" if worker is None else f"{component}: worker {worker}: "
                log.log(logging.getLevelName(level.upper()), "%s%s", where, text)
            case Exit(code):
                self._exit_code = code

    def _spawn(self, worker_id: int) -> None:
        worker = self.state.workers.get(worker_id)
        if worker is None:
            self.workers.waiting.discard(worker_id)
            return
        self._watch.started(worker)
        self.workers.start(worker, self.generations[worker.generation])

    def _crashed(self, crash: Crashed) -> None:
        where = f"{crash.component}: worker {crash.worker_id}"
        log.error("%s died (%s): %s", where, crash.cause, crash.detail)
        death = Death(crash.worker_id, crash.cause, crash.detail, time.monotonic())
        self.deaths.add(crash.component, crash.position, death)
        self._watch.count(crash)
        if (crew := self.state.crews.get(crash.component)) is not None:
            app_dir = self.generations.serving.app_dir
            self._hooks.run(crew.spec.on_crash, crash, app_dir=app_dir)

    def _with_last_lines(self, outcome: Reloaded) -> Reloaded:
        """Append the end of the output of the worker that failed to the reason."""
        if outcome.worker_id is None:
            return outcome
        entries = self.resources.output.last_lines(outcome.component, outcome.worker_id)
        lines = [f"    {line}" for line in excerpt(entries)]
        if not lines:
            return outcome
        head = f"{outcome.why}\nlast lines of worker {outcome.worker_id}:"
        return replace(outcome, why="\n".join([head, *lines]))

    def _reloaded(self, outcome: Reloaded) -> None:
        self._untidy = True
        self._watch.count(outcome)
        if outcome.why:
            log.error("generation %d was given up: %s", outcome.generation, outcome.why)
            outcome = self._with_last_lines(outcome)
        else:
            log.info("generation %d serves", outcome.generation)
            self.generations.serve(outcome.generation)
        self.workers.guard.check()
        self._replies.popleft()(outcome)  # each request has one outcome, in their order
