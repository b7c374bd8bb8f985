"""The state machine as pure code: every interleaving keeps what is promised."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from plain_machine import plain_step

from pyforkfd.supervisor.spec._spec import Component, Listener, Recycle, Restart, Service
from pyforkfd.supervisor.state._draft import Draft
from pyforkfd.supervisor.state._events import (
    Action,
    Announce,
    BecameReady,
    Crashed,
    Ended,
    Event,
    Exit,
    Forget,
    Kill,
    Leaving,
    Lend,
    Note,
    Reload,
    Reloaded,
    Retire,
    RollBack,
    Scale,
    SendOrder,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    Stop,
    TakeBack,
    Tick,
    WentStale,
)
from pyforkfd.supervisor.state._model import Phase, Setbacks, State, initial
from pyforkfd.supervisor.state._queries import due, given_up, missing
from pyforkfd.supervisor.state._step import Step, advance


def component(name: str = "web", **options: object) -> Component:
    return Component(name=name, command=("/bin/worker",), listen=("http",), **options)  # type: ignore[arg-type]


def service(*components: Component, shards: bool = False, **options: object) -> Service:
    listener = Listener(name="http", address="tcp://:8000", shards=shards)
    named = {spec.name: spec for spec in components}
    return Service(name="s", components=named, listeners={"http": listener}, **options)  # type: ignore[arg-type]


def compare(before: State, event: Event, now: float, taken: Step) -> None:
    """Demand of a step what the plain one does, and that it knows what it has changed."""
    state, actions = plain_step(before, event, now)
    assert (list(actions), state) == (list(taken.actions), taken.state)
    assert differing(before.workers, taken.state.workers) <= set(taken.workers)
    assert differing(before.crews, taken.state.crews) <= set(taken.crews)
    again = replace(taken.state)  # without the index, which is made anew
    for question in (due, missing, given_up):
        assert question(taken.state) == question(again)


def differing(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> set[Any]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


class Driver:
    """A state, a clock, and every action so far; answers nothing by itself."""

    compared = True

    def __init__(self, of: Service) -> None:
        self.state: State = initial(of)
        self.now = 1000.0
        self.actions: list[Action] = []

    def feed(self, event: Event, *, after: float = 0.0) -> list[Action]:
        self.now += after
        before, taken = self.state, advance(self.state, event, self.now)
        self.state, actions = taken.state, list(taken.actions)
        if self.compared:
            compare(before, event, self.now, taken)
        self.actions += actions
        return actions

    def ready(self, worker_id: int, *, speaks: bool = True) -> list[Action]:
        self.feed(Spawned(worker_id, 100 + worker_id))
        return self.feed(BecameReady(worker_id, speaks))

    def settle(self) -> None:
        """Let all that boot become ready, and all that are dismissed end."""
        while True:
            booting = [w.id for w in self.state.workers.values() if w.phase is Phase.BOOTING]
            leaving = [
                w.id
                for w in self.state.workers.values()
                if w.phase not in (Phase.BOOTING, Phase.READY, Phase.PAUSED)
            ]
            if not booting and not leaving:
                return
            for worker_id in booting:
                self.ready(worker_id)
            for worker_id in leaving:
                self.feed(Ended(worker_id, "done", "exit code 0"))

    def phases(self) -> dict[int, str]:
        return {worker_id: worker.phase.value for worker_id, worker in self.state.workers.items()}


def started(of: Service) -> Driver:
    driver = Driver(of)
    driver.feed(Tick())
    driver.settle()
    return driver


A = TypeVar("A")


def only(actions: list[Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def test_the_service_manager_hears_of_it_when_the_last_is_ready() -> None:
    driver = Driver(service(component(workers=2)))
    assert driver.feed(Tick()) == [Spawn(1), Spawn(2)]
    assert Announce("ready") not in driver.ready(1)
    assert Announce("ready") in driver.ready(2)


def test_a_new_generation_is_ready_before_any_old_worker_is_told_to_leave() -> None:
    driver = started(service(component(workers=2)))
    assert only(driver.feed(Reload()), Spawn) == [Spawn(3), Spawn(4)]
    assert only(driver.ready(3), SendOrder) == []
    actions = driver.ready(4)
    assert only(actions, SendOrder) == [SendOrder(1, "drain"), SendOrder(2, "drain")]
    assert Reloaded(2) in actions


def test_a_failing_generation_changes_nothing() -> None:
    driver = started(service(component(workers=2)))
    driver.feed(Reload())
    driver.ready(3)
    actions = driver.feed(Ended(4, "exit", "exit code 3"))
    (outcome,) = only(actions, Reloaded)
    assert outcome == Reloaded(2, "web: worker 4: exit: exit code 3 before it was ready")
    assert SendOrder(3, "drain") in actions  # it may have accepted a connection already
    driver.settle()
    assert driver.phases() == {1: "ready", 2: "ready"}
    assert driver.state.crews["web"].generation == 1


def test_a_program_without_readiness_is_ready_a_second_after_it_was_started() -> None:
    """Not after it was wanted: it may have to wait for its zygote."""
    driver = started(service(component(readiness="started")))
    driver.feed(Reload())
    assert driver.feed(Tick(), after=2.0) == []
    driver.feed(Spawned(2, 102))
    assert driver.feed(Tick(), after=0.9) == []
    assert Reloaded(2) in driver.feed(Tick(), after=0.2)


def test_a_program_that_is_not_started_in_time_is_given_up() -> None:
    driver = started(service(component(readiness="started", boot_timeout=3.0)))
    driver.feed(Reload())
    (outcome,) = only(driver.feed(Tick(), after=3.0), Reloaded)
    assert outcome.why == "web: worker 2: not ready within 3 s"


def advice(value: str) -> str:
    return f' (it sent no READY=1: for a program that sends none, write readiness = "{value}")'


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, advice("accept")),
        ({"listen": ()}, advice("started")),
        ({"readiness": "accept"}, ""),
        ({"command": None, "function": "shop:serve"}, ""),
    ],
)
def test_the_boot_timeout_has_the_readiness_to_write(
    changes: dict[str, Any], expected: str
) -> None:
    driver = Driver(service(replace(component(boot_timeout=3.0), **changes)))
    driver.feed(Tick())
    driver.feed(Spawned(1, 101))
    driver.feed(Tick(), after=3.0)
    (note,) = [note.text for note in only(driver.actions, Note) if "not ready" in note.text]
    assert note == f"not ready within 3 s{expected}: dumping its stack, then killing it"


def test_a_generation_that_does_not_become_ready_is_given_up() -> None:
    driver = started(service(component(workers=1, boot_timeout=3.0)))
    driver.feed(Reload())
    driver.feed(Spawned(2, 102))
    assert driver.feed(Tick(), after=2.9) == []
    actions = driver.feed(Tick(), after=0.1)
    assert Signal(2, 6) in actions  # its stack is dumped
    assert Reloaded(2, f"web: worker 2: not ready within 3 s{advice('accept')}") in actions
    assert Kill(2) in driver.feed(Tick(), after=1.0)
    actions = driver.feed(Ended(2, "signal", "killed by SIGABRT"))
    assert Crashed(2, "web", "boot_timeout", "killed by SIGABRT") in actions
    assert driver.phases() == {1: "ready"}


def test_a_crash_is_replaced_at_once_and_the_next_ones_later_and_later() -> None:
    restart = Restart(backoff=0.5, backoff_cap=3.0, max_restarts=100)
    driver = started(service(component(restart=restart)))
    pauses = []
    for worker_id in range(1, 8):
        actions = driver.feed(Ended(worker_id, "signal", "killed by SIGSEGV"), after=0.01)
        begun = driver.now
        while not only(actions, Spawn):
            when = due(driver.state)
            assert when is not None
            actions = driver.feed(Tick(), after=when - driver.now)
        pauses.append(round(driver.now - begun, 3))
        driver.ready(worker_id + 1)
    assert pauses == [0.0, 0.5, 1.0, 2.0, 3.0, 3.0, 3.0]


def test_too_many_crashes_are_fatal_for_the_component_and_not_for_the_others() -> None:
    restart = Restart(backoff=0.0, max_restarts=3, within=10.0)
    driver = started(service(component("bad", restart=restart), component("good")))
    for _ in range(4):
        (bad,) = (w.id for w in driver.state.workers.values() if w.component == "bad")
        driver.feed(Ended(bad, "exit", "exit code 1"), after=0.5)
        for worker in list(driver.state.workers.values()):
            if worker.phase is Phase.BOOTING:
                driver.ready(worker.id)
    assert given_up(driver.state) == {"bad": [0]}
    assert missing(driver.state) == {"bad": 1}
    assert not driver.state.stopping
    driver.feed(Reload())
    driver.settle()
    assert missing(driver.state) == {}


def crash(driver: Driver, position: int, *, ready: bool = True) -> list[Action]:
    """End the worker of a position, as soon as it may be started."""
    while not (there := [w for w in driver.state.workers.values() if w.position == position]):
        when = due(driver.state)
        assert when is not None
        driver.feed(Tick(), after=when - driver.now)
    if ready and there[0].phase is Phase.BOOTING:
        driver.ready(there[0].id)
    return driver.feed(Ended(there[0].id, "exit", "exit code 1"))


def pause_of(driver: Driver, position: int) -> float:
    until = driver.state.crews["web"].setbacks[position].until
    assert until is not None
    return round(until - driver.now, 3)


def test_workers_that_all_die_once_have_crashed_once_each() -> None:
    driver = started(service(component(workers=12)))
    for worker_id in range(1, 13):
        driver.feed(Ended(worker_id, "signal", "killed by SIGKILL"))
    assert given_up(driver.state) == {}
    driver.settle()
    assert missing(driver.state) == {}


def test_a_position_that_is_given_up_leaves_the_others_alone() -> None:
    restart = Restart(backoff=0.0, max_restarts=2)
    driver = started(service(component(workers=3, restart=restart)))
    for _ in range(3):
        crash(driver, 1)
    assert given_up(driver.state) == {"web": [1]}
    crash(driver, 2)
    driver.settle()
    assert given_up(driver.state) == {"web": [1]} and missing(driver.state) == {"web": 1}
    assert {w.position for w in driver.state.workers.values()} == {0, 2}


def test_a_position_that_is_given_up_is_tried_again_later_and_later() -> None:
    restart = Restart(backoff=0.5, backoff_cap=2.0, max_restarts=2, within=5.0, retry_cap=20.0)
    driver = started(service(component(workers=2, restart=restart)))
    for _ in range(3):
        crash(driver, 1)
    pauses = [pause_of(driver, 1)]
    for ready in (False, False, True, True, False):  # being ready for a moment is no recovery
        crash(driver, 1, ready=ready)
        assert given_up(driver.state) == {"web": [1]}
        pauses.append(pause_of(driver, 1))
    assert pauses == [2.0, 4.0, 8.0, 16.0, 20.0, 20.0]


def test_a_position_that_serves_again_is_not_given_up_and_starts_anew_when_it_has_for_long() -> (
    None
):
    restart = Restart(backoff=0.5, backoff_cap=10.0, max_restarts=2, within=20.0)
    driver = started(service(component(workers=2, restart=restart)))
    for _ in range(3):
        crash(driver, 1)
    driver.feed(Tick(), after=pause_of(driver, 1))
    assert given_up(driver.state) == {"web": [1]}, "it is being tried"
    driver.settle()
    assert given_up(driver.state) == {} and missing(driver.state) == {}
    driver.feed(Tick(), after=30.0)
    assert only(crash(driver, 1), Spawn), "at once, as the first time"
    assert given_up(driver.state) == {}


def test_a_pause_of_one_that_is_given_up_is_never_nothing() -> None:
    restart = Restart(backoff=0.0, backoff_cap=0.0, max_restarts=0, retry_cap=4.0)
    driver = started(service(component(workers=2, restart=restart)))
    pauses = []
    for _ in range(12):
        crash(driver, 1)
        pauses.append(pause_of(driver, 1))
    assert pauses[0] == 1.0 and pauses[-1] == 4.0 and pauses == sorted(pauses)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_generation_is_ready_in_the_moment_in_which_a_back_off_ends(scaled: bool) -> None:
    """The position that was to be tried may be another crew's by then, or none."""
    restart = Restart(backoff=0.5, backoff_cap=3.0)
    driver = started(service(component(workers=2, restart=restart), component("other")))
    crash(driver, 1)
    crash(driver, 1)
    assert pause_of(driver, 1) == 0.5
    crews = {name: crew.spec for name, crew in driver.state.crews.items()}
    only_other = frozenset({"other"})
    if scaled:
        crews["web"] = replace(crews["web"], workers=1)
        driver.feed(Reload(crews, only=only_other))
    else:
        driver.feed(Reload({"other": crews["other"]}))
    booting = [w.id for w in driver.state.workers.values() if w.phase is Phase.BOOTING]
    for worker_id in booting:
        driver.feed(Spawned(worker_id, 100 + worker_id))
    *first, last = booting
    for worker_id in first:
        driver.feed(BecameReady(worker_id, True))
    assert driver.state.pending is not None
    assert Reloaded(2) in driver.feed(BecameReady(last, True), after=0.6)


