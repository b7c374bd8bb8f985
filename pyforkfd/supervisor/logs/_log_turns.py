"""The turns of a log file: which of its descriptions each worker may write to.  Pure."""

from __future__ import annotations


class Turns:
    """The turns of a rotated file, by worker.

    A worker has the description of the turn that it has confirmed, and perhaps already that
    of the order which it was sent last.  No worker gets a second order before it has confirmed
    the first or used up its time, so these two are all: a worker that never confirms does not
    keep the files of all later turns open, and its channel is not flooded.

    The times come from the caller.

    Args:
        patience: seconds that a worker may take to confirm an order.

    Attributes:
        current: the number of the present turn.
    """

    def __init__(self, patience: float) -> None:
        self.current = 0
        self._patience = patience
        self._confirmed: dict[int, int] = {}  # worker id -> turn
        self._ordered: dict[int, tuple[int, float]] = {}  # worker id -> turn, end of its time
        self._late: dict[int, float] = {}  # worker that is behind -> end of the wait for it

    def add(self, worker_id: int) -> None:
        """Register a worker that is started with the present description."""
        self.forget(worker_id)
        self._confirmed[worker_id] = self.current

    def adopt(self, worker_id: int, now: float) -> None:
        """Register a worker with an unknown description: it is behind until it confirms."""
        self.forget(worker_id)
        self._confirmed[worker_id] = self.current - 1
        self._late[worker_id] = now + self._patience

    def forget(self, worker_id: int) -> None:
        """Drop a worker; an unknown one is no error."""
        self._confirmed.pop(worker_id, None)
        self._ordered.pop(worker_id, None)
        self._late.pop(worker_id, None)

    def advance(self, now: float) -> None:
        """Begin a turn: every worker is behind."""
        self.current += 1
        for worker_id in self._confirmed:
            self._late.setdefault(worker_id, now + self._patience)

    def confirm(self, worker_id: int, turn: object) -> None:
        """Take a confirmation; a value that is no turn of the worker's future changes nothing."""
        if not isinstance(turn, int) or worker_id not in self._confirmed:
            return
        if self._confirmed[worker_id] < turn <= self.current:
            self._confirmed[worker_id] = turn
            if self._ordered.get(worker_id, (0, 0.0))[0] <= turn:
                self._ordered.pop(worker_id, None)
            if turn == self.current:
                self._late.pop(worker_id, None)

    def behind(self) -> tuple[int, ...]:
        """Return the ids of the workers that have not confirmed the present turn."""
        return tuple(w for w, turn in self._confirmed.items() if turn < self.current)

    def order(self, now: float) -> tuple[int, ...]:
        """Return the workers to send the present order to, and count it as sent."""
        due = [w for w in self.behind() if now >= self._ordered.get(w, (0, now))[1]]
        self._ordered.update((w, (self.current, now + self._patience)) for w in due)
        return tuple(due)

    def in_use(self) -> set[int]:
        """Return the turns whose description a worker may have."""
        return {*self._confirmed.values(), *(turn for turn, _ in self._ordered.values())}

    def settled(self, now: float) -> bool:
        """Return whether every worker has confirmed, or has had its time since it fell behind."""
        return all(now >= end for end in self._late.values())
