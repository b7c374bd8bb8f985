"""The check for stale workers, against a plain reading of the rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyforkfd as ff
from pyforkfd.supervisor.health._stale import STALE_NS, Stale, Watched, scan

SECOND = 10**9
NOW = 1000 * SECOND


def row(*, worker: int = 7, beat: int = 0, deadline: int = 0, ready: int = 0) -> ff.SlotSnapshot:
    return ff.SlotSnapshot((0, 0, 0, beat, deadline, ready, worker, 1))


def check(snapshot: ff.SlotSnapshot, **known: int | bool | None) -> list[Stale]:
    watched = {"worker_id": 7, "ready_ns": NOW - 60 * SECOND, **known}
    return scan([snapshot], {0: Watched(**watched)}, NOW)  # type: ignore[arg-type]


def test_a_worker_without_heartbeats_is_stale_only_beyond_the_bound() -> None:
    assert STALE_NS == 5 * SECOND
    assert check(row(beat=NOW - 5 * SECOND)) == []
    beyond = Stale(worker_id=7, slot=0, reason="silent", ns=5 * SECOND + 1)
    assert check(row(beat=NOW - 5 * SECOND - 1)) == [beyond]
    assert check(row(beat=NOW - 5 * SECOND - 1), stale_ns=6 * SECOND) == []
    assert check(row(beat=NOW + SECOND)) == []  # it beat after the clock was read


def test_a_booting_worker_is_not_stale_and_time_counts_from_readiness() -> None:
    long_ago = row(beat=NOW - 100 * SECOND)
    assert check(long_ago, ready_ns=None) == []
    assert check(long_ago, ready_ns=NOW - SECOND) == []
    assert [s.ns for s in check(long_ago, ready_ns=NOW - 6 * SECOND)] == [6 * SECOND]


def test_a_worker_that_never_beats_is_stale_only_where_it_must_beat() -> None:
    assert check(row()) == []
    assert [s.reason for s in check(row(), must_beat=True)] == ["never_beat"]
    assert check(row(), must_beat=True, ready_ns=None) == []


@pytest.mark.parametrize("ready_ns", [None, NOW - SECOND])
def test_a_worker_past_its_deadline_is_stale_however_it_beats(ready_ns: int | None) -> None:
    assert check(row(beat=NOW, deadline=NOW), ready_ns=ready_ns) == []
    late = check(row(beat=NOW, deadline=NOW - 1), ready_ns=ready_ns)
    assert late == [Stale(worker_id=7, slot=0, reason="deadline", ns=1)]


def test_the_reasons_in_words() -> None:
    both = row(beat=NOW - 6 * SECOND, deadline=NOW - SECOND // 2)
    assert [str(s) for s in check(both)] == ["not done 0.5 s after its own deadline"]
    assert [str(s) for s in check(row(beat=NOW - 6 * SECOND))] == ["no heartbeat for 6.0 s"]
    never = check(row(), must_beat=True, ready_ns=NOW - 7 * SECOND)
    assert [str(s) for s in never] == ["no heartbeat in the 7.0 s since it was ready"]


def test_the_slot_of_another_worker_is_ignored() -> None:
    assert check(row(worker=8, beat=1, deadline=1)) == []
    assert scan([row(beat=1)], {}, NOW) == []


times = st.integers(0, 20 * SECOND)
snapshots = st.builds(row, worker=st.integers(0, 2), beat=times, deadline=times, ready=times)
knowns = st.builds(
    Watched,
    worker_id=st.integers(1, 2),
    ready_ns=st.none() | times,
    must_beat=st.booleans(),
    stale_ns=st.integers(1, 10 * SECOND),
)


@given(
    rows=st.lists(snapshots, min_size=1, max_size=6),
    known=st.dictionaries(st.integers(0, 5), knowns),
    now=times,
)
def test_the_rule(rows: list[ff.SlotSnapshot], known: dict[int, Watched], now: int) -> None:
    watched = {slot: worker for slot, worker in known.items() if slot < len(rows)}
    found = {stale.slot: stale for stale in scan(rows, watched, now)}
    for slot, worker in watched.items():
        snapshot = rows[slot]
        late = snapshot.deadline_ns != 0 and now > snapshot.deadline_ns
        beats = snapshot.beat_ns != 0 or worker.must_beat
        silent = worker.ready_ns is not None and all(
            now - since > worker.stale_ns for since in (snapshot.beat_ns, worker.ready_ns)
        )
        expected = snapshot.worker == worker.worker_id and (late or (beats and silent))
        assert (slot in found) == expected
        if expected:
            assert found[slot].worker_id == worker.worker_id and 0 < found[slot].ns <= now
    assert list(found) == sorted(found)