def test_a_service_that_was_ready_is_tried_for_ever() -> None:
    restart = Restart(backoff=0.0, max_restarts=0)
    driver = started(service(component(restart=restart)))
    for _ in range(20):
        assert only(crash(driver, 0), Exit) == []
    assert given_up(driver.state) == {"web": [0]}
    driver.feed(Tick(), after=300.0)
    driver.settle()
    assert missing(driver.state) == {}


def test_a_component_that_is_scaled_down_forgets_the_positions_beyond() -> None:
    driver = started(service(component(workers=3, restart=Restart(backoff=0.0, max_restarts=0))))
    crash(driver, 2)
    assert given_up(driver.state) == {"web": [2]}
    driver.feed(Scale("web", 2))
    assert given_up(driver.state) == {} and due(driver.state) is None
    driver.feed(Scale("web", 3))
    driver.settle()
    assert missing(driver.state) == {}


def test_a_shortage_of_the_supervisor_is_no_crash() -> None:
    driver = Driver(service(component(workers=3, restart=Restart(max_restarts=0))))
    assert only(driver.feed(Tick()), Spawn) == [Spawn(1), Spawn(2), Spawn(3)]
    actions = driver.feed(SpawnFailed(1, "no descriptor", shortage=True))
    actions += driver.feed(SpawnFailed(2, "no descriptor", shortage=True))
    assert only(actions, Crashed) == [] and only(actions, Spawn) == []
    assert [note.level for note in only(actions, Note)] == ["error"], "said once"
    driver.ready(3)
    pauses = []
    for _ in range(8):
        pauses.append(pause_of(driver, 0))
        (spawn, *_) = only(driver.feed(Tick(), after=pauses[-1]), Spawn)
        actions = driver.feed(SpawnFailed(spawn.worker_id, "no descriptor", shortage=True))
        assert only(actions, Note) == []
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert given_up(driver.state) == {} and driver.state.crews["web"].short == {0, 1}
    driver.feed(Tick(), after=60.0)
    driver.settle()
    assert missing(driver.state) == {} and driver.state.crews["web"].short == frozenset()
    assert driver.state.crews["web"].setbacks[0] == Setbacks(), "nothing of it is remembered"


