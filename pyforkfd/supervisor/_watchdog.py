"""Heartbeats by WATCHDOG=1, for workers that have no page: sd_notify(3) in any language."""

from __future__ import annotations

from collections.abc import Iterator

from ._model import Phase, State

_LATE = 0.25  # seconds; later than this, it is we who did not move


class Watchdog:
    """When each worker was last heard.  One that never beats is not watched."""

    def __init__(self) -> None:
        self._heard: dict[int, float] = {}

    def beat(self, worker: int, now: float) -> None:
        """It says that it moves."""
        self._heard[worker] = now

    def forget(self, worker: int) -> None:
        """It is no more."""
        self._heard.pop(worker, None)

    def stale(self, state: State, now: float) -> Iterator[tuple[int, str]]:
        """Those that are ready and silent for too long, and how to say so."""
        for worker, until in list(self._watched(state)):
            if until + _LATE < now:
                # We were held up, and its beats with us: the socket's queue is short.
                self._heard[worker] = now
            elif until <= now:
                patience = state.workers[worker].spec.heartbeat.stale_after
                yield worker, f"no heartbeat for {patience:g} s"

    def due(self, state: State) -> float | None:
        """When to look next."""
        return min((until for _, until in self._watched(state)), default=None)

    def _watched(self, state: State) -> Iterator[tuple[int, float]]:
        for number, heard in self._heard.items():
            worker = state.workers.get(number)
            if worker is not None and worker.phase in (Phase.READY, Phase.PAUSED):
                # Silence counts from its readiness, however long it took to boot.
                yield number, max(heard, worker.since) + worker.spec.heartbeat.stale_after
