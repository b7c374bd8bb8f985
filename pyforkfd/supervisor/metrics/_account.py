"""The counts of one running worker, as far as its slot makes sense."""

from __future__ import annotations

from dataclasses import dataclass

from pyforkfd._page import Slot, SlotSnapshot

_MOST_AT_ONCE = 1 << 40  # requests that one read finds anew: the slots are read every 200 ms
_MOST_ADOPTED = 1 << 60  # requests that a worker of a predecessor may have counted
_MOST_IN_FLIGHT = 1 << 32


@dataclass(slots=True)
class Account:
    """The counts of one running worker: read from its slot, and checked.

    The worker can write anything to its slot.  A value that no worker can have counted changes
    nothing here: a total never goes down, nor up by nonsense.

    Attributes:
        component: the worker's component.
        worker_id: the worker's id.
        generation: the worker's generation.
        slot: the worker's slot; None: it has none.
        adopted: whether it was started by a predecessor, so that the first read may find much.
        ready: whether it serves.
        requests: the highest count that was read.
        errors: likewise.
        in_flight: requests in flight at the last read.
        damage: why the slot makes no sense, for people; empty: it does.  For good.
    """

    component: str
    worker_id: int
    generation: int
    slot: Slot | None
    adopted: bool = False
    ready: bool = False
    requests: int = 0
    errors: int = 0
    in_flight: int = 0
    damage: str = ""

    def read(self) -> SlotSnapshot | None:
        """Read the slot, and take its counts if they make sense.

        Returns:
            The snapshot; None: there is no slot, or it makes no sense.
        """
        if self.slot is None or self.damage:
            return None
        snapshot = self.slot.snapshot()
        if damage := self._find_damage(snapshot):
            self.damage = damage
            return None
        self.adopted = False
        self.requests, self.errors = snapshot.requests, snapshot.errors
        # An end() without a begin() reads as 2**64 - 1.
        self.in_flight = snapshot.in_flight if snapshot.in_flight < _MOST_IN_FLIGHT else 0
        return snapshot

    def _find_damage(self, snapshot: SlotSnapshot) -> str:
        if snapshot.worker != self.worker_id:
            return f"the worker's id in its slot is {snapshot.worker}"
        if snapshot.generation != self.generation:
            return f"the generation in its slot is {snapshot.generation}, not {self.generation}"
        most = _MOST_ADOPTED if self.adopted else _MOST_AT_ONCE
        for name, before in (("requests", self.requests), ("errors", self.errors)):
            now: int = getattr(snapshot, name)
            if not 0 <= now - before <= most:
                return f"{name} in its slot went from {before} to {now}"
        if _MOST_IN_FLIGHT <= snapshot.in_flight <= (1 << 64) - _MOST_IN_FLIGHT:
            return f"in_flight in its slot is {snapshot.in_flight}"
        return ""