def test_a_shortage_ends_a_reload_and_nothing_else() -> None:
    driver = started(service(component(workers=2)))
    driver.feed(Reload())
    (outcome,) = only(driver.feed(SpawnFailed(3, "no descriptor", shortage=True)), Reloaded)
    assert outcome == Reloaded(2, "web: worker 3: not started: no descriptor")
    driver.settle()
    assert driver.phases() == {1: "ready", 2: "ready"} and due(driver.state) is None


def test_a_replacement_that_has_to_wait_leaves_its_predecessor() -> None:
    driver = started(service(component(workers=1)))
    driver.feed(Retire(1, "it has grown"))
    driver.feed(SpawnFailed(2, "no memory", shortage=True))
    assert driver.phases() == {1: "ready"}
    driver.feed(Tick(), after=60.0)
    driver.settle()
    assert driver.phases() == {3: "ready"}


def test_where_nothing_can_be_kept_running_we_give_up() -> None:
    driver = Driver(service(component(restart=Restart(backoff=0.0, max_restarts=1))))
    driver.feed(Tick())
    driver.feed(SpawnFailed(1, "no such program"))
    actions = driver.feed(SpawnFailed(2, "no such program"), after=1.0)
    assert Exit(1) in actions


@pytest.mark.parametrize(
    ("policy", "cause", "again"),
    [
        ("always", "done", True),
        ("always", "exit", True),
        ("on-failure", "done", False),
        ("on-failure", "exit", True),
        ("never", "exit", False),
    ],
)
def test_the_restart_policy(policy: str, cause: str, again: bool) -> None:
    driver = started(service(component(restart=Restart(policy=policy))))  # type: ignore[arg-type]
    actions = driver.feed(Ended(1, cause, "..."), after=5.0)  # type: ignore[arg-type]
    assert bool(only(actions, Spawn)) == again


