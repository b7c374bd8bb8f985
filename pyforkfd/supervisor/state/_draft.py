"""The next state of a supervisor, while one event changes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ._events import Action, Note
from ._index import Index, Key, index_of
from ._model import Crew, Pending, Phase, Previous, State, Worker
from ._persistent import Table

Level = Literal["info", "warning", "error"]


@dataclass(slots=True, kw_only=True)
class Draft:
    """The next state: the last one, which an event changes and which is then settled.

    Workers, crews and the pending generation are changed through the methods only, so that the
    draft knows which of them were touched, and its index follows.  All other fields may be
    assigned.

    Attributes:
        before: the state that the event found.
        now: seconds on the state's clock.
        index: of the draft.
        actions: what to do, in this order.
        touched_workers: ids of workers that were added, changed or removed.
        touched_crews: components whose crew was added, changed or removed.
        stirred: crews -> positions that may differ from what is wanted.
        all_stirred: whether any worker and any position may.
        crews, workers, pending, ...: as in :class:`State`.
    """

    before: State
    now: float
    index: Index
    crews: Mapping[str, Crew]
    workers: Mapping[int, Worker]
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
    stirred: dict[Key, set[int]] = field(default_factory=dict)
    all_stirred: bool = False

    @classmethod
    def of(cls, state: State, now: float) -> Draft:
        """Continue from a state, which stays as it is."""
        index = index_of(state).branch()
        return cls(
            before=state,
            now=now,
            index=index,
            all_stirred=not index.settled,
            crews=state.crews,
            workers=state.workers,
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

        A mapping of which nothing was touched is that of the last state.
        """
        self.index.tidy(self.workers, {} if self.stopping else self.crews)
        state = State(
            crews=self.crews,
            workers=self.workers,
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
        self.index.keep(state)
        return state

    # Workers

    def put(self, worker: Worker) -> None:
        """Add a worker, or replace it by a changed one."""
        workers = self._own_workers()
        old = workers.get(worker.id)
        workers[worker.id] = worker
        self._touch(old, worker)

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
        if worker_id not in self.workers:
            return None
        worker = self.workers[worker_id]
        del self._own_workers()[worker_id]
        self._touch(worker, None)
        return worker

    def _own_workers(self) -> Table[Worker]:
        if not self.touched_workers:
            known = self.workers
            self.workers = known.branch() if isinstance(known, Table) else Table(known)
        assert isinstance(self.workers, Table)
        return self.workers

    def _touch(self, old: Worker | None, new: Worker | None) -> None:
        worker = new or old
        assert worker is not None
        self.touched_workers.add(worker.id)
        self.index.change(old, new)
        self.stir((worker.component, worker.generation), worker.position)

    # Crews

    def put_crew(self, component: str, crew: Crew, position: int | None = None) -> None:
        """Add a crew, or replace it by a changed one.

        Args:
            component: its name.
            crew: from now on.
            position: the only one at which it differs from the one before; None: anything may.
        """
        crews = self._own_crews()
        old = crews.get(component)
        if old is not None and old.generation != crew.generation:
            self.index.unwant((component, old.generation))
        crews[component] = crew
        self.touched_crews.add(component)
        self._want(crew, position)

    def remove_crew(self, component: str) -> None:
        """Remove the crew of a component that has one."""
        crew = self._own_crews().pop(component)
        self.touched_crews.add(component)
        self.index.unwant((component, crew.generation))
        self.all_stirred = True

    def _own_crews(self) -> dict[str, Crew]:
        if not self.touched_crews:
            self.crews = dict(self.crews)
        assert isinstance(self.crews, dict)
        return self.crews

    def _want(self, crew: Crew, position: int | None) -> None:
        self.index.want(crew, position)
        if position is None:
            self.all_stirred = True
        else:
            self.stir((crew.spec.name, crew.generation), position)

    def begin(self, pending: Pending) -> None:
        """Boot a generation; none is booting."""
        self.pending = pending
        for crew in pending.crews.values():
            self._want(crew, None)
        self.all_stirred = True

    def put_pending_crew(self, crew: Crew, position: int | None = None) -> None:
        """Replace a crew of the generation that boots; the arguments are as for a present one."""
        assert self.pending is not None
        crews = {**self.pending.crews, crew.spec.name: crew}
        self.pending = replace(self.pending, crews=crews)
        self._want(crew, position)

    def end_pending(self) -> None:
        """End the boot of a generation: its crews are the present ones now, or not wanted."""
        assert self.pending is not None
        for name, crew in self.pending.crews.items():
            present = self.crews.get(name)
            if present is None or present.generation != crew.generation:
                self.index.unwant((name, crew.generation))
        self.pending = None
        self.all_stirred = True

    def stir(self, key: Key, position: int) -> None:
        """Have a position checked when the draft is settled."""
        self.stirred.setdefault(key, set()).add(position)

    def members(self, crew: Crew, phase: Phase | None = None) -> list[Worker]:
        """List the workers of a crew that boot or are ready, by id.

        Args:
            crew: of any generation.
            phase: the only one that counts; None: both.
        """
        members = self.index.roster((crew.spec.name, crew.generation)).members()
        return [worker for worker in members if phase in (None, worker.phase)]

    def note(self, worker: Worker, level: Level, text: str) -> None:
        """Log a line about a worker."""
        self.actions.append(Note(level, text, worker.component, worker.id))
