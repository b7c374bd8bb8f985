"""Heartbeats stop when the loop or a thread really stands still, and only then."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from forked import in_child

import pyforkfd as ff
from pyforkfd.supervisor.health._stale import Watched, scan
from pyforkfd.supervisor.worker._beat import ThreadBeats, beat_asyncio, beat_threads

QUICK = 0.005  # seconds between two beats
PATIENCE = 60.0


@pytest.fixture
def slot() -> Iterator[ff.Slot]:
    with ff.SharedPage.create(1) as page:
        slot = page.slot(0)
        slot.claim(worker=1, generation=1)
        yield slot


def beat_after(slot: ff.Slot, ns: int) -> bool:
    """Waits for a beat later than that."""
    end = time.monotonic() + PATIENCE
    while slot.snapshot().beat_ns <= ns:
        if time.monotonic() > end:
            return False
        time.sleep(QUICK / 5)
    return True


def stale(slot: ff.Slot, bound: float) -> bool:
    """What the supervisor's scan says of it now."""
    known = Watched(worker_id=1, ready_ns=1, stale_ns=int(bound * 1e9))
    snapshot = slot.snapshot()
    return scan([snapshot], {0: known}, time.monotonic_ns()) != []


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(QUICK / 5)


def test_a_blocked_loop_does_not_beat_and_one_that_turns_does(slot: ff.Slot) -> None:
    async def main() -> None:
        beat = beat_asyncio(slot, QUICK)
        begun = slot.snapshot().beat_ns
        assert begun  # at once
        while slot.snapshot().beat_ns == begun:
            await asyncio.sleep(0)
        blocked = slot.snapshot().beat_ns
        wait_until(lambda: stale(slot, 20 * QUICK))  # blocks the loop
        assert slot.snapshot().beat_ns == blocked
        while slot.snapshot().beat_ns == blocked:
            await asyncio.sleep(0)
        assert not stale(slot, PATIENCE)
        beat.stop()
        beat.stop()
        stopped = slot.snapshot().beat_ns
        await asyncio.sleep(3 * QUICK)
        assert slot.snapshot().beat_ns == stopped

    asyncio.run(main())


def test_a_loop_may_be_given_before_it_runs(slot: ff.Slot) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        beat_asyncio(slot)
    loop = asyncio.new_event_loop()
    try:
        beat = beat_asyncio(slot, QUICK, loop=loop)
        begun = slot.snapshot().beat_ns

        async def until_beaten() -> None:
            while slot.snapshot().beat_ns == begun:
                await asyncio.sleep(0)

        loop.run_until_complete(until_beaten())
        beat.stop()
    finally:
        loop.close()


def test_a_child_of_fork_does_not_beat_for_its_parent(slot: ff.Slot) -> None:
    loop = ff.new_event_loop()
    try:
        beat_asyncio(slot, QUICK, loop=loop)
        beaten = slot.snapshot().beat_ns

        def child() -> bool:
            ff.reinit_loop(loop)
            loop.run_until_complete(asyncio.sleep(5 * QUICK))
            return slot.snapshot().beat_ns == beaten

        assert in_child(child)
    finally:
        loop.close()


def test_the_slot_is_beaten_while_every_thread_keeps_its_bound(slot: ff.Slot) -> None:
    release, moving = threading.Event(), threading.Event()

    def stuck() -> None:
        with beats.join(bound=QUICK):
            release.wait(PATIENCE)

    def busy() -> None:
        with beats.join(bound=PATIENCE) as member:
            while not release.is_set():
                member.beat()
                moving.set()
                release.wait(QUICK)

    with beat_threads(slot, QUICK) as beats:
        worker = threading.Thread(target=busy)
        worker.start()
        moving.wait(PATIENCE)
        assert beat_after(slot, time.monotonic_ns())
        thread = threading.Thread(target=stuck)
        thread.start()
        wait_until(lambda: stale(slot, 10 * QUICK))
        assert beats.late() == [thread]
        release.set()
        thread.join()
        worker.join()
        assert beat_after(slot, time.monotonic_ns())
        assert beats.late() == []


def test_who_waits_for_work_is_not_late(slot: ff.Slot) -> None:
    with ThreadBeats(slot, QUICK) as beats:
        member = beats.join(bound=QUICK)
        wait_until(lambda: beats.late() == [threading.current_thread()])
        member.idle()
        assert beats.late() == []
        assert beat_after(slot, time.monotonic_ns())
        member.beat()
        wait_until(lambda: beats.late() != [])
        member.leave()
        member.leave()
        assert beats.late() == []


def test_a_thread_that_ends_without_leaving_is_missed(slot: ff.Slot) -> None:
    with ThreadBeats(slot, QUICK) as beats:
        members = []
        thread = threading.Thread(target=lambda: members.append(beats.join(bound=PATIENCE)))
        thread.start()
        thread.join()
        assert beats.late() == [thread]
        wait_until(lambda: stale(slot, 10 * QUICK))
        members[0].leave()
        assert beat_after(slot, time.monotonic_ns())


def test_in_a_child_of_fork_no_thread_beats_and_stop_returns(slot: ff.Slot) -> None:
    with ThreadBeats(slot, PATIENCE) as beats:  # beats once, and then not in this test
        assert beat_after(slot, 0)
        beaten = slot.snapshot().beat_ns

        def child() -> tuple[int, bool]:
            beats.stop()
            return len(os.listdir("/proc/self/task")), slot.snapshot().beat_ns == beaten

        assert in_child(child) == (1, True)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf")])
def test_times_are_positive(slot: ff.Slot, bad: float) -> None:
    for call in (lambda: beat_asyncio(slot, bad), lambda: ThreadBeats(slot, bad)):
        with pytest.raises(ValueError, match=r"heartbeat: interval=.* is not a positive number"):
            call()
    with (
        ThreadBeats(slot, QUICK) as beats,
        pytest.raises(ValueError, match=r"heartbeat: bound=.* is not a positive number"),
    ):
        beats.join(bad)