def test_recycling_is_rolling_and_replaces_before_it_dismisses() -> None:
    driver = started(service(component(workers=3, recycle=Recycle(age=10.0, jitter=0.0))))
    actions = driver.feed(Tick(), after=10.0)
    assert only(actions, Spawn) == [Spawn(4)]  # one after the other
    assert only(actions, SendOrder) == []
    actions = driver.ready(4)
    assert only(actions, SendOrder) == [SendOrder(1, "drain")]
    assert only(actions, Spawn) == [Spawn(5)]


def test_one_that_cannot_be_replaced_stays() -> None:
    driver = started(service(component(workers=1)))
    driver.feed(Retire(1, "it has grown"))
    driver.feed(SpawnFailed(2, "no memory"))
    assert driver.phases() == {1: "ready"}
    driver.feed(Tick(), after=60.0)
    driver.settle()
    assert driver.phases() == {3: "ready"}


def test_one_that_leaves_by_itself_is_not_ready_and_is_replaced_at_once() -> None:
    driver = started(service(component(workers=2, drain_timeout=5.0)))
    actions = driver.feed(Leaving(1), after=2.0)
    assert only(actions, Spawn) == [Spawn(3)]
    assert only(actions, SendOrder) == [], "it knows"
    assert missing(driver.state) == {"web": 1}
    assert driver.feed(Leaving(1)) == []  # over both ways
    actions = driver.feed(Ended(1, "done", "exit code 0"), after=1.0)
    assert only(actions, Crashed) == []
    assert driver.state.crews["web"].setbacks == {}
    driver.ready(3)
    assert missing(driver.state) == {}


def test_one_that_leaves_by_itself_has_as_long_as_one_that_drains() -> None:
    driver = started(service(component(drain_timeout=5.0, stop_timeout=2.0)))
    driver.feed(Leaving(1), after=2.0)
    assert Signal(1, 15) in driver.feed(Tick(), after=5.0)
    assert Kill(1) in driver.feed(Tick(), after=2.0)
    actions = driver.feed(Ended(1, "signal", "killed by SIGKILL"))
    assert only(actions, Crashed) == []


@pytest.mark.parametrize("cause", ["exit", "signal", "oom"])
def test_one_that_fails_while_it_leaves_by_itself_has_crashed(cause: str) -> None:
    driver = started(service(component()))
    driver.feed(Leaving(1), after=2.0)
    actions = driver.feed(Ended(1, cause, "..."), after=1.0)  # type: ignore[arg-type]
    assert only(actions, Crashed) == [Crashed(1, "web", cause, "...")]  # type: ignore[arg-type]
    assert len(driver.state.crews["web"].setbacks[0].crashes) == 1
    driver.settle()
    assert driver.phases() == {2: "ready"}


@pytest.mark.parametrize(
    ("policy", "cause", "again"),
    [("on-failure", "done", False), ("on-failure", "exit", True), ("never", "exit", False)],
)
def test_the_restart_policy_holds_for_one_that_leaves_by_itself(
    policy: str, cause: str, again: bool
) -> None:
    driver = started(service(component(restart=Restart(policy=policy))))  # type: ignore[arg-type]
    assert only(driver.feed(Leaving(1), after=5.0), Spawn) == []
    assert missing(driver.state) == {}
    actions = driver.feed(Ended(1, cause, "..."))  # type: ignore[arg-type]
    assert bool(only(actions, Spawn)) == again


def test_workers_that_leave_as_soon_as_they_are_ready_are_started_later_and_later() -> None:
    restart = Restart(backoff=0.5, backoff_cap=3.0, max_restarts=4)
    driver = started(service(component(restart=restart)))
    pauses = []
    for number in range(1, 5):
        actions = driver.feed(Leaving(number), after=0.01)
        begun = driver.now
        driver.feed(Ended(number, "done", "exit code 0"))
        while not only(actions, Spawn):
            when = due(driver.state)
            assert when is not None
            actions = driver.feed(Tick(), after=when - driver.now)
        pauses.append(round(driver.now - begun, 3))
        driver.ready(number + 1)
    assert pauses == [0.0, 0.5, 1.0, 2.0]
    driver.feed(Leaving(5), after=0.01)
    assert given_up(driver.state) == {"web": [0]}


