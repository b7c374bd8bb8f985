"""The check for stale workers, from snapshots of their slots.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pyforkfd._page import SlotSnapshot

STALE_NS = 5_000_000_000
"""Nanoseconds without a heartbeat after which a ready worker is stale, by default."""

StaleReason: TypeAlias = Literal["silent", "never_beat", "deadline"]
"""``silent``: heartbeats have stopped; ``never_beat``: there was none, and the component requires
them; ``deadline``: the worker's own deadline has passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """The worker that has a slot, as the check needs it.

    Attributes:
        worker_id: of the worker.
        ready_ns: the time since which it serves, CLOCK_MONOTONIC; None: it boots, which has a
            time-out of its own.
        must_beat: a worker without any heartbeat is stale as well; otherwise it is left alone,
            as a program without heartbeats.
        stale_ns: nanoseconds without a heartbeat after which it is stale.
    """

    worker_id: int
    ready_ns: int | None
    must_beat: bool = False
    stale_ns: int = STALE_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """A stale worker; ``str()`` has the reason in words.

    Attributes:
        worker_id: of the worker.
        slot: index of its slot.
        reason: the kind of staleness.
        ns: nanoseconds since the last heartbeat, the readiness, or the deadline.
    """

    worker_id: int
    slot: int
    reason: StaleReason
    ns: int

    def __str__(self) -> str:
        return _WORDS[self.reason].format(self.ns / 1e9)


_WORDS: dict[StaleReason, str] = {
    "silent": "no heartbeat for {:.1f} s",
    "never_beat": "no heartbeat in the {:.1f} s since it was ready",
    "deadline": "not done {:.1f} s after its own deadline",
}


def scan(
    snapshots: Sequence[SlotSnapshot], watched: Mapping[int, Watched], now_ns: int
) -> list[Stale]:
    """Return the workers that are stale now, by slot.

    Time without a heartbeat counts from the worker's readiness at the earliest, however long
    the boot took and whatever beats came before.  A deadline holds from the moment in which
    it is set, during the boot too.  A slot that has another worker's id is ignored.

    Args:
        snapshots: of all slots, taken before the clock was read.
        watched: slot -> the worker that has it.
        now_ns: CLOCK_MONOTONIC.
    """
    found = []
    for slot, worker in sorted(watched.items()):
        snapshot = snapshots[slot]
        if snapshot.worker != worker.worker_id:
            continue
        if (verdict := _check(snapshot, worker, now_ns)) is not None:
            reason, ns = verdict
            found.append(Stale(worker_id=worker.worker_id, slot=slot, reason=reason, ns=ns))
    return found


def _check(snapshot: SlotSnapshot, worker: Watched, now_ns: int) -> tuple[StaleReason, int] | None:
    if 0 < snapshot.deadline_ns < now_ns:
        return "deadline", now_ns - snapshot.deadline_ns
    if worker.ready_ns is None or not (snapshot.beat_ns or worker.must_beat):
        return None
    silent = now_ns - max(snapshot.beat_ns, worker.ready_ns)
    if silent <= worker.stale_ns:
        return None
    return ("silent" if snapshot.beat_ns else "never_beat"), silent
