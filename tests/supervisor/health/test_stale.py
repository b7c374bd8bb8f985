"""Which workers are stale: against a plain reading of the rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyforkfd as ff
from pyforkfd.supervisor.health._stale import STALE_NS, Stale, Watched, scan

SECOND = 10**9
NOW = 1000 * SECOND


def said(*, worker: int = 7, beat: int = 0, deadline: int = 0, ready: int = 0) -> ff.SlotSnapshot:
    return ff.SlotSnapshot((0, 0, 0, beat, deadline, ready, worker, 1))


def look(snapshot: ff.SlotSnapshot, **known: int | bool | None) -> list[Stale]:
    watched = {"worker_id": 7, "ready_ns": NOW - 60 * SECOND, **known}
    return scan([snapshot], {0: Watched(**watched)}, NOW)  # type: ignore[arg-type]


def test_silence_is_stale_only_beyond_its_bound() -> None:
    assert STALE_NS == 5 * SECOND
    assert look(said(beat=NOW - 5 * SECOND)) == []
    beyond = Stale(worker_id=7, slot=0, reason="silent", ns=5 * SECOND + 1)
    assert look(said(beat=NOW - 5 * SECOND - 1)) == [beyond]
    assert look(said(beat=NOW - 5 * SECOND - 1), stale_ns=6 * SECOND) == []
    assert look(said(beat=NOW + SECOND)) == []  # it beat after the clock was read


def test_what_boots_is_not_stale_and_silence_counts_from_readiness() -> None:
    long_ago = said(beat=NOW - 100 * SECOND)
    assert look(long_ago, ready_ns=None) == []
    assert look(long_ago, ready_ns=NOW - SECOND) == []
    assert [s.ns for s in look(long_ago, ready_ns=NOW - 6 * SECOND)] == [6 * SECOND]


def test_who_never_beats_is_stale_only_where_it_must() -> None:
    assert look(said()) == []
    assert [s.reason for s in look(said(), must_beat=True)] == ["never_beat"]
    assert look(said(), must_beat=True, ready_ns=None) == []


@pytest.mark.parametrize("ready_ns", [None, NOW - SECOND])
def test_a_promise_that_is_not_kept_is_stale_however_it_beats(ready_ns: int | None) -> None:
    assert look(said(beat=NOW, deadline=NOW), ready_ns=ready_ns) == []
    broken = look(said(beat=NOW, deadline=NOW - 1), ready_ns=ready_ns)
    assert broken == [Stale(worker_id=7, slot=0, reason="deadline", ns=1)]


def test_it_says_in_which_way() -> None:
    row = said(beat=NOW - 6 * SECOND, deadline=NOW - SECOND // 2)
    assert [str(s) for s in look(row)] == ["not done 0.5 s after its own deadline"]
    assert [str(s) for s in look(said(beat=NOW - 6 * SECOND))] == ["no heartbeat for 6.0 s"]
    never = look(said(), must_beat=True, ready_ns=NOW - 7 * SECOND)
    assert [str(s) for s in never] == ["no heartbeat in the 7.0 s since it was ready"]


def test_the_slot_of_another_says_nothing() -> None:
    assert look(said(worker=8, beat=1, deadline=1)) == []
    assert scan([said(beat=1)], {}, NOW) == []


times = st.integers(0, 20 * SECOND)
snapshots = st.builds(said, worker=st.integers(0, 2), beat=times, deadline=times, ready=times)
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
    watched = {slot: of for slot, of in known.items() if slot < len(rows)}
    found = {stale.slot: stale for stale in scan(rows, watched, now)}
    for slot, of in watched.items():
        row = rows[slot]
        promised = row.deadline_ns != 0 and now > row.deadline_ns
        beats = row.beat_ns != 0 or of.must_beat
        moved = of.ready_ns is not None and all(
            now - since > of.stale_ns for since in (row.beat_ns, of.ready_ns)
        )
        expected = row.worker == of.worker_id and (promised or (beats and moved))
        assert (slot in found) == expected
        if expected:
            assert found[slot].worker_id == of.worker_id and 0 < found[slot].ns <= now
    assert list(found) == sorted(found)