def test_a_new_generation_of_which_one_leaves_by_itself_is_given_up() -> None:
    driver = started(service(component(workers=2)))
    driver.feed(Reload())
    driver.ready(3)
    (outcome,) = only(driver.feed(Leaving(3)), Reloaded)
    assert outcome == Reloaded(2, "web: worker 3: done: it leaves by itself")
    driver.settle()
    assert driver.phases() == {1: "ready", 2: "ready"}


def test_of_one_that_boots_or_is_to_leave_the_end_says_enough() -> None:
    driver = Driver(service(component()))
    driver.feed(Tick())
    driver.feed(Spawned(1, 101))
    assert driver.feed(Leaving(1)) == []
    driver.ready(1)
    driver.feed(Stop())
    assert driver.feed(Leaving(1)) == []


def test_a_roll_back_starts_what_has_left_by_itself_meanwhile() -> None:
    driver = started(service(component(workers=1), rollback=30.0))
    driver.feed(Reload())
    driver.ready(2)
    assert only(driver.feed(Leaving(1)), Spawn) == []
    actions = driver.feed(RollBack())
    assert only(actions, Spawn) == [Spawn(3)]
    assert not only(actions, SendOrder) and not only(actions, Reloaded)  # the new one stays
    actions = driver.ready(3)
    assert only(actions, SendOrder) == [SendOrder(2, "drain")]
    assert only(actions, Reloaded) == [Reloaded(1)]


def test_a_roll_back_that_cannot_be_leaves_the_new_generation() -> None:
    driver = started(service(component(workers=2), rollback=30.0))
    driver.feed(Reload())
    driver.ready(3)
    driver.ready(4)
    driver.feed(Ended(1, "signal", "killed by SIGSEGV"))  # it was paused
    actions = driver.feed(RollBack())
    assert only(actions, SendOrder) == [SendOrder(2, "resume")]
    assert only(actions, Spawn) == [Spawn(5)]
    actions = driver.feed(Ended(5, "exit", "exit code 1"))
    assert only(actions, SendOrder) == [SendOrder(2, "drain")]
    assert "exit code 1" in only(actions, Reloaded)[0].why
    driver.settle()
    assert driver.phases() == {3: "ready", 4: "ready"}


def test_a_back_off_that_has_passed_is_not_due_for_ever() -> None:
    driver = started(service(component(workers=2, restart=Restart(backoff=5.0))))
    driver.feed(Ended(2, "signal", "killed by SIGSEGV"))
    driver.ready(3)
    driver.feed(Ended(3, "signal", "killed by SIGSEGV"))
    driver.feed(Scale("web", 1))  # nobody is started in its position any more
    driver.feed(Tick(), after=60.0)
    assert due(driver.state) is None


def test_draining_has_an_end() -> None:
    driver = started(service(component(drain_timeout=5.0, stop_timeout=2.0)))
    assert driver.feed(Stop()) == [Announce("stopping"), SendOrder(1, "drain")]
    assert Signal(1, 15) in driver.feed(Tick(), after=5.0)
    assert Kill(1) in driver.feed(Tick(), after=2.0)
    assert driver.feed(Ended(1, "signal", "killed by SIGKILL"))[-1] == Exit(0)


def test_a_program_that_knows_nothing_of_us_has_as_long_to_drain() -> None:
    driver = Driver(service(component(drain_timeout=5.0, stop_timeout=2.0)))
    driver.feed(Tick())
    driver.ready(1, speaks=False)
    assert Signal(1, 15) in driver.feed(Stop())
    assert only(driver.feed(Tick(), after=6.9), Kill) == []
    assert Kill(1) in driver.feed(Tick(), after=0.1)


def test_a_second_stop_does_not_wait() -> None:
    driver = started(service(component(workers=2)))
    driver.feed(Stop())
    assert only(driver.feed(Stop()), Kill) == [Kill(1), Kill(2)]


def test_a_stale_worker_shows_its_stack_and_is_replaced() -> None:
    driver = started(service(component()))
    actions = driver.feed(WentStale(1, "no beat for 5 s"))
    assert only(actions, Signal) == [Signal(1, 6)]
    assert only(actions, Spawn) == [Spawn(2)]
    assert Kill(1) in driver.feed(Tick(), after=1.0)
    actions = driver.feed(Ended(1, "core", "killed by SIGABRT (core dumped)"))
    assert Crashed(1, "web", "stale", "killed by SIGABRT (core dumped)") in actions


def test_the_old_generation_waits_for_a_roll_back() -> None:
    driver = started(service(component(workers=1), rollback=30.0))
    driver.feed(Reload())
    assert only(driver.ready(2), SendOrder) == [SendOrder(1, "pause")]
    actions = driver.feed(RollBack(), after=10.0)
    assert only(actions, SendOrder) == [SendOrder(1, "resume"), SendOrder(2, "drain")]
    assert only(actions, Spawn) == []
    driver.settle()
    assert driver.phases() == {1: "ready"}


