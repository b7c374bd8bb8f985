"""The supervisor's counters: ended workers included, and never decreasing."""

from __future__ import annotations

import json
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
    metrics = Metrics(page)
    first = metrics.started(component="web", worker_id=1, generation=1)
    assert first is not None
    page.slot(first).add(10, errors=2)
    page.slot(first).begin()
    metrics.ended(1, cause="oom", expected=False)
    second = metrics.started(component="web", worker_id=2, generation=1)
    assert second is not None
    page.slot(second).add(5)
    assert values(metrics, "forkfd_requests_total") == {("web",): 15}
    assert values(metrics, "forkfd_errors_total") == {("web",): 2}
    assert values(metrics, "forkfd_requests_lost_total") == {("web",): 1}
    assert values(metrics, "forkfd_worker_requests_total") == {("web", "2"): 5}


def test_only_an_unexpected_end_is_a_crash(page: ff.SharedPage) -> None:
    metrics = Metrics(page)
    for worker, expected in ((1, True), (2, False), (3, False)):
        metrics.started(component="web", worker_id=worker, generation=1)
        metrics.ended(worker, cause="signal", expected=expected)
    metrics.restarted("web")
    assert values(metrics, "process_crash_total")["web", "signal"] == 2
    assert values(metrics, "forkfd_exits_total")["web", "signal"] == 3
    assert values(metrics, "forkfd_restarts_total") == {("web",): 1}
    assert {cause for _, cause in values(metrics, "process_crash_total")} == set(CAUSES)


def test_a_page_that_is_full_is_no_error(page: ff.SharedPage) -> None:
    metrics = Metrics(page)
    slots = [metrics.started(component="web", worker_id=n, generation=1) for n in range(1, 6)]
    assert sorted(s for s in slots if s is not None) == list(range(SLOTS))
    assert slots[SLOTS:] == [None, None]
    metrics.ready(5, boot_seconds=0.02)
    assert values(metrics, "forkfd_workers") == {("web",): 5}
    assert values(metrics, "forkfd_workers_ready") == {("web",): 1}
    metrics.ended(5, cause="done", expected=True)
    metrics.ended(2, cause="done", expected=True)
    assert metrics.started(component="web", worker_id=6, generation=1) == slots[1]


def test_gauges_follow_the_reports_of_the_loop(page: ff.SharedPage) -> None:
    metrics = Metrics(page, memory={1: 4096}.get)
    metrics.component("web", wanted=2)
    metrics.component("crypto", wanted=1, degraded=True)
    metrics.started(component="web", worker_id=1, generation=4)
    metrics.started(component="web", worker_id=2, generation=4)
    metrics.ready(1, boot_seconds=0.3)
    metrics.ready(2, boot_seconds=100)
    metrics.unready(2)
    metrics.ready(99)  # ended meanwhile
    metrics.unready(99)
    metrics.reloaded("done")
    metrics.reloaded("boot_timeout")
    metrics.reloaded("done")
    page.generation = 4
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
    metrics = Metrics(page)
    slot = metrics.started(component="web", worker_id=1, generation=1)
    assert slot is not None
    name = "forkfd_worker_heartbeat_age_seconds"
    assert values(metrics, name, 10**18) == {}
    page.slot(slot).beat()
    beaten = page.slot(slot).snapshot().beat_ns
    assert values(metrics, name, beaten + 1_500_000_000) == {("web", "1"): 1.5}
    assert values(metrics, name, beaten - 1) == {("web", "1"): 0}  # it beat after the clock


def test_a_worker_that_writes_nonsense_lowers_no_total(page: ff.SharedPage) -> None:
    metrics = Metrics(page)
    slot = metrics.started(component="web", worker_id=1, generation=1)
    assert slot is not None
    page.slot(slot).end(errors=3)  # without a begin
    assert values(metrics, "forkfd_worker_in_flight") == {("web", "1"): 0}
    page.slot(slot).add(9)
    assert values(metrics, "forkfd_requests_total") == {("web",): 10}
    page.slot(slot).claim(worker=1, generation=1)
    assert values(metrics, "forkfd_requests_total") == {("web",): 10}
    page.slot(slot).claim(worker=77, generation=1)
    page.slot(slot).add(1000)
    metrics.ended(1, cause="exit", expected=False)
    assert values(metrics, "forkfd_requests_total") == {("web",): 10}
    assert values(metrics, "forkfd_requests_lost_total") == {("web",): 0}


def test_a_successor_continues_the_totals(page: ff.SharedPage) -> None:
    old = Metrics(page)
    old.component("web", wanted=1)
    slot = old.started(component="web", worker_id=1, generation=1)
    assert slot is not None
    old.started(component="web", worker_id=2, generation=1)
    page.slot(slot).add(7)
    old.ended(2, cause="core", expected=False)
    old.pressure("web", "memory")
    assert values(old, "forkfd_pressure_total") == {
        ("web", "cpu"): 0,
        ("web", "io"): 0,
        ("web", "memory"): 1,
    }
    old.reloaded("done")
    old.ready(1, boot_seconds=0.1)
    new = Metrics(page)
    new.restore(json.loads(json.dumps(old.state())))
    new.adopted(component="web", worker_id=1, generation=1, slot=slot)
    new.ready(1)
    assert list(new.collect(0)) == list(old.collect(0))
    with pytest.raises(ValueError, match="worker 1 is registered"):
        new.adopted(component="web", worker_id=1, generation=1, slot=None)
    with pytest.raises(ValueError, match=f"worker 3: slot {slot} is not free"):
        new.adopted(component="web", worker_id=3, generation=1, slot=slot)
    with pytest.raises(ValueError, match="slot 99 is not free"):
        new.adopted(component="web", worker_id=3, generation=1, slot=99)
    with pytest.raises(ValueError, match="version 2"):
        new.restore({"version": 2})
    assert list(new.collect(0)) == list(old.collect(0))
    with pytest.raises(KeyError):
        new.ended(3, cause="exit", expected=False)


def test_lost_log_records_are_counted_over_an_upgrade(page: ff.SharedPage) -> None:
    old = Metrics(page, log_lost=lambda: {"file": 3, "stdout": 0})
    name = "forkfd_log_lost_total"
    assert values(old, name) == {("file",): 3, ("stdout",): 0}
    new = Metrics(page, log_lost=lambda: {"file": 2, "loki": 5})
    new.restore(json.loads(json.dumps(old.state())))
    assert values(new, name) == {("file",): 5, ("stdout",): 0, ("loki",): 5}
    new.restore(json.loads(json.dumps(new.state())))
    assert values(new, name)["file",] == 7, "each process counts its own"


def test_every_family_is_collected_in_order(page: ff.SharedPage) -> None:
    metrics = Metrics(page, memory=lambda worker: worker, log_lost=lambda: {"file": 1})
    slot = metrics.started(component="web", worker_id=1, generation=1)
    assert slot is not None
    page.slot(slot).beat()
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
        self.metrics = Metrics(self.page)
        self.counted: dict[str, list[int]] = {}
        self.next = 0

    @rule(target=workers, component=st.sampled_from(["web", "crypto"]))
    def start(self, component: str) -> object:
        self.next += 1
        slot = self.metrics.started(component=component, worker_id=self.next, generation=1)
        self.counted.setdefault(component, [0, 0])
        return multiple() if slot is None else (self.next, component, slot)

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
        assert not any(self.page.snapshots()[worker[2]])

    @rule()
    def hand_over(self) -> None:
        new = Metrics(self.page)
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
