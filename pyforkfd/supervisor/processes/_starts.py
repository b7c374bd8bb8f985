"""The turns in which workers are started: many at once must not keep the loop from all else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

_TURN = 0.05  # seconds for which one turn of the loop starts workers


class Starts:
    """The starts for which a turn of the loop had no time.

    Attributes:
        waiting: ids of the workers to start in a later turn, in this order.
    """

    def __init__(self) -> None:
        """Begin with a turn that is over."""
        self.waiting: deque[int] = deque()
        self._ends = 0.0

    def begin_turn(self) -> None:
        """Begin another turn."""
        self._ends = time.monotonic() + _TURN

    def postpone(self, worker_id: int) -> bool:
        """Return whether a worker has to wait for a later turn; if so, it is noted."""
        if not self.waiting and time.monotonic() <= self._ends:
            return False
        self.waiting.append(worker_id)
        return True

    def due(self) -> Iterator[int]:
        """Yield the ids of the workers to start in this turn."""
        while self.waiting and time.monotonic() <= self._ends:
            yield self.waiting.popleft()
