"""The memory guard of one component: from samples of its workers' memory to orders.  Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pyforkfd.supervisor.spec._limits import PRESSURE_WINDOW, MemoryGuard

Order: TypeAlias = Literal[
    "stop_accepting", "resume_accepting", "collect", "buffer_logs", "flush_logs", "recycle"
]
"""An order to a worker; "recycle" is for the supervisor: replace the worker."""


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders for one worker, in the order in which they are sent."""

    worker_id: int
    orders: tuple[Order, ...]


@dataclass(slots=True)
class _Worker:
    used: int = 0
    above_since: float | None = None  # without a break
    pressure_at: float | None = None  # the last wait for memory that was too long
    limited_since: float | None = None
    collected: float = 0.0
    stopped: bool = False  # does not accept, by our order
    recycled: bool = False


class Guard:
    """The memory guard of one component.  The times come from the caller.

    The share of workers that the configuration has goes on accepting, however much memory
    they use: they get the traffic that the others no longer take, and a service that answers
    slowly is better than one that does not.  A worker that may not stop collects and buffers
    its log all the same, and stops as soon as another has resumed.

    Attributes:
        config: may be replaced; what is known of the workers stays.
    """

    def __init__(self, config: MemoryGuard) -> None:
        self.config = config
        self._workers: dict[int, _Worker] = {}

    def sample(self, used: Mapping[int, int], now: float) -> list[Orders]:
        """Take one sample of all workers.

        Args:
            used: worker id -> bytes, for each worker that is ready and does not drain.  A
                worker that is missing is forgotten.
            now: seconds on a clock that does not go back.

        Returns:
            The orders to send.  None is repeated but "collect", every ``seconds`` while a
            worker is limited: its last requests leave garbage when they end.
        """
        self._workers = {
            worker_id: self._workers.get(worker_id, _Worker()) for worker_id in sorted(used)
        }
        orders: dict[int, list[Order]] = {worker_id: [] for worker_id in self._workers}
        for worker_id, worker in self._workers.items():
            worker.used = used[worker_id]
            orders[worker_id] += self._judge(worker, now)
        self._share(orders, now)
        return [Orders(worker_id, tuple(each)) for worker_id, each in orders.items() if each]

    def pressure(self, worker_id: int, now: float) -> None:
        """Take a report that a worker waited too long for memory, however much it uses.

        The worker is limited like one above the bound, until ``seconds`` have passed without
        such a report.

        Args:
            worker_id: of the worker; one that no :meth:`sample` had yet is known from now on.
            now: as for :meth:`sample`.
        """
        self._workers.setdefault(worker_id, _Worker()).pressure_at = now

    def _is_under_pressure(self, worker: _Worker, now: float) -> bool:
        # Reports come once in a window: a shorter time would see breaks that are none.
        lasts = max(self.config.seconds, 2 * PRESSURE_WINDOW)
        return worker.pressure_at is not None and now - worker.pressure_at < lasts

    def _judge(self, worker: _Worker, now: float) -> list[Order]:
        """Return the orders for the worker's own memory alone."""
        config = self.config
        if worker.used < config.high:
            worker.above_since = None
        elif worker.above_since is None:
            worker.above_since = now
        pressure = self._is_under_pressure(worker, now)
        freed = worker.used < config.resume_below and not pressure
        if worker.limited_since is not None and freed:
            worker.limited_since = None
            if worker.stopped:
                worker.stopped = False
                return ["resume_accepting", "flush_logs"]
            return ["flush_logs"]
        orders: list[Order] = []
        if worker.limited_since is not None:
            if now - worker.collected >= config.seconds:
                worker.collected = now
                orders.append("collect")
        elif pressure or (
            worker.above_since is not None and now - worker.above_since >= config.seconds
        ):
            worker.limited_since = worker.collected = now
            orders += ["collect", "buffer_logs"]
        if not worker.recycled and self._must_recycle(worker, now):
            worker.recycled = True
            orders.append("recycle")
        return orders

    def _must_recycle(self, worker: _Worker, now: float) -> bool:
        config = self.config
        if config.recycle is not None and worker.used >= config.recycle:
            return True
        return (
            config.recycle_after is not None
            and worker.limited_since is not None
            and now - worker.limited_since >= config.recycle_after
        )

    def _share(self, orders: dict[int, list[Order]], now: float) -> None:
        """Choose the limited workers that stop accepting: the largest first, never too many."""
        workers = self._workers
        # 0.07 * 100 is a little above 7.
        accepting = math.ceil(self.config.keep_accepting * len(workers) - 1e-9)
        spare = len(workers) - accepting
        stopped = [worker_id for worker_id, worker in workers.items() if worker.stopped]
        # Accepting workers may have ended since: then some of the stopped ones resume.
        stopped.sort(key=lambda worker_id: workers[worker_id].used)
        for worker_id in stopped[: max(0, len(stopped) - spare)]:
            workers[worker_id].stopped = False
            orders[worker_id].insert(0, "resume_accepting")
        spare -= sum(worker.stopped for worker in workers.values())
        candidates = [
            worker_id
            for worker_id, worker in workers.items()
            if worker.limited_since is not None
            and (worker.above_since is not None or self._is_under_pressure(worker, now))
            and not worker.stopped
            and "resume_accepting" not in orders[worker_id]
        ]
        candidates.sort(key=lambda worker_id: workers[worker_id].used, reverse=True)
        for worker_id in candidates[:spare]:
            workers[worker_id].stopped = True
            orders[worker_id].insert(0, "stop_accepting")
