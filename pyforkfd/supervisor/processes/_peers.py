"""The news for workers of other components that have become ready, or have gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from pyforkfd.supervisor.state._model import Phase, State, Worker


class Peers:
    """The state of other components as each worker knows it."""

    def __init__(self) -> None:
        """Begin without a worker."""
        self._ready: Counter[str] = Counter()
        self._listening: dict[int, str] = {}  # worker's id -> its component
        self._known: dict[str, bool] = {}  # component -> whether it is ready, as they all know
        self._new: set[int] = set()  # listen since the last news
        self._changed: set[str] = set()  # components that may have become ready, or gone

    def changed(self, before: State, after: State, workers: Iterable[int]) -> None:
        """Note what a step has changed.

        Args:
            before: the state before the step.
            after: the state after it.
            workers: ids of those that were added, changed or removed.
        """
        if before.crews is not after.crews:
            self._changed.update(before.crews.keys() ^ after.crews.keys())
        for worker_id in workers:
            old, new = before.workers.get(worker_id), after.workers.get(worker_id)
            worker = new or old
            if worker is None:
                continue
            name, was_ready, is_ready = worker.component, _is_ready(old), _is_ready(new)
            if was_ready != is_ready:
                self._ready[name] += is_ready - was_ready
                self._changed.add(name)
            if new is None:
                self._listening.pop(worker_id, None)
                self._new.discard(worker_id)
            elif new.speaks and worker_id not in self._listening:
                self._listening[worker_id] = name
                self._new.add(worker_id)

    def news(self, state: State) -> Iterator[tuple[int, str, int]]:
        """Yield the news since the last call: (worker's id, component, ready workers of it).

        A worker gets the state of every other component as soon as it reads orders, and from
        then on whenever one goes from none ready to some or back.
        """
        if not (self._changed or self._new):
            return
        changed, new, self._changed, self._new = self._changed, self._new, set(), set()
        turned = []
        for name in sorted(changed):
            is_ready = self._ready[name] > 0
            if (name in state.crews or name in self._known) and self._known.get(name) != is_ready:
                self._known[name] = is_ready
                turned.append(name)
            if name not in state.crews and not is_ready:
                self._known.pop(name, None)
        for worker_id, own in self._listening.items() if turned else ():
            if worker_id not in new:
                yield from ((worker_id, n, self._ready[n]) for n in turned if n != own)
        for worker_id in sorted(new):
            own = self._listening[worker_id]
            names = self._known.keys() - {own}
            yield from ((worker_id, n, self._ready[n]) for n in sorted(names))


def _is_ready(worker: Worker | None) -> bool:
    return worker is not None and worker.phase is Phase.READY
