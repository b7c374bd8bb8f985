"""The supervisor: the engine, and what the outside may ask of it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Collection
from typing import Any

from ._engine import Engine
from .control._requests import Requests
from .control._status import WorkerDetails, describe
from .spec._diff import diff
from .spec._spec import Service, SpecError
from .spec._validate import validate
from .state._events import Reload, Reloaded, Retire, RollBack, Scale, Stop, Tick
from .state._model import SERVING, Phase, sharded
from .succession._keeper import execute_keeper
from .succession._succession import Succession
from .worker._messages import Message
from .worker._protocol import encode_order

log = logging.getLogger("pyforkfd.supervisor")

_AT_START = frozenset({"name", "keeper", "control", "log", "metrics"})  # and not by a reload


class Supervisor(Engine):
    """Runs a service until it is told to stop.

    One thread does it all, and nothing in it waits but the reactor; only a spawn waits for
    the exec, as every spawn does.  While it runs, its methods are for that thread alone: from
    anywhere else the control socket is the way in.
    """

    def __init__(
        self,
        service: Service,
        *,
        read_again: Callable[[], Service] | None = None,
        on_message: Callable[[str, int, Any], None] | None = None,
    ) -> None:
        """Describe it; nothing is bound or started yet.

        Args:
            service: what to run.
            read_again: for a reload, what to run then; None: the same.
            on_message: called with what a worker sends: component, worker, data.  It must
                not block, and may call :meth:`send`.

        Raises:
            SpecError: the service makes no sense; all its problems.
        """
        if problems := validate(service):
            raise SpecError(tuple(problems))
        super().__init__(service, on_message)
        self._read_again = read_again

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
            succession = stack.enter_context(Succession())
            if succession.rehearsal is not None:
                return succession.prove()
            if self._service.keeper and succession.past is None and succession.keeper is None:
                execute_keeper()
            with succession.guarded():
                return self._run(stack, succession)

    def _orders(self) -> Requests:
        requests = Requests(self)
        requests.attach_logs(self._output.tail)
        return requests

    def _on_signal(self, signum: int) -> None:
        match signum:
            case signal.SIGHUP:
                self.reload()
            case signal.SIGUSR1:
                self._output.reopen()
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
            reply: called when it is ready, or why it is not.
            only: components to replace; None: all.
        """
        try:
            service = self._service if self._read_again is None else self._read_again()
            if problems := validate(service):
                raise SpecError(tuple(problems))
            for name in sorted(only or ()):
                _demand_component(name, service.components)
            self._open_listeners(service)
        except (OSError, ValueError) as error:
            self._untidy = True
            log.error("reload: %s", error)
            reply(Reloaded(self._state.generation, str(error)))
            return
        difference = diff(self._service, service)
        if later := sorted(_AT_START.intersection(difference.sections)):
            log.warning("reload: %s: as before until the next start", ", ".join(later))
        changed = {*difference.components.changed}
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
        self._feed(
            Reload(
                dict(service.components),
                replaced,
                sharded=sharded(service),
                rollback=service.rollback,
                max_generations=service.max_generations,
            )
        )

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
        _demand_component(component, self._state.crews)
        if count < 0:
            raise ValueError(f"scale {component}: {count} is negative")
        crew = self._state.crews[component]
        service = self._services[crew.generation]
        for name in crew.spec.listen:
            for position in range(count):
                self._sockets.get(service.listeners[name], position)
        self._feed(Scale(component, count))

    def retire(self, worker_id: int, why: str) -> None:
        """Replace one worker; it leaves when its replacement is ready.

        Raises:
            ValueError: there is no such worker, or it is about to leave.
        """
        found = self._state.workers.get(worker_id)
        if found is None or found.phase not in SERVING:
            here = sorted(w.id for w in self._state.workers.values() if w.phase in SERVING)
            raise ValueError(
                f"no worker {worker_id} serves (there are {', '.join(map(str, here))})"
            )
        self._feed(Retire(worker_id, why))

    def stop(self, *, now: bool = False) -> None:
        """End: workers finish what they have begun, or with ``now`` are killed."""
        self._feed(Stop(now))

    def signal_component(self, component: str, signum: int | None = None) -> int:
        """Send a signal to all workers of a component; None: its reload_signal.

        That is not for one that boots: it may not be able to take it yet, and reads what is
        new by itself.

        Returns:
            How many workers it was sent to.

        Raises:
            ValueError: there is no such component.
        """
        _demand_component(component, self._state.crews)
        count = 0
        for worker in self._state.workers.values():
            if signum is None and worker.phase is Phase.BOOTING:
                continue
            sig = worker.spec.reload_signal if signum is None else signum
            if worker.component == component and worker.id in self._workers and sig is not None:
                self._workers.signal(worker.id, sig)
                count += 1
        return count

    def send(self, component: str, data: Any) -> int:
        """Send a message to all workers of a component that read their channel.

        Args:
            component: its name.
            data: any JSON.

        Returns:
            How many workers there were.

        Raises:
            ValueError: the data is no JSON, or longer than 64 KiB with what is around it.
        """
        message = Message(data)
        encode_order(message)  # refused for all of them, or for none
        those = [w for w in self._state.workers.values() if w.component == component and w.speaks]
        for worker in those:
            self._workers.send(worker.id, message)
        return len(those)

    def status(self) -> dict[str, Any]:
        """How everything is, see :func:`describe`."""
        now = time.monotonic()
        details = {}
        for running in self._workers:
            number = running.worker.id
            age = self._watch.beat_age(number, now)
            memory = self._workers.memory(number)
            details[number] = WorkerDetails(text=running.status, beat_age=age, memory=memory)
        return describe(
            self._state,
            now,
            service=self._service.name,
            pid=os.getpid(),
            started=self._started,
            details=details,
            deaths=self._deaths,
        )

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
        self._start_waiting()  # we are still here
        self._feed(Tick())


def _demand_component(name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ValueError(f"no component {name!r} (there are {', '.join(sorted(known))})")
