"""The look-ups of the state machine: derived from workers and crews, and changed with them.

A step that changes one worker reads that worker's position and some sums, never all workers.
Values are copied when they are first changed: a state keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from ._model import SERVING, STAYING, Crew, Phase, State, Worker
from ._persistent import Heap, Table

Key: TypeAlias = tuple[str, int]
"""Component and generation, which name a crew."""

Place: TypeAlias = tuple[str, int, int]
"""Component, generation and position."""

_Entry: TypeAlias = tuple[float, int] | tuple[float, int, str, int, int]
_SLACK = 1024  # outdated deadlines that are never worth a search for more


class Roster:
    """The serving workers of one component in one generation, by position, with their sums.

    Attributes:
        crew: that wants them; None: there is none, and nobody is wanted.
        at: position -> the workers that boot or are ready there, by id.
        ready: how many are ready.
        takers: ids of the ready workers that read orders; the values mean nothing.
        unmet: how many of the crew's positions are neither served nor finished.
        replacing: positions at which a worker boots that another one waits for.
        alone: positions whose worker is to be replaced, and has no successor yet.
        beyond: how many workers have a position that is not wanted.
    """

    __slots__ = ("alone", "at", "beyond", "crew", "ready", "replacing", "takers", "unmet")

    def __init__(self) -> None:
        self.crew: Crew | None = None
        self.at: Table[tuple[Worker, ...]] = Table()
        self.ready = self.unmet = self.replacing = self.beyond = 0
        self.takers: Table[None] = Table()
        self.alone: set[int] = set()

    def copy(self) -> Roster:
        """Return a copy that may be changed."""
        copy = Roster()
        copy.crew, copy.at, copy.takers = self.crew, self.at.branch(), self.takers.branch()
        copy.ready, copy.unmet, copy.beyond = self.ready, self.unmet, self.beyond
        copy.replacing, copy.alone = self.replacing, set(self.alone)
        return copy

    def is_ready(self, position: int) -> bool:
        """Return whether a worker is ready at a position."""
        return any(worker.phase is Phase.READY for worker in self.at.get(position, ()))

    def members(self) -> list[Worker]:
        """List the workers, by id."""
        return sorted((w for here in self.at.values() for w in here), key=lambda w: w.id)

    def surplus(self) -> Iterator[int]:
        """Yield the ids of the workers whose position is not wanted."""
        count = 0 if self.crew is None else self.crew.count
        return (w.id for position, here in self.at.items() if position >= count for w in here)

    def change(self, position: int, old: Worker | None, new: Worker | None) -> None:
        """Replace a worker at its position.

        Args:
            position: its position.
            old: that serves there; None: it does not serve yet.
            new: that serves there from now on; None: it does not serve any more.
        """
        self._weigh(position, -1)
        here = self.at.get(position, ())
        if old is not None:
            here = tuple(w for w in here if w.id != old.id)
            self.ready -= old.phase is Phase.READY
            if old.id in self.takers:
                del self.takers[old.id]
        if new is not None:
            here = tuple(sorted((*here, new), key=lambda w: w.id)) if here else (new,)
            self.ready += new.phase is Phase.READY
            if new.speaks and new.phase is Phase.READY:
                self.takers[new.id] = None
        if here:
            self.at[position] = here
        elif position in self.at:
            del self.at[position]
        self._weigh(position, 1)

    def want(self, crew: Crew | None, position: int | None) -> None:
        """Give it another crew.

        Args:
            crew: the one that wants the workers from now on.
            position: the only one at which the crew differs; None: everything may.
        """
        if position is not None and self.crew is not None:
            self._weigh(position, -1)
            self.crew = crew
            self._weigh(position, 1)
            return
        self.crew = crew
        self.unmet = self.replacing = self.beyond = 0
        self.alone = set()
        for each in self.at.keys() | range(0 if crew is None else crew.count):
            self._weigh(each, 1)

    def _weigh(self, position: int, sign: int) -> None:
        """Add a position to the sums, or take it away."""
        here = self.at.get(position, ())
        crew = self.crew
        if crew is None or position >= crew.count:
            self.beyond += sign * len(here)
            return
        ready = successor = waiting = fresh_ready = False
        for worker in here:
            is_ready = worker.phase is Phase.READY
            ready |= is_ready
            waiting |= worker.retiring
            successor |= not worker.retiring
            fresh_ready |= is_ready and not worker.retiring
        if not ready and position not in crew.finished:
            self.unmet += sign
        if waiting and not successor:
            if sign > 0:
                self.alone.add(position)
            else:
                self.alone.discard(position)
        elif waiting and not fresh_ready:
            self.replacing += sign


class Index:
    """Rosters, deadlines and sums of a state.

    Attributes:
        rosters: component and generation -> the serving workers.
        staying: how many workers do not leave.
        generations: generation -> how many workers of it are alive.
        settled: whether a step has settled the state; else the next one checks everything.
    """

    __slots__ = (
        "_copied",
        "_deadlines",
        "generations",
        "rosters",
        "settled",
        "staying",
    )

    def __init__(self) -> None:
        self.rosters: dict[Key, Roster] = {}
        self.generations: dict[int, int] = {}
        self.staying = 0
        self.settled = False
        self._copied: set[Key] = set()
        self._deadlines: Heap[_Entry] = Heap()

    @classmethod
    def of(
        cls, workers: Mapping[int, Worker], crews: Mapping[str, Crew], booting: Iterable[Crew]
    ) -> Index:
        """Index all workers and crews.

        Args:
            workers: all of them.
            crews: those that are wanted, by component.
            booting: those of a pending generation.
        """
        index = cls()
        for worker in workers.values():
            index.change(None, worker)
        for crew in (*crews.values(), *booting):
            index.want(crew)
        return index

    def branch(self) -> Index:
        """Return a copy that may be changed."""
        copy = Index()
        copy.rosters = dict(self.rosters)
        copy.generations = dict(self.generations)
        copy.staying, copy.settled = self.staying, self.settled
        copy._deadlines = self._deadlines
        return copy

    def keep(self, state: State) -> None:
        """Be the index of a state, unchanged from now on."""
        object.__setattr__(state, "index", self)

    # Rosters

    def roster(self, key: Key) -> Roster:
        """Return a roster, to be read only; an empty one where there is none."""
        return self.rosters.get(key) or Roster()

    def _own(self, key: Key) -> Roster:
        """Return a roster that may be changed."""
        roster = self.rosters.get(key)
        if roster is None:
            roster = self.rosters[key] = Roster()
        elif key not in self._copied:
            roster = self.rosters[key] = roster.copy()
        self._copied.add(key)
        return roster

    def change(self, old: Worker | None, new: Worker | None) -> None:
        """Replace a worker by a changed one, add one, or remove one."""
        worker = new or old
        assert worker is not None
        key, generation = (worker.component, worker.generation), worker.generation
        self.staying += _stays(new) - _stays(old)
        if old is None or new is None:
            alive = self.generations.pop(generation, 0) + (1 if old is None else -1)
            if alive:
                self.generations[generation] = alive
        was, serves = _serving(old), _serving(new)
        if was is not None or serves is not None:
            roster = self._own(key)
            roster.change(worker.position, was, serves)
            if not roster.at and roster.crew is None:
                del self.rosters[key]
        deadline = None if new is None else new.deadline
        if deadline is not None and (old is None or old.deadline != deadline):
            self._push((deadline, worker.id))

    def want(self, crew: Crew, position: int | None = None) -> None:
        """Want the workers of a crew.

        Args:
            crew: of the present or of a pending generation.
            position: the only one at which it differs from the one before; None: anything may.
        """
        key = name, generation = crew.spec.name, crew.generation
        self._own(key).want(crew, position)
        for each in crew.setbacks if position is None else (position,):
            setbacks = crew.setbacks.get(each)
            if setbacks is not None and setbacks.until is not None:
                self._push((setbacks.until, 0, name, generation, each))

    def unwant(self, key: Key) -> None:
        """Want no workers of a crew any more."""
        if key in self.rosters:
            roster = self._own(key)
            roster.want(None, None)
            if not roster.at:
                del self.rosters[key]

    # Deadlines

    def _push(self, entry: _Entry) -> None:
        self._deadlines = self._deadlines.push(entry)

    def expired(
        self, now: float, workers: Mapping[int, Worker], crews: Mapping[str, Crew]
    ) -> tuple[list[Worker], list[Place]]:
        """Take what is due: workers whose phase has lasted too long, and ended back-offs.

        Returns:
            The workers by id, and the places of which the next start is due.
        """
        overdue: dict[int, Worker] = {}
        due: list[Place] = []
        while (entry := self._deadlines.first) is not None and entry[0] <= now:
            self._deadlines = self._deadlines.pop()
            if _is_valid(entry, workers, crews):
                if len(entry) == 2:
                    overdue[entry[1]] = workers[entry[1]]
                else:
                    due.append(entry[2:])
        return [overdue[worker_id] for worker_id in sorted(overdue)], due

    def next(self) -> float | None:
        """Return the first deadline, of workers and back-offs; None: there is none."""
        first = self._deadlines.first
        return None if first is None else first[0]

    def tidy(self, workers: Mapping[int, Worker], crews: Mapping[str, Crew]) -> None:
        """Forget the deadlines that do not hold any more, if they are first or too many.

        Args:
            workers: all of them.
            crews: those that have back-offs: none, when nothing is started any more.
        """
        while (first := self._deadlines.first) and not _is_valid(first, workers, crews):
            self._deadlines = self._deadlines.pop()
        if self._deadlines.size > 2 * len(workers) + _SLACK:
            held = sum(len(crew.setbacks) for crew in crews.values())
            if self._deadlines.size > 2 * (len(workers) + held) + _SLACK:
                valid = {e for e in self._deadlines if _is_valid(e, workers, crews)}
                self._deadlines = Heap()
                for entry in valid:
                    self._push(entry)


def index_of(state: State) -> Index:
    """Return the index of a state, to be read only; it is made where there is none yet."""
    if state.index is None:
        booting = () if state.pending is None else state.pending.crews.values()
        index = Index.of(state.workers, state.crews, booting)
        index.tidy(state.workers, {} if state.stopping else state.crews)
        index.keep(state)
    assert isinstance(state.index, Index)
    return state.index


def _is_valid(entry: _Entry, workers: Mapping[int, Worker], crews: Mapping[str, Crew]) -> bool:
    """Return whether a deadline is still the one of its worker, or of its position."""
    if len(entry) == 2:
        worker = workers.get(entry[1])
        return worker is not None and worker.deadline == entry[0]
    until, _, name, generation, position = entry
    crew = crews.get(name)
    if crew is None or crew.generation != generation:
        return False
    setbacks = crew.setbacks.get(position)
    return setbacks is not None and setbacks.until == until


def _serving(worker: Worker | None) -> Worker | None:
    return worker if worker is not None and worker.phase in SERVING else None


def _stays(worker: Worker | None) -> bool:
    return worker is not None and worker.phase in STAYING