def test_and_leaves_when_none_comes() -> None:
    driver = started(service(component(workers=1), rollback=30.0))
    driver.feed(Reload())
    driver.ready(2)
    assert only(driver.feed(Tick(), after=30.0), SendOrder) == [SendOrder(1, "drain")]
    assert only(driver.feed(RollBack()), Reloaded)[0].why


def test_a_reload_of_one_component_leaves_the_others_alone() -> None:
    driver = started(service(component("a"), component("b")))
    assert len(only(driver.feed(Reload(only=frozenset({"b"}))), Spawn)) == 1
    driver.settle()
    generations = {w.component: w.generation for w in driver.state.workers.values()}
    assert generations == {"a": 1, "b": 2}


def test_components_come_and_go_with_a_reload() -> None:
    driver = started(service(component("a")))
    driver.feed(Reload({"b": component("b")}))
    assert [w.component for w in driver.state.workers.values()] == ["a", "b"]
    driver.settle()
    assert [w.component for w in driver.state.workers.values()] == ["b"]


def test_the_oldest_of_too_many_generations_is_killed() -> None:
    driver = started(service(component(workers=1, drain_timeout=1e6), max_generations=2))
    driver.feed(Reload())
    assert only(driver.ready(2), Kill) == []
    assert only(driver.feed(Reload()), Kill) == [Kill(1)]


def test_the_shards_of_a_dead_worker_are_lent_until_it_is_replaced() -> None:
    driver = started(service(component(workers=3), shards=True))
    actions = driver.feed(Ended(2, "signal", "killed by SIGKILL"))
    assert only(actions, Lend) == [Lend(1, 1)]
    assert TakeBack(1, 1) in driver.ready(4)


def test_a_reload_may_bring_shards_and_take_them_away() -> None:
    driver = started(service(component(workers=2)))
    driver.feed(Reload(sharded=frozenset({"web"})))
    driver.settle()
    assert only(driver.feed(Ended(3, "signal", "killed by SIGKILL")), Lend) == [Lend(4, 0)]
    driver.settle()
    driver.feed(Reload(sharded=frozenset()))
    driver.settle()
    one = min(driver.state.workers)
    assert only(driver.feed(Ended(one, "signal", "killed by SIGKILL")), Lend) == []


def test_what_a_reload_says_of_generations_goes_from_its_own_switch_on() -> None:
    driver = started(service(component(workers=1), rollback=0.0))
    driver.feed(Reload(rollback=30.0, max_generations=5))
    driver.feed(Ended(2, "exit", "exit code 1"))  # it is given up: nothing has changed
    assert (driver.state.rollback, driver.state.max_generations) == (0.0, 3)
    driver.feed(Reload(rollback=30.0, max_generations=5))
    assert only(driver.ready(3), SendOrder) == [SendOrder(1, "pause")]
    assert (driver.state.rollback, driver.state.max_generations) == (30.0, 5)


NAMES = ["a", "b"]


def served(state: State, component: str, without: int | None = None) -> set[int]:
    """The positions at which a worker is ready."""
    generation = state.crews[component].generation
    return {
        worker.position
        for worker in state.workers.values()
        if (worker.component, worker.generation) == (component, generation)
        and worker.phase is Phase.READY
        and worker.id != without
    }


