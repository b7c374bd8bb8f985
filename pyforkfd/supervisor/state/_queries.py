"""Questions about a state that its index answers, without reading every worker."""

from __future__ import annotations

from collections.abc import Mapping

from ._index import Index, Roster, index_of
from ._model import Crew, State


def roster_of(state: State, crew: Crew) -> Roster:
    """Return the workers of a crew that boot or are ready; to be read only."""
    return index_of(state).roster((crew.spec.name, crew.generation))


def missing(state: State) -> dict[str, int]:
    """Count the workers that are not ready: component -> how many fewer than wanted."""
    return missing_of(state.crews, index_of(state))


def missing_of(crews: Mapping[str, Crew], index: Index) -> dict[str, int]:
    """Count the workers that are not ready, by the parts of a state."""
    found = {}
    for name, crew in crews.items():
        ready = index.roster((name, crew.generation)).ready
        if (short := crew.count - len(crew.finished) - ready) > 0:
            found[name] = short
    return found


def given_up(state: State) -> dict[str, list[int]]:
    """Find the positions that were given up and have no ready worker: component -> positions."""
    found = {}
    for name, crew in state.crews.items():
        if positions := given_up_in(state, crew):
            found[name] = positions
    return found


def given_up_in(state: State, crew: Crew) -> list[int]:
    """List the positions of a crew that were given up and have no ready worker."""
    if not crew.setbacks:
        return []
    roster = roster_of(state, crew)
    return sorted(p for p in crew.given_up if not roster.is_ready(p))


def due(state: State) -> float | None:
    """Return when the next step is due even if no event comes; None: never."""
    first = index_of(state).next()
    if state.previous is not None:
        return state.previous.until if first is None else min(first, state.previous.until)
    return first
