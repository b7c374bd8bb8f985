"""Which workers are to hear that another component is there, or gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pyforkfd.supervisor.state._model import Phase, State


class Peers:
    """What each worker was told of the other components."""

    def __init__(self) -> None:
        self._told: dict[tuple[int, str], bool] = {}
        self._seen: object = None

    def news(self, state: State) -> Iterator[tuple[int, str, int]]:
        """What is new since the last call: (worker, component, how many are ready there).

        A worker hears of every other component as soon as it speaks, and from then on
        whenever one goes from none ready to some or back.
        """
        ready = Counter(w.component for w in state.workers.values() if w.phase is Phase.READY)
        listening = {w.id: w.component for w in state.workers.values() if w.speaks}
        seen = (ready, listening, tuple(state.crews))
        if seen == self._seen:
            return
        self._seen = seen
        self._told = {key: was for key, was in self._told.items() if key[0] in listening}
        known = {*state.crews, *(name for _, name in self._told)}
        for number, own in listening.items():
            for name in sorted(known - {own}):
                there = ready[name] > 0
                if self._told.get((number, name)) is not there:
                    self._told[number, name] = there
                    yield number, name, ready[name]