class Supervision(RuleBasedStateMachine):
    """Events in any order.  The model learns from actions alone, as the resources do."""

    def __init__(self) -> None:
        super().__init__()
        self.owed: list[int] = []  # given up before they were there: the loop answers for them

    @initialize(
        workers=st.integers(1, 3),
        shards=st.booleans(),
        rollback=st.sampled_from([0.0, 5.0]),
        max_restarts=st.integers(0, 5),
        age=st.sampled_from([None, 7.0]),
    )
    def begin(
        self, workers: int, shards: bool, rollback: float, max_restarts: int, age: float | None
    ) -> None:
        options: dict[str, object] = {
            "workers": workers,
            "boot_timeout": 3.0,
            "drain_timeout": 4.0,
            "stop_timeout": 2.0,
            "restart": Restart(backoff=0.5, max_restarts=max_restarts),
            "recycle": Recycle(age=age),
        }
        parts = [component(name, **options) for name in NAMES]
        self.driver = Driver(service(*parts, shards=shards, rollback=rollback, max_generations=2))
        self.alive: set[int] = set()  # asked for, and not forgotten
        self.processes: set[int] = set()
        self.forgotten: Counter[int] = Counter()
        self.owners: dict[tuple[str, int], int] = {}
        self.ends: Counter[tuple[str, int, int]] = Counter()  # no shortages among them
        self.reloads = self.outcomes = 0
        self.stopped = self.exited = False
        self.take(Tick())

    def take(self, event: Event, after: float = 0.0) -> None:
        if self.exited:
            return  # nobody listens any more
        driver = self.driver
        before = driver.state
        if isinstance(event, (Spawned, BecameReady, WentStale, Leaving, Retire)):
            assert event.worker_id in before.workers
        if isinstance(event, (Ended, Leaving, SpawnFailed)):
            worker = before.workers[event.worker_id]
            shortage = isinstance(event, SpawnFailed) and event.shortage
            self.ends[worker.component, worker.generation, worker.position] += not shortage
        for action in driver.feed(event, after=after):
            self.check(action)
        self.nobody_leaves_too_early(before, event)

    def check(self, action: Action) -> None:
        assert not self.exited, f"{action} after the exit"
        match action:
            case Spawn(worker_id):
                assert worker_id not in self.alive
                assert not self.forgotten[worker_id], "no id is used twice"
                self.alive.add(worker_id)
            case Forget(worker_id):
                self.forgotten[worker_id] += 1
                assert self.forgotten[worker_id] == 1, "every child is reaped once"
                self.alive.remove(worker_id)
                self.processes.discard(worker_id)
                # Its copies of the sockets went with it.
                self.owners = {k: n for k, n in self.owners.items() if n != worker_id}
            case SendOrder(worker_id, _):
                assert worker_id in self.processes
                assert self.driver.state.workers[worker_id].speaks
            case Signal(worker_id, _) | Kill(worker_id):
                assert worker_id in self.alive
                if worker_id not in self.processes:
                    self.owed.append(worker_id)
            case Lend(worker_id, position):
                key = (self.driver.state.workers[worker_id].component, position)
                assert key not in self.owners, "never two owners of a shard"
                assert self.driver.state.workers[worker_id].phase is Phase.READY
                self.owners[key] = worker_id
            case TakeBack(worker_id, position):
                key = (self.driver.state.workers[worker_id].component, position)
                assert self.owners.pop(key) == worker_id
            case Reloaded():
                self.outcomes += 1
            case Exit():
                assert not self.alive
                self.exited = True

    def nobody_leaves_too_early(self, before: State, event: Event) -> None:
        """No decision leaves fewer positions served than promised, or than there were."""
        after = self.driver.state
        if after.stopping:
            return
        lost = event.worker_id if isinstance(event, (Ended, WentStale, Leaving)) else None
        for name in before.crews.keys() & after.crews.keys():
            ready = len(served(before, name, without=lost))
            promised = min(ready, before.crews[name].count, after.crews[name].count)
            assert len(served(after, name)) >= promised, name

    def workers(self, *phases: Phase) -> list[int]:
        return [w.id for w in self.driver.state.workers.values() if w.phase in phases]

    def pick(self, data: st.DataObject, numbers: list[int]) -> int | None:
        return data.draw(st.sampled_from(numbers)) if numbers else None

    @rule(data=st.data())
    def a_process_is_there(self, data: st.DataObject) -> None:
        worker_id = self.pick(data, sorted(self.alive - self.processes))
        if worker_id is not None:
            self.processes.add(worker_id)
            self.take(Spawned(worker_id, worker_id))

    @rule(data=st.data(), shortage=st.booleans())
    def a_process_is_not_to_be_had(self, data: st.DataObject, shortage: bool) -> None:
        worker_id = self.pick(data, sorted(self.alive - self.processes))
        if worker_id is not None:
            self.take(SpawnFailed(worker_id, "no", shortage=shortage))

    @rule(data=st.data(), speaks=st.booleans(), after=st.sampled_from([0.0, 0.6]))
    def a_worker_is_ready(self, data: st.DataObject, speaks: bool, after: float) -> None:
        worker_id = self.pick(data, [n for n in self.workers(*Phase) if n in self.processes])
        if worker_id is not None:
            self.take(BecameReady(worker_id, speaks), after=after)

    @rule(data=st.data(), cause=st.sampled_from(["exit", "done", "signal", "oom"]))
    def a_worker_ends(self, data: st.DataObject, cause: str) -> None:
        worker_id = self.pick(data, sorted(self.processes))
        if worker_id is not None:
            self.take(Ended(worker_id, cause, "..."))  # type: ignore[arg-type]

    @rule(data=st.data())
    def a_worker_goes_stale(self, data: st.DataObject) -> None:
        worker_id = self.pick(data, sorted(self.processes))
        if worker_id is not None:
            self.take(WentStale(worker_id, "..."))

    @rule(data=st.data())
    def a_worker_leaves_by_itself(self, data: st.DataObject) -> None:
        number = self.pick(data, sorted(self.processes))
        if number is not None:
            self.take(Leaving(number))
            assert self.exited or number not in self.workers(Phase.READY, Phase.PAUSED)

    @rule(data=st.data())
    def a_worker_is_to_be_replaced(self, data: st.DataObject) -> None:
        worker_id = self.pick(data, sorted(self.processes))
        if worker_id is not None:
            self.take(Retire(worker_id, "..."))

    @rule(names=st.sets(st.sampled_from(NAMES)), only=st.booleans())
    def the_service_is_reloaded(self, names: set[str], only: bool) -> None:
        self.reloads += not self.exited
        if only:
            self.take(Reload(only=frozenset(names)))
        else:
            crews = {**self.driver.state.crews}
            kept = {name: crew.spec for name, crew in crews.items() if name not in names}
            new = {name: component(f"{name}") for name in names if name not in crews}
            self.take(Reload({**kept, **new}))

    @rule()
    def it_is_rolled_back(self) -> None:
        self.reloads += not self.exited
        self.take(RollBack())

    @rule(name=st.sampled_from(NAMES), count=st.integers(0, 4))
    def a_component_is_scaled(self, name: str, count: int) -> None:
        self.take(Scale(name, count))

    @rule(after=st.sampled_from([0.1, 1.0, 5.0]))
    def time_passes(self, after: float) -> None:
        self.take(Tick(), after=after)

    @precondition(lambda self: bool(self.owed))
    @rule()
    def the_loop_answers_for_one_that_was_given_up(self) -> None:
        worker_id = self.owed.pop()
        if worker_id in self.alive and worker_id not in self.processes:
            self.take(SpawnFailed(worker_id, "given up"))

    @rule(now=st.booleans(), really=st.integers(0, 9))
    def it_is_stopped(self, now: bool, really: int) -> None:
        if really == 0:
            self.stopped = True
            self.take(Stop(now))

    @invariant()
    def what_is_known_is_what_is_there(self) -> None:
        if hasattr(self, "driver"):
            assert set(self.driver.state.workers) == self.alive

    @invariant()
    def no_position_is_served_twice_for_long(self) -> None:
        if not hasattr(self, "driver"):
            return
        state = self.driver.state
        places = Counter(
            (w.component, w.position, w.generation)
            for w in state.workers.values()
            if w.phase in (Phase.BOOTING, Phase.READY) and not w.retiring
        )
        assert all(count == 1 for count in places.values()), places

    @invariant()
    def a_lender_knows(self) -> None:
        if hasattr(self, "driver"):
            # What was lent to those that are gone, or leave, needs no taking back.
            known = {k: n for k, n in self.owners.items() if n in self.driver.state.workers}
            assert self.driver.state.lent.items() <= known.items()
            self.owners = known

    @invariant()
    def there_is_always_a_next_step(self) -> None:
        """A worker that neither serves nor was killed has a deadline."""
        if not hasattr(self, "driver"):
            return
        for worker in self.driver.state.workers.values():
            if worker.phase in (Phase.BOOTING, Phase.DRAINING, Phase.STOPPING, Phase.DUMPING):
                assert worker.deadline is not None

    @invariant()
    def every_position_is_served_or_tried_again(self) -> None:
        """Given up, short of something: there is a time at which the next worker starts."""
        if not hasattr(self, "driver") or self.driver.state.stopping:
            return
        state = self.driver.state
        for name, crew in state.crews.items():
            here = {
                worker.position
                for worker in state.workers.values()
                if (worker.component, worker.generation) == (name, crew.generation)
                and worker.phase in (Phase.BOOTING, Phase.READY)
            }
            waiting = {p for p, s in crew.setbacks.items() if s.until is not None}
            assert (here | crew.finished | waiting).issuperset(range(crew.count)), name

    @invariant()
    def only_its_own_crashes_give_a_position_up(self) -> None:
        if hasattr(self, "driver"):
            for name, crew in self.driver.state.crews.items():
                for position in crew.given_up:
                    limit = crew.spec.restart.max_restarts
                    assert self.ends[name, crew.generation, position] > limit

    @invariant()
    def nothing_is_due_for_ever(self) -> None:
        """Or the loop would run in circles."""
        if hasattr(self, "driver") and (when := due(self.driver.state)) is not None:
            assert when > self.driver.now

    def teardown(self) -> None:
        """From wherever it was, it stops in bounded time."""
        if not hasattr(self, "driver") or self.exited:
            return
        self.take(Stop())
        for _ in range(10):
            self.take(Tick(), after=10.0)
        for worker_id in sorted(self.alive):
            assert self.driver.state.workers[worker_id].phase is Phase.KILLED
            self.take(Ended(worker_id, "signal", "killed"))
        assert self.exited
        assert self.outcomes == self.reloads, "every reload has an outcome"


