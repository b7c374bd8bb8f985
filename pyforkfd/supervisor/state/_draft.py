"""The next state of a supervisor, while one event changes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ._events import Action, Note
from ._model import Crew, Pending, Phase, Previous, State, Worker

Level = Literal["info", "warning", "error"]


@dataclass(slots=True, kw_only=True)
class Draft:
    """The next state: a copy of the last one that an event changes and that is then settled.

    Workers and crews are changed through the methods only, so that the draft knows which of
    them were touched.  All other fields may be assigned.

    Attributes:
        before: the state that the event found.
        now: seconds on the state's clock.
        actions: what to do, in this order.
        touched_workers: ids of workers that were added, changed or removed.
        touched_crews: components whose crew was added, changed or removed.
        crews, workers, pending, ...: as in :class:`State`.
    """

    before: State
    now: float
    crews: dict[str, Crew]
    workers: dict[int, Worker]
    pending: Pending | None
    previous: Previous | None
    generation: int
    next_worker: int
    lent: Mapping[tuple[str, int], int]
    rollback: float
    max_generations: int
    announced: bool
    stopping: bool
    exit_code: int
    exited: bool
    actions: list[Action] = field(default_factory=list)
    touched_workers: set[int] = field(default_factory=set)
    touched_crews: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, state: State, now: float) -> Draft:
        """Copy a state, which stays as it is."""
        return cls(
            before=state,
            now=now,
            crews=dict(state.crews),
            workers=dict(state.workers),
            pending=state.pending,
            previous=state.previous,
            generation=state.generation,
            next_worker=state.next_worker,
            lent=state.lent,
            rollback=state.rollback,
            max_generations=state.max_generations,
            announced=state.announced,
            stopping=state.stopping,
            exit_code=state.exit_code,
            exited=state.exited,
        )

    def result(self) -> State:
        """Freeze the draft.

        A mapping of which nothing was touched is that of the last state: a comparison of the
        two states finds it equal without reading its items.
        """
        return State(
            crews=self.crews if self.touched_crews else self.before.crews,
            workers=self.workers if self.touched_workers else self.before.workers,
            pending=self.pending,
            previous=self.previous,
            generation=self.generation,
            next_worker=self.next_worker,
            lent=self.lent,
            rollback=self.rollback,
            max_generations=self.max_generations,
            announced=self.announced,
            stopping=self.stopping,
            exit_code=self.exit_code,
            exited=self.exited,
        )

    def put(self, worker: Worker) -> None:
        """Add a worker, or replace it by a changed one."""
        self.workers[worker.id] = worker
        self.touched_workers.add(worker.id)

    def enter(self, worker: Worker, phase: Phase, patience: float | None) -> None:
        """Begin a phase of a worker's life.

        Args:
            worker: as it is; other changes to it are taken over.
            phase: the one that begins.
            patience: seconds that the phase may last; None: for ever.
        """
        deadline = None if patience is None else self.now + patience
        self.put(replace(worker, phase=phase, since=self.now, deadline=deadline))

    def remove(self, worker_id: int) -> Worker | None:
        """Remove a worker; None: there is none of that id."""
        worker = self.workers.pop(worker_id, None)
        if worker is not None:
            self.touched_workers.add(worker_id)
        return worker

    def put_crew(self, component: str, crew: Crew) -> None:
        """Add a crew, or replace it by a changed one."""
        self.crews[component] = crew
        self.touched_crews.add(component)

    def remove_crew(self, component: str) -> None:
        """Remove the crew of a component that has one."""
        del self.crews[component]
        self.touched_crews.add(component)

    def members(self, crew: Crew, *phases: Phase) -> list[Worker]:
        """List the workers of a crew that are in one of the phases."""
        return [
            worker
            for worker in self.workers.values()
            if worker.phase in phases
            and worker.generation == crew.generation
            and worker.component == crew.spec.name
        ]

    def note(self, worker: Worker, level: Level, text: str) -> None:
        """Log a line about a worker."""
        self.actions.append(Note(level, text, worker.component, worker.id))
