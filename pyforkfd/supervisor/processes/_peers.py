"""The news for workers of other components that have become ready, or have gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pyforkfd.supervisor.state._model import Phase, State


class Peers:
    """The state of other components as each worker knows it."""

    def __init__(self) -> None:
        """Begin without a worker."""
        self._known: dict[tuple[int, str], bool] = {}
        self._seen: object = None

    def news(self, state: State) -> Iterator[tuple[int, str, int]]:
        """Yield the news since the last call: (worker's id, component, ready workers of it).

        A worker gets the state of every other component as soon as it reads orders, and from
        then on whenever one goes from none ready to some or back.
        """
        ready = Counter(w.component for w in state.workers.values() if w.phase is Phase.READY)
        listening = {w.id: w.component for w in state.workers.values() if w.speaks}
        seen = (ready, listening, tuple(state.crews))
        if seen == self._seen:
            return
        self._seen = seen
        self._known = {key: was for key, was in self._known.items() if key[0] in listening}
        components = {*state.crews, *(name for _, name in self._known)}
        for worker_id, own in listening.items():
            for name in sorted(components - {own}):
                is_ready = ready[name] > 0
                if self._known.get((worker_id, name)) is not is_ready:
                    self._known[worker_id, name] = is_ready
                    yield worker_id, name, ready[name]
