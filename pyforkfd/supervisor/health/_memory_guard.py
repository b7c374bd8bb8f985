"""The memory guard of one component: pure; from what its workers use to what they are told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pyforkfd.supervisor.spec._limits import PRESSURE_WINDOW, MemoryGuard

Order: TypeAlias = Literal[
    "stop_accepting", "resume_accepting", "collect", "buffer_logs", "flush_logs", "recycle"
]
"""What a worker is told; "recycle" is for the supervisor: replace it."""


@dataclass(frozen=True, slots=True)
class Told:
    """What one worker is to be told, in this order."""

    worker_id: int
    orders: tuple[Order, ...]


@dataclass(slots=True)
class _Worker:
    used: int = 0
    above_since: float | None = None  # without a break
    waited: float | None = None  # when it last waited for memory for too long
    limited_since: float | None = None
    collected: float = 0.0
    stopped: bool = False  # it does not accept, since we said so
    recycled: bool = False


class Guard:
    """Watches the workers of one component.  It knows no clock: times are given to it.

    As many workers as the configuration says go on accepting, whatever they use: traffic that
    the others no longer take goes to them, and a service that answers slowly is better than
    one that does not.  A worker that may not stop collects and buffers its log all the same,
    and stops as soon as another has resumed.
    """

    def __init__(self, config: MemoryGuard) -> None:
        self._config = config
        self._workers: dict[int, _Worker] = {}

    def look(self, used: Mapping[int, int], now: float) -> list[Told]:
        """Take one sample of all workers.

        Args:
            used: worker -> bytes, for each that is ready and not on its way out.  One that
                is not there any more is forgotten.
            now: seconds on a clock that does not go back.

        Returns:
            What to tell whom; nothing is said twice, but "collect" every ``seconds`` while a
            worker is limited: requests that it still had leave garbage when they end.
        """
        self._workers = {number: self._workers.get(number, _Worker()) for number in sorted(used)}
        said: dict[int, list[Order]] = {number: [] for number in self._workers}
        for number, worker in self._workers.items():
            worker.used = used[number]
            said[number] += self._judge(worker, now)
        self._share(said, now)
        return [Told(number, tuple(orders)) for number, orders in said.items() if orders]

    def waited(self, worker_id: int, now: float) -> None:
        """A worker has waited for memory for too long, however much it uses.

        It is taken as one that is above the bound, until it has not done so for ``seconds``.

        Args:
            worker_id: of the worker; one that :meth:`look` has not seen yet is known from then on.
            now: as for :meth:`look`.
        """
        self._workers.setdefault(worker_id, _Worker()).waited = now

    def _waits(self, worker: _Worker, now: float) -> bool:
        # It is told once in a window, so a shorter time would see breaks that are none.
        lasts = max(self._config.seconds, 2 * PRESSURE_WINDOW)
        return worker.waited is not None and now - worker.waited < lasts

    def _judge(self, worker: _Worker, now: float) -> list[Order]:
        """What it is told for its own memory alone."""
        config = self._config
        if worker.used < config.high:
            worker.above_since = None
        elif worker.above_since is None:
            worker.above_since = now
        waits = self._waits(worker, now)
        freed = worker.used < config.resume_below and not waits
        if worker.limited_since is not None and freed:
            worker.limited_since = None
            if worker.stopped:
                worker.stopped = False
                return ["resume_accepting", "flush_logs"]
            return ["flush_logs"]
        said: list[Order] = []
        if worker.limited_since is not None:
            if now - worker.collected >= config.seconds:
                worker.collected = now
                said.append("collect")
        elif waits or (
            worker.above_since is not None and now - worker.above_since >= config.seconds
        ):
            worker.limited_since = worker.collected = now
            said += ["collect", "buffer_logs"]
        if not worker.recycled and self._is_hopeless(worker, now):
            worker.recycled = True
            said.append("recycle")
        return said

    def _is_hopeless(self, worker: _Worker, now: float) -> bool:
        config = self._config
        if config.recycle is not None and worker.used >= config.recycle:
            return True
        return (
            config.recycle_after is not None
            and worker.limited_since is not None
            and now - worker.limited_since >= config.recycle_after
        )

    def _share(self, said: dict[int, list[Order]], now: float) -> None:
        """Who of the limited stops accepting: the largest first, and never too many."""
        workers = self._workers
        # 0.07 * 100 is a little above 7.
        kept = math.ceil(self._config.keep_accepting * len(workers) - 1e-9)
        spare = len(workers) - kept
        stopped = [n for n, worker in workers.items() if worker.stopped]
        # Others have gone since, and took the share that was spared with them.
        stopped.sort(key=lambda n: workers[n].used)
        for number in stopped[: max(0, len(stopped) - spare)]:
            workers[number].stopped = False
            said[number].insert(0, "resume_accepting")
        spare -= sum(worker.stopped for worker in workers.values())
        candidates = [
            number
            for number, worker in workers.items()
            if worker.limited_since is not None
            and (worker.above_since is not None or self._waits(worker, now))
            and not worker.stopped
            and "resume_accepting" not in said[number]
        ]
        candidates.sort(key=lambda n: workers[n].used, reverse=True)
        for number in candidates[:spare]:
            workers[number].stopped = True
            said[number].insert(0, "stop_accepting")
