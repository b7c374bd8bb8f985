"""The pages of workers: one for each, checked, handed over."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

import pyforkfd as ff
from pyforkfd.supervisor import Component
from pyforkfd.supervisor.health._pages import Pages
from pyforkfd.supervisor.health._watch import Watch
from pyforkfd.supervisor.metrics._counters import Metrics
from pyforkfd.supervisor.spec._limits import MemoryGuard
from pyforkfd.supervisor.spec._spec import Heartbeat
from pyforkfd.supervisor.state._events import WentStale
from pyforkfd.supervisor.state._model import Crew, Phase, State, Worker
from pyforkfd.supervisor.succession._succession import VARIABLE, Succession, variable

HEADER = 64  # bytes before the slot
WORDS = 8


def worker(worker_id: int, phase: Phase = Phase.BOOTING) -> Worker:
    spec = Component(name="web", command=("/bin/true",), heartbeat=Heartbeat(stale_after=1e6))
    return Worker(
        id=worker_id, spec=spec, position=0, generation=1, phase=phase, born=0.0, since=0.0
    )


def watch_of(succession: Succession) -> Watch:
    return Watch(Pages(succession), Metrics(), lambda worker_id: None)


@pytest.fixture
def watch() -> Iterator[Watch]:
    with Succession() as succession, watch_of(succession) as made:
        yield made


def ready(*ids: int) -> State:
    return State(crews={}, workers={each: worker(each, Phase.READY) for each in ids})


def evicted(watch: Watch, state: State) -> dict[int, str]:
    events = [event for event in watch.poll(state, 1.0) if isinstance(event, WentStale)]
    return {event.worker_id: event.why for event in events}


def page(watch: Watch, worker_id: int) -> ff.SharedPage:
    found = watch.page_of(worker_id)
    assert found is not None
    return found


def test_a_worker_that_waits_for_its_zygote_is_registered_once(watch: Watch) -> None:
    """Register a worker twice, also one for whose page there is no descriptor."""
    watch.started(worker(1))
    first = page(watch, 1)
    watch.started(worker(1))
    assert page(watch, 1) is first and len(first) == 1
    watch.beat(1)
    assert first.slot(0).snapshot().beat_ns > 0
    watch.beat(2)  # unknown: no slot is touched
    watch.ended(1, "done", expected=True)
    assert watch.page_of(1) is None


def test_without_a_descriptor_a_worker_has_no_page(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(slots: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("pyforkfd._page.create_page", refuse)
    watch.started(worker(1))
    assert watch.page_of(1) is None
    watch.beat(1)
    assert watch.beat_age(1, 1.0) is None
    assert evicted(watch, ready(1)) == {}
    watch.ended(1, "done", expected=True)


def test_a_worker_can_write_to_no_page_but_its_own(watch: Watch) -> None:
    """Overwrite all of one page, by any word: its worker is evicted, no other is."""
    for each in (1, 2):
        watch.started(worker(each))
        page(watch, each).slot(0).beat()
    assert evicted(watch, ready(1, 2)) == {}
    own = page(watch, 1)
    size = os.fstat(own.fileno()).st_size
    assert size == HEADER + 8 * WORDS, "there is no slot of another worker in it"
    os.pwrite(own.fileno(), b"\xff" * size, 0)
    found = evicted(watch, ready(1, 2))
    assert found.keys() == {1}
    assert found[1].startswith("the worker has overwritten its page: the worker's id in its slot")
    own.slot(0).claim(worker=1, generation=1)
    assert evicted(watch, ready(1, 2)).keys() == {1}, "for good, until it has ended"


@pytest.mark.parametrize(("word", "name"), [(3, "heartbeat"), (5, "readiness")])
def test_a_time_in_the_future_hides_nothing(watch: Watch, word: int, name: str) -> None:
    watch.started(worker(1))
    os.pwrite(page(watch, 1).fileno(), struct.pack("Q", 1 << 62), HEADER + 8 * word)
    found = evicted(watch, ready(1))
    assert f"its {name} is " in found[1] and found[1].endswith(" s in the future")


def test_a_page_that_lost_its_memory_is_noticed(watch: Watch) -> None:
    """Punch a hole, which the seals permit: the slot reads as zeros."""
    watch.started(worker(1))
    own = page(watch, 1)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(own.fileno(), 0)
    os.pwrite(own.fileno(), b"\0" * (8 * WORDS), HEADER)
    assert evicted(watch, ready(1)).keys() == {1}


def inherited(fds: dict[str, ff.HasFileno], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next Succession() find these descriptors, as a successor does."""
    numbers = {name: os.dup(fd.fileno()) for name, fd in fds.items()}
    monkeypatch.setenv(VARIABLE, variable(numbers))


