"""The supervisor: the public front of a service."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Collection
from typing import Any

from pyforkfd._standard_streams import open_standard_descriptors

from ._engine import Engine, Front
from ._failures import report
from ._opening import open_engine
from .control._status import describe
from .metrics._prometheus import MetricsUnavailableError, demand_client
from .spec._bounds import WORKERS
from .spec._diff import diff
from .spec._reader import shown
from .spec._spec import Service, SpecError
from .spec._validate import validate
from .state._events import Reload, Reloaded, Retire, RollBack, Scale, Stop
from .state._model import SERVING, Phase, initial, sharded
from .succession._handover import check_savable
from .succession._keeper import execute_keeper
from .succession._succession import Succession
from .worker._messages import Message
from .worker._protocol import encode_order

log = logging.getLogger("pyforkfd.supervisor")

_AT_START = frozenset({"name", "keeper", "control", "log", "metrics"})  # and not by a reload


class Supervisor:
    """A service and the requests to it.

    :meth:`run` runs the service in the calling thread, which does everything: it waits for
    events, and for nothing else but the exec of a spawn.  While it runs, the other methods are
    for that thread alone: for a callback, such as ``on_message``.  From anywhere else the
    control socket is the way in.  Before and after :meth:`run` they raise RuntimeError, but for
    :meth:`status`.
    """

    def __init__(
        self,
        service: Service,
        *,
        read_again: Callable[[], Service] | None = None,
        on_message: Callable[[str, int, Any], None] | None = None,
    ) -> None:
        """Check the specification; nothing is bound or started yet.

        Args:
            service: the specification.
            read_again: returns the specification of the next generation, for a reload; None:
                the same again.
            on_message: called with each message of a worker: component, worker's id, data.
                It must not block, and may call :meth:`send`.

        Raises:
            SpecError: the specification has problems; it has all of them.
        """
        if problems := validate(service):
            raise SpecError(tuple(problems))
        self._service = service
        self._read_again = read_again
        self._on_start: Callable[[], None] = lambda: None  # called once the log is open
        self._front = Front(requests=self, on_signal=self._on_signal, on_message=on_message)
        self._engine: Engine | None = None

    def run(self) -> int:
        """Run the service until everything has ended.

        Must be called in the main thread, whose signals it takes for that time.  Where the
        specification wants a keeper the process becomes that, and this program its child: all
        that comes before is run twice.  Where a predecessor has left a service, that is what
        runs.  It may be called again after it has returned: the service then starts anew.

        Returns:
            An exit code: 0, or 1 if no worker could be run any more.

        Raises:
            OSError, ValueError: a listener could not be made; nothing was started.
            HandoverError: what a predecessor has left cannot be taken over.
            RuntimeError: the service runs already.
        """
        if self._engine is not None:
            raise RuntimeError("Supervisor.run: the service runs already")
        open_standard_descriptors()
        with contextlib.ExitStack() as stack:
            succession = stack.enter_context(Succession())
            if succession.rehearsal is not None:
                return succession.prove()
            if self._service.keeper and succession.past is None and succession.keeper is None:
                execute_keeper()
            stack.callback(self._forget_engine)
            with succession.guarded():
                self._engine = open_engine(stack, self._service, succession, self._front)
                self._on_start()
                return self._engine.run()

    def _forget_engine(self) -> None:
        self._engine = None

    def _running(self, method: str) -> Engine:
        """Return the engine.

        Raises:
            RuntimeError: the service does not run.
        """
        if self._engine is None:
            raise RuntimeError(f"Supervisor.{method}: the service does not run: call run() first")
        return self._engine

    def _on_signal(self, signum: int) -> None:
        match signum:
            case signal.SIGHUP:
                self.reload()
            case signal.SIGUSR1:
                self._running("run").resources.output.reopen()
            case signal.SIGUSR2:
                self.upgrade()
            case _:
                self.stop(now=signum == signal.SIGQUIT)

    def reload(
        self,
        reply: Callable[[Reloaded], None] = lambda _: None,
        *,
        only: frozenset[str] | None = None,
    ) -> None:
        """Boot a new generation.

        Args:
            reply: called with the outcome: the generation is ready, or why it is not.
            only: components to replace; None: all.

        Raises:
            RuntimeError: the service does not run.
        """
        engine = self._running("reload")
        try:
            service, event, signalled = self._prepare(engine, only)
        except Exception as error:  # whatever it is: the workers that serve go on
            engine.tidy_later()
            why = report("reload", error, (OSError, ValueError, MetricsUnavailableError))
            reply(Reloaded(engine.state.generation, why))
            return

        def done(outcome: Reloaded) -> None:
            if not outcome.why:
                for name in signalled:
                    self.signal_component(name)
            reply(outcome)

        engine.generations.add(engine.next_generation(), service)
        engine.request(event, done)

    def _prepare(
        self, engine: Engine, only: frozenset[str] | None
    ) -> tuple[Service, Reload, frozenset[str]]:
        """Read, check and compare the specification of a reload, and bind its listeners.

        Returns:
            The specification, the event, and the components whose workers are signalled.

        Raises:
            Exception: any; what was bound is unused, and closed by the next tidying.
        """
        current = engine.generations.serving
        service = current if self._read_again is None else self._read_again()
        if problems := validate(service):
            raise SpecError(tuple(problems))
        for name in sorted(only or ()):
            _demand_component(name, service.components)
        demand_client(service.metrics)  # a successor could not start
        if engine.resources.succession.keeper is not None:
            check_savable(service)
        difference = diff(current, service)
        engine.resources.sockets.open(service)
        engine.workers.guard.demand(service)
        if later := sorted(_AT_START.intersection(difference.sections)):
            log.warning("reload: %s: as before until the next start", ", ".join(later))
        changed = {*difference.components.changed}
        signalled = {
            name
            for name, spec in service.components.items()
            if spec.reload_signal is not None and name not in changed
        }
        wanted = frozenset(service.components) if only is None else only
        event = Reload(
            dict(service.components),
            (wanted | changed) - signalled,
            sharded=sharded(service),
            rollback=service.rollback,
            max_generations=service.max_generations,
        )
        return service, event, wanted & signalled

    def roll_back(self, reply: Callable[[Reloaded], None] = lambda _: None) -> None:
        """Go back to the generation that is paused.

        Args:
            reply: called with the outcome.

        Raises:
            RuntimeError: the service does not run.
        """
        self._running("roll_back").request(RollBack(), reply)

    def scale(self, component: str, count: int) -> None:
        """Change the number of a component's workers.

        Raises:
            ValueError: there is no such component, or the number is out of range.
            OSError: a shard for a new worker could not be made.
            RuntimeError: the service does not run.
        """
        engine = self._running("scale")
        _demand_component(component, engine.state.crews)
        others = sum(crew.count for name, crew in engine.state.crews.items() if name != component)
        if not WORKERS.contain(count) or not WORKERS.contain(count + others):
            raise ValueError(
                f"scale {component}: {shown(count)} is out of range; write a number "
                f"{WORKERS.text()}, of all components together at most {WORKERS.most:g}"
            )
        try:
            engine.generations.open_shards(engine.state.crews[component], count)
        except BaseException:
            engine.tidy_later()
            raise
        engine.feed(Scale(component, count))

    def retire(self, worker_id: int, why: str) -> None:
        """Replace a worker, which leaves when its replacement is ready.

        Args:
            worker_id: its id.
            why: for the log.

        Raises:
            ValueError: there is no such worker, or it is about to leave.
            RuntimeError: the service does not run.
        """
        engine = self._running("retire")
        workers = engine.state.workers
        found = workers.get(worker_id)
        if found is None or found.phase not in SERVING:
            here = sorted(worker.id for worker in workers.values() if worker.phase in SERVING)
            raise ValueError(
                f"no worker {worker_id} serves (there are {', '.join(map(str, here))})"
            )
        engine.feed(Retire(worker_id, why))

    def stop(self, *, now: bool = False) -> None:
        """Stop the service: workers finish what they have begun, or are killed.

        Args:
            now: kill them.

        Raises:
            RuntimeError: the service does not run.
        """
        self._running("stop").feed(Stop(now))

    def signal_component(self, component: str, signum: int | None = None) -> int:
        """Send a signal to all workers of a component.

        Args:
            component: its name.
            signum: None: the component's reload_signal, which a worker that boots is not sent:
                it may not handle that yet, and reads what is new by itself.

        Returns:
            How many workers it was sent to.

        Raises:
            ValueError: there is no such component.
            RuntimeError: the service does not run.
        """
        engine = self._running("signal_component")
        _demand_component(component, engine.state.crews)
        count = 0
        for worker in engine.state.workers.values():
            if worker.component != component or worker.id not in engine.workers:
                continue
            if signum is None and worker.phase is Phase.BOOTING:
                continue
            chosen = worker.spec.reload_signal if signum is None else signum
            if chosen is not None:
                engine.workers.signal(worker.id, chosen)
                count += 1
        return count

    def send(self, component: str, data: Any) -> int:
        """Send a message to all workers of a component that read their channel.

        Args:
            component: its name.
            data: any value that JSON has.

        Returns:
            How many workers there were.

        Raises:
            RuntimeError: the service does not run.
            ValueError: the data is no JSON, or longer than 64 KiB with what is around it.
        """
        engine = self._running("send")
        message = Message(data)
        encode_order(message)  # refused for all of them, or for none
        workers = engine.state.workers.values()
        readers = [w for w in workers if w.component == component and w.speaks]
        for worker in readers:
            engine.workers.send(worker.id, message)
        return len(readers)

    def status(self) -> dict[str, Any]:
        """Return the state of the service and its workers, see :func:`describe`.

        ``addresses`` are those that the service has bound, of listeners and metrics.
        Before and after :meth:`run` the condition is ``"stopped"``, and there is no worker.
        """
        now = time.monotonic()
        engine = self._engine
        if engine is None:
            service, pid = self._service, os.getpid()
            found = describe(initial(service), now, service=service.name, pid=pid, started=now)
            reasons = ["the service does not run"]
            return {**found, "condition": "stopped", "reasons": reasons, "addresses": []}
        found = describe(
            engine.state,
            now,
            service=engine.generations.serving.name,
            pid=os.getpid(),
            started=engine.started,
            details=engine.workers.measure(now),
            deaths=engine.deaths,
        )
        found = _with_dead_listeners(found, list(engine.workers.guard.dead.values()))
        return {**found, "addresses": engine.addresses()}

    def upgrade(self) -> None:
        """Execute this program anew in our place, once a trial has shown that it can take over.

        Workers, listeners and our pid stay.  Where it cannot take over the log has the reason.

        Raises:
            RuntimeError: the service does not run.
        """
        self._running("upgrade").upgrade()


def _with_dead_listeners(found: dict[str, Any], dead: list[str]) -> dict[str, Any]:
    """Return a state with the listeners that nobody can put right among its reasons."""
    if not dead:
        return found
    condition = found["condition"]
    condition = "degraded" if condition in ("ready", "starting") else condition
    return {**found, "condition": condition, "reasons": [*found["reasons"], *dead]}


def _demand_component(name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ValueError(f"no component {name!r} (there are {', '.join(sorted(known))})")
