"""Which workers do not move any more: pure, from what their slots say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pyforkfd._page import SlotSnapshot

STALE_NS = 5_000_000_000
"""How long a ready worker may be silent, unless its component says otherwise."""

StaleReason: TypeAlias = Literal["silent", "never_beat", "deadline"]
"""``silent``: it has beaten and does no more; ``never_beat``: it should, and never did;
``deadline``: what it had promised to be done by then is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the supervisor knows of the worker that has a slot.

    Attributes:
        worker: its number.
        ready_ns: since when it serves, CLOCK_MONOTONIC; None: it boots, and that has a
            deadline of its own.
        must_beat: one that never beats is stale as well; otherwise it is one that knows
            nothing of heartbeats.
        stale_ns: how long it may be silent.
    """

    worker_id: int
    ready_ns: int | None
    must_beat: bool = False
    stale_ns: int = STALE_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """A worker that does not move; its ``str()`` says in which way.

    Attributes:
        worker: its number.
        slot: its slot's.
        reason: how that is known.
        ns: for how long: since it last moved, was ready, or promised to be done.
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
    """The workers that are stale now, by slot.

    Silence counts from the worker's readiness, however long it took to boot and whatever it
    said meanwhile.  A promise counts from when it is made, also while it boots.  A slot that
    does not have the worker's number says nothing of it.

    Args:
        snapshots: of all slots, taken before the clock was read.
        watched: slot -> who has it.
        now_ns: CLOCK_MONOTONIC.
    """
    found = []
    for slot, of in sorted(watched.items()):
        snapshot = snapshots[slot]
        if snapshot.worker == of.worker_id and (told := _look(snapshot, of, now_ns)) is not None:
            found.append(Stale(worker_id=of.worker_id, slot=slot, reason=told[0], ns=told[1]))
    return found


def _look(snapshot: SlotSnapshot, of: Watched, now_ns: int) -> tuple[StaleReason, int] | None:
    if 0 < snapshot.deadline_ns < now_ns:
        return "deadline", now_ns - snapshot.deadline_ns
    if of.ready_ns is None or not (snapshot.beat_ns or of.must_beat):
        return None
    silent = now_ns - max(snapshot.beat_ns, of.ready_ns)
    if silent <= of.stale_ns:
        return None
    return ("silent" if snapshot.beat_ns else "never_beat"), silent
