"""The slots of workers in the page."""

from __future__ import annotations

from pyforkfd import SharedPage
from pyforkfd.supervisor import Component
from pyforkfd.supervisor.health._watch import Watch
from pyforkfd.supervisor.metrics._counters import Metrics
from pyforkfd.supervisor.state._model import Phase, Worker


def worker(worker_id: int) -> Worker:
    spec = Component(name="web", command=("/bin/true",))
    return Worker(
        id=worker_id, spec=spec, position=0, generation=1, phase=Phase.BOOTING, born=0.0, since=0.0
    )


def test_a_worker_that_waits_for_its_zygote_is_registered_once() -> None:
    """Register a worker twice, also where the page is full: it is counted without a slot."""
    page = SharedPage.create(1)
    with Watch(page, Metrics(page), lambda worker_id: None) as watch:
        for _ in range(2):
            watch.started(worker(1))
            watch.started(worker(2))
        assert (watch.slot_of(1), watch.slot_of(2)) == (0, None)
        watch.beat(2)  # no slot is touched
        assert page.slot(0).snapshot().beat_ns == 0
        watch.ended(1, "done", expected=True)
        watch.ended(2, "done", expected=True)
        watch.started(worker(3))
        assert watch.slot_of(3) == 0