TestSupervision = Supervision.TestCase
# In CI the same sequences each time; by hand, and wherever they are looked for, new ones.
TestSupervision.settings = settings(
    max_examples=300, stateful_step_count=60, deadline=None, derandomize="CI" in os.environ
)


def test_a_state_is_never_changed_in_place() -> None:
    driver = started(service(component(workers=2), rollback=5.0))
    kept = replace(driver.state)
    crews, workers = dict(kept.crews), dict(kept.workers)
    driver.feed(Reload())
    driver.settle()
    assert (dict(kept.crews), dict(kept.workers)) == (crews, workers)


def test_a_step_keeps_the_mappings_of_which_it_changes_nothing() -> None:
    driver = started(service(component(workers=2)))
    before = driver.state
    driver.feed(Tick())
    assert driver.state == before
    assert driver.state.crews is before.crews and driver.state.workers is before.workers
    driver.feed(Retire(1, "old"))
    assert driver.state.crews is before.crews and driver.state.workers is not before.workers
    before = driver.state
    driver.feed(Scale("web", 3))
    assert driver.state.crews is not before.crews


@pytest.mark.parametrize("method", ["put", "enter", "remove", "put_crew", "remove_crew"])
def test_a_draft_knows_what_was_touched(method: str) -> None:
    draft = Draft.of(started(service(component(workers=2))).state, 2000.0)
    worker, crew = draft.workers[1], draft.crews["web"]
    match method:
        case "put":
            draft.put(replace(worker, pid=3))
        case "enter":
            draft.enter(worker, Phase.PAUSED, None)
        case "remove":
            assert draft.remove(1) is worker and draft.remove(3) is None
        case "put_crew":
            draft.put_crew("web", replace(crew, count=3))
        case "remove_crew":
            draft.remove_crew("web")
    crews, workers = (set(), {1}) if "crew" not in method else ({"web"}, set())
    assert (draft.touched_crews, draft.touched_workers) == (crews, workers)
    result = draft.result()
    assert (result.crews != draft.before.crews, result.workers != draft.before.workers) == (
        bool(crews),
        bool(workers),
    )
