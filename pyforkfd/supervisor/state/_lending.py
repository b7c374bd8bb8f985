"""The loans of shards: where no worker is ready, a sibling accepts from the position's sockets."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from ._draft import Draft
from ._events import Lend, TakeBack
from ._index import index_of
from ._model import Crew

Shard: TypeAlias = tuple[str, int]
"""Component and position."""


def lend(draft: Draft) -> None:
    """Lend the shards of positions where no worker is ready, each to one sibling."""
    changes: dict[Shard, int | None] = {}
    if draft.stopping:
        changes.update(dict.fromkeys(draft.lent))
    elif draft.all_stirred:
        changes.update((key, None) for key in draft.lent if not _may_be_lent(draft, key))
        for crew in draft.crews.values():
            if crew.sharded:
                _lend_in(draft, crew, range(crew.widest), changes)
    else:
        for (name, generation), positions in draft.stirred.items():
            present = draft.crews.get(name)
            if present is not None and present.sharded and present.generation == generation:
                _lend_in(draft, present, positions, changes)
    if changes:
        _change(draft, changes)


def _may_be_lent(draft: Draft, key: Shard) -> bool:
    crew = draft.crews.get(key[0])
    return crew is not None and crew.sharded and key[1] < crew.widest


def _lend_in(
    draft: Draft, crew: Crew, stirred: Iterable[int], changes: dict[Shard, int | None]
) -> None:
    """Find what is to change in a crew's loans.

    Args:
        draft: borrowed.
        crew: of the present generation.
        stirred: positions whose worker may be another one, or none.
        changes: position of a component -> the new taker, or None; is added to.
    """
    name, key = crew.spec.name, (crew.spec.name, crew.generation)
    roster = draft.index.roster(key)
    before = index_of(draft.before).roster(key).takers
    takers = roster.takers
    positions = set(stirred)
    if takers and not before:
        positions.update(range(crew.widest))
    elif gone := {n for n in draft.touched_workers if n in before and n not in takers}:
        positions.update(p for (other, p), n in draft.lent.items() if other == name and n in gone)
    needed = []
    for position in sorted(positions):
        taker = draft.lent.get((name, position))
        if position >= crew.widest or roster.is_ready(position):
            if taker is not None:
                changes[name, position] = None
        elif taker not in takers:
            if takers:
                needed.append(position)
            elif taker is not None:
                changes[name, position] = None
    if needed:
        lost = {(name, position) for position in needed} | changes.keys()
        loads = Counter(
            n for shard, n in draft.lent.items() if shard[0] == name and shard not in lost
        )
        found = _least_loaded(takers, loads, len(needed))
        changes.update(((name, p), taker) for p, taker in zip(needed, found, strict=True))


def _least_loaded(takers: Mapping[int, None], loads: Counter[int], count: int) -> list[int]:
    """Choose so many takers, one after the other: each the one with the fewest loans."""
    idle = takers.keys() - loads.keys()
    if len(idle) >= count:
        return heapq.nsmallest(count, idle)
    heap = [(loads[taker], taker) for taker in takers]
    heapq.heapify(heap)
    found = []
    for _ in range(count):
        load, taker = heap[0]
        heapq.heapreplace(heap, (load + 1, taker))
        found.append(taker)
    return found


def _change(draft: Draft, changes: Mapping[Shard, int | None]) -> None:
    lent = dict(draft.lent)
    for key in sorted(changes):
        old = lent.pop(key, None)
        if old is not None and old in draft.workers:
            draft.actions.append(TakeBack(old, key[1]))
    for key in sorted(changes):
        if (taker := changes[key]) is not None:
            lent[key] = taker
            draft.actions.append(Lend(taker, key[1]))
    draft.lent = lent
