"""The supervisor's counters: ended workers included, and never decreasing."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

import pyforkfd as ff
from pyforkfd.supervisor.metrics._counters import CAUSES, Histogram, Metrics, Value
from pyforkfd.supervisor.metrics._families import FAMILIES

SLOTS = 3


@pytest.fixture
def page() -> Iterator[ff.SharedPage]:
    with ff.SharedPage.create(SLOTS) as page:
        yield page


def values(metrics: Metrics, name: str, now_ns: int = 0) -> dict[tuple[str, ...], Value]:
    return dict(next(samples for f, samples in metrics.collect(now_ns) if f.name == name))


def test_counts_of_an_ended_worker_become_its_components(page: ff.SharedPage) -> None:
    metrics = Metrics()
    first, second = page.slot(0), page.slot(1)
    metrics.started(component="web", worker_id=1, generation=1, slot=first)
    first.add(10, errors=2)
    first.begin()
    metrics.ended(1, cause="oom", expected=False)
    metrics.started(component="web", worker_id=2, generation=1, slot=second)
    second.add(5)
    assert values(metrics, "forkfd_requests_total") == {("web",): 15}
    assert values(metrics, "forkfd_errors_total") == {("web",): 2}
    assert values(metrics, "forkfd_requests_lost_total") == {("web",): 1}
    assert values(metrics, "forkfd_worker_requests_total") == {("web", "2"): 5}


def test_only_an_unexpected_end_is_a_crash(page: ff.SharedPage) -> None:
    metrics = Metrics()
    for worker, expected in ((1, True), (2, False), (3, False)):
        metrics.started(component="web", worker_id=worker, generation=1, slot=page.slot(0))
        metrics.ended(worker, cause="signal", expected=expected)
    metrics.restarted("web")
    assert values(metrics, "process_crash_total")["web", "signal"] == 2
    assert values(metrics, "forkfd_exits_total")["web", "signal"] == 3
    assert values(metrics, "forkfd_restarts_total") == {("web",): 1}
    assert {cause for _, cause in values(metrics, "process_crash_total")} == set(CAUSES)


def test_a_worker_without_a_page_is_no_error() -> None:
    metrics = Metrics()
    for number in (1, 2):
        metrics.started(component="web", worker_id=number, generation=1, slot=None)
    metrics.ready(2, boot_seconds=0.02)
    assert values(metrics, "forkfd_workers") == {("web",): 2}
    assert values(metrics, "forkfd_workers_ready") == {("web",): 1}
    assert values(metrics, "forkfd_worker_requests_total") == {}
    metrics.ended(2, cause="done", expected=True)
    assert values(metrics, "forkfd_workers") == {("web",): 1}


def test_gauges_follow_the_reports_of_the_loop(page: ff.SharedPage) -> None:
    metrics = Metrics(memory={1: 4096}.get)
    metrics.component("web", wanted=2)
    metrics.component("crypto", wanted=1, degraded=True)
    metrics.started(component="web", worker_id=1, generation=4, slot=page.slot(0))
    metrics.started(component="web", worker_id=2, generation=4, slot=page.slot(1))
    metrics.ready(1, boot_seconds=0.3)
    metrics.ready(2, boot_seconds=100)
    metrics.unready(2)
    metrics.ready(99)  # ended meanwhile
    metrics.unready(99)
    metrics.reloaded("done")
    metrics.reloaded("boot_timeout")
    metrics.reloaded("done")
    metrics.generation = 4
    assert metrics.degraded() == ["crypto"]
    assert values(metrics, "forkfd_degraded") == {("web",): 0, ("crypto",): 1}
    assert values(metrics, "forkfd_workers_wanted") == {("web",): 2, ("crypto",): 1}
    assert values(metrics, "forkfd_workers_ready") == {("web",): 1, ("crypto",): 0}
    assert values(metrics, "forkfd_generation") == {(): 4}
    assert values(metrics, "forkfd_worker_memory_bytes") == {("web", "1"): 4096}
    assert values(metrics, "forkfd_reloads_total") == {("done",): 2, ("boot_timeout",): 1}
    boots = values(metrics, "forkfd_boot_seconds")["web",]
    assert isinstance(boots, Histogram)
    assert (sum(boots.counts), boots.counts[-1], boots.sum) == (2, 1, 100.3)
    metrics.component("crypto", degraded=False)
    assert metrics.degraded() == [] and values(metrics, "forkfd_workers_wanted")["crypto",] == 1


def test_the_age_of_a_heartbeat(page: ff.SharedPage) -> None:
    metrics = Metrics()
    slot = page.slot(0)
    metrics.started(component="web", worker_id=1, generation=1, slot=slot)
    name = "forkfd_worker_heartbeat_age_seconds"
    assert values(metrics, name, 10**18) == {}
    slot.beat()
    beaten = slot.snapshot().beat_ns
    assert values(metrics, name, beaten + 1_500_000_000) == {("web", "1"): 1.5}
    assert values(metrics, name, beaten - 1) == {("web", "1"): 0}  # it beat after the clock


def test_a_worker_that_writes_nonsense_lowers_no_total(page: ff.SharedPage) -> None:
    metrics = Metrics()
    slot = page.slot(0)
    metrics.started(component="web", worker_id=1, generation=1, slot=slot)
    slot.end(errors=3)  # without a begin
    assert values(metrics, "forkfd_worker_in_flight") == {("web", "1"): 0}
    slot.add(9)
    assert values(metrics, "forkfd_requests_total") == {("web",): 10}
    slot.claim(worker=1, generation=1)
    assert values(metrics, "forkfd_requests_total") == {("web",): 10}
    slot.claim(worker=77, generation=1)
    slot.add(1000)
    metrics.ended(1, cause="exit", expected=False)
    assert values(metrics, "forkfd_requests_total") == {("web",): 10}
    assert values(metrics, "forkfd_requests_lost_total") == {("web",): 0}


def write(page: ff.SharedPage, word: int, value: int) -> None:
    """Write to the first slot what no method of it writes, as a hostile worker may."""
    os.pwrite(page.fileno(), struct.pack("Q", value), 64 + 8 * word)


@pytest.mark.parametrize(
    ("word", "value", "damage"),
    [
        (0, 2**64 - 1, "requests in its slot went from 10 to 18446744073709551615"),
        (0, 9, "requests in its slot went from 10 to 9"),
        (1, 2**45, "errors in its slot went from 2 to 35184372088832"),
        (1, 0, "errors in its slot went from 2 to 0"),
        (2, 2**63, "in_flight in its slot is 9223372036854775808"),
        (6, 7, "the worker's id in its slot is 7"),
        (7, 3, "the generation in its slot is 3, not 1"),
    ],
)
def test_nonsense_in_a_slot_is_named_and_changes_no_counter(
    page: ff.SharedPage, word: int, value: int, damage: str
) -> None:
    metrics = Metrics()
    metrics.started(component="web", worker_id=1, generation=1, slot=page.slot(0))
    metrics.started(component="web", worker_id=2, generation=1, slot=page.slot(1))
    page.slot(0).add(10, errors=2)
    page.slot(1).add(5)
    assert values(metrics, "forkfd_requests_total") == {("web",): 15}
    write(page, word, value)
    assert values(metrics, "forkfd_requests_total") == {("web",): 15}
    assert values(metrics, "forkfd_errors_total") == {("web",): 2}
    assert values(metrics, "forkfd_worker_requests_total") == {("web", "2"): 5}
    assert metrics.account(1).damage == damage
    assert metrics.account(2).damage == ""
    write(page, word, 10)
    page.slot(1).add(1)
    assert values(metrics, "forkfd_worker_requests_total") == {("web", "2"): 6}, "it is for good"
    metrics.ended(1, cause="stale", expected=False)
    assert values(metrics, "forkfd_requests_total") == {("web",): 16}
    assert values(metrics, "forkfd_requests_lost_total") == {("web",): 0}


def test_a_successor_continues_the_totals(page: ff.SharedPage) -> None:
    old = Metrics()
    old.component("web", wanted=1)
    slot = page.slot(0)
    old.started(component="web", worker_id=1, generation=1, slot=slot)
    old.started(component="web", worker_id=2, generation=1, slot=page.slot(1))
    for _ in range(4):
        slot.add(1 << 39)
        assert values(old, "forkfd_requests_total")  # read
    old.ended(2, cause="core", expected=False)
    old.pressure("web", "memory")
    assert values(old, "forkfd_pressure_total") == {
        ("web", "cpu"): 0,
        ("web", "io"): 0,
        ("web", "memory"): 1,
    }
    old.reloaded("done")
    old.ready(1, boot_seconds=0.1)
    new = Metrics()
    new.restore(json.loads(json.dumps(old.state())))
    new.adopted(component="web", worker_id=1, generation=1, slot=slot)
    new.ready(1)
    assert list(new.collect(0)) == list(old.collect(0))
    with pytest.raises(ValueError, match="worker 1 is registered"):
        new.adopted(component="web", worker_id=1, generation=1, slot=None)
    with pytest.raises(ValueError, match="version 2"):
        new.restore({"version": 2})
    assert list(new.collect(0)) == list(old.collect(0))
    with pytest.raises(KeyError):
        new.ended(3, cause="exit", expected=False)


def test_lost_log_records_are_counted_over_an_upgrade() -> None:
    old = Metrics(log_lost=lambda: {"file": 3, "stdout": 0})
    name = "forkfd_log_lost_total"
    assert values(old, name) == {("file",): 3, ("stdout",): 0}
    new = Metrics(log_lost=lambda: {"file": 2, "loki": 5})
    new.restore(json.loads(json.dumps(old.state())))
    assert values(new, name) == {("file",): 5, ("stdout",): 0, ("loki",): 5}
    new.restore(json.loads(json.dumps(new.state())))
    assert values(new, name)["file",] == 7, "each process counts its own"


def test_every_family_is_collected_in_order(page: ff.SharedPage) -> None:
    metrics = Metrics(memory=lambda worker: worker, log_lost=lambda: {"file": 1})
    metrics.started(component="web", worker_id=1, generation=1, slot=page.slot(0))
    page.slot(0).beat()
    metrics.reloaded("done")
    collected = list(metrics.collect(0))
    assert [family for family, _ in collected] == list(FAMILIES.values())
    for family, samples in collected:
        assert samples, family.name
        assert {len(labels) for labels, _ in samples} == {len(family.labels)}
        assert family.name.endswith("_total") == (family.kind == "counter")


class Totals(RuleBasedStateMachine):
    """Workers come, count and go in any order; a component's counters are a plain sum."""

    workers = Bundle("workers")

    @initialize()
    def begin(self) -> None:
        self.page = ff.SharedPage.create(SLOTS)
        self.metrics = Metrics()
        self.counted: dict[str, list[int]] = {}
        self.free = set(range(SLOTS))
        self.next = 0

    @rule(target=workers, component=st.sampled_from(["web", "crypto"]))
    def start(self, component: str) -> object:
        self.next += 1
        index = self.free.pop() if self.free else None
        slot = None if index is None else self.page.slot(index)
        self.metrics.started(component=component, worker_id=self.next, generation=1, slot=slot)
        self.counted.setdefault(component, [0, 0])
        return multiple() if index is None else (self.next, component, index)

    @rule(worker=workers, requests=st.integers(0, 9), errors=st.integers(0, 9))
    def count(self, worker: tuple[int, str, int], requests: int, errors: int) -> None:
        worker_id, component, slot = worker
        assert self.page.snapshots()[slot].worker == worker_id  # no other one has it
        self.page.slot(slot).add(requests, errors=errors)
        self.counted[component][0] += requests
        self.counted[component][1] += errors

    @rule(worker=consumes(workers), expected=st.booleans())
    def end(self, worker: tuple[int, str, int], expected: bool) -> None:
        self.metrics.ended(worker[0], cause="exit", expected=expected)
        self.free.add(worker[2])

    @rule()
    def hand_over(self) -> None:
        new = Metrics()
        new.restore(self.metrics.state())
        for worker_id, old in self.metrics._workers.items():
            new.adopted(component=old.component, worker_id=worker_id, generation=1, slot=old.slot)
        self.metrics = new

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "metrics"):
            return
        for place, name in enumerate(("forkfd_requests_total", "forkfd_errors_total")):
            expected = {(component,): n[place] for component, n in self.counted.items()}
            assert values(self.metrics, name) == expected

    def teardown(self) -> None:
        self.page.close()


TestTotals = Totals.TestCase
TestTotals.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