def test_a_successor_adopts_pages_and_evicts_who_has_overwritten_his_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ff.SharedPage.create(1) as good, ff.SharedPage.create(1) as bad:
        for each, made in ((1, good), (2, bad)):
            made.slot(0).claim(worker=each, generation=1)
        good.slot(0).add(1 << 50)
        os.pwrite(bad.fileno(), b"\xff" * HEADER, 0)
        inherited({"m1": good, "m2": bad}, monkeypatch)
        with Succession() as succession, watch_of(succession) as watch:
            watch.adopt([worker(1), worker(2)])
            assert watch.metrics.account(1).slot is not None
            found = evicted(watch, ready(1, 2))
            assert found == {2: "the worker has overwritten its page: its header is overwritten"}
            assert watch.metrics.account(1).requests == 1 << 50
            for each in (1, 2):
                watch.ended(each, "exit", expected=True)
            assert succession.fds() == {}


def test_a_successor_takes_over_the_page_that_workers_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Adopt workers of an older version, of which nobody can tell who wrote to the page."""
    with ff.SharedPage.create(4) as shared:
        shared.slot(2).claim(worker=1, generation=1)
        shared.slot(3).claim(worker=2, generation=1)
        shared.slot(2).add(7)
        shared.slot(2).beat()
        inherited({"page": shared}, monkeypatch)
        with Succession() as succession, watch_of(succession) as watch:
            watch.adopt([worker(1), worker(2)])
            watch.started(worker(3))
            assert watch.page_of(1) is None and len(page(watch, 3)) == 1
            assert watch.metrics.account(1).read() is not None
            assert watch.metrics.account(1).requests == 7
            shared.slot(3).claim(worker=99, generation=1)
            assert evicted(watch, ready(1, 2, 3)) == {}
            watch.ended(1, "exit", expected=True)
            assert succession.fds().keys() == {"page", "m3"}
            watch.ended(2, "exit", expected=True)
            assert succession.fds().keys() == {"m3"}


def test_a_successor_without_its_predecessors_page_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ff.SharedPage.create(4) as shared:
        os.pwrite(shared.fileno(), b"\0" * HEADER, 0)
        inherited({"page": shared}, monkeypatch)
        with Succession() as succession, watch_of(succession) as watch:
            watch.adopt([worker(1)])
            assert evicted(watch, ready(1)) == {} and succession.fds() == {}
            watch.ended(1, "exit", expected=True)


def test_a_reload_changes_the_bounds_of_the_memory_guard(watch: Watch) -> None:
    def crews(**guard: int) -> State:
        spec = replace(worker(1).spec, memory_guard=MemoryGuard(**guard))
        return State(crews={"web": Crew(spec=spec, count=1, generation=1)})

    first, second = crews(high=1 << 20), crews(high=2 << 20, low=1 << 20)
    watch.changed(State(crews={}), first, (), ["web"])
    guard = watch._guards["web"]
    watch.changed(first, second, (), ["web"])
    assert watch._guards["web"] is guard, "what it knows of the workers stays"
    assert guard.config.high == 2 << 20
