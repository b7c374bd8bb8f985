"""The description of a service, of states that need no process."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pyforkfd.supervisor.control._status import (
    Death,
    Deaths,
    WorkerDetails,
    describe,
    judge,
    summary,
)
from pyforkfd.supervisor.spec._spec import Component, Restart, Service
from pyforkfd.supervisor.state._events import (
    BecameReady,
    Ended,
    Event,
    Reload,
    Scale,
    Spawned,
    SpawnFailed,
    Stop,
    Tick,
)
from pyforkfd.supervisor.state._model import State, initial
from pyforkfd.supervisor.state._step import step

WEB = Component(
    name="web", command=("w",), workers=2, restart=Restart(max_restarts=1, backoff=1000.0)
)
STARTED: list[Event] = [Tick(), Spawned(1, 101), Spawned(2, 102)]
READY: list[Event] = [*STARTED, BecameReady(1), BecameReady(2)]


def after(*events: Event, spec: Component = WEB, rollback: float = 0.0) -> State:
    state = initial(Service(name="shop", components={"web": spec}, rollback=rollback))
    for event in events:
        state, _ = step(state, event, 100.0)
    return state


CRASH: list[Event] = [Ended(1, "exit", "exit code 3"), Ended(3, "exit", "exit code 3")]
GIVEN_UP = "web: more than 1 crashes within 60 s: 1 of 2 workers is given up; next try in 300 s"
SHORT: list[Event] = [CRASH[0], SpawnFailed(3, "EMFILE", shortage=True)]


@pytest.mark.parametrize(
    ("events", "condition", "reasons"),
    [
        (STARTED, "starting", ["web: 2 of 2 workers are not ready"]),
        (READY, "ready", []),
        ([*READY, CRASH[0]], "degraded", ["web: 1 of 2 workers are not ready"]),
        ([*READY, Scale("web", 3)], "degraded", ["web: 1 of 3 workers are not ready"]),
        (
            [*READY, *CRASH],
            "degraded",
            [
                GIVEN_UP,
                "web: 1 of 2 workers are not ready",
            ],
        ),
        (
            [*READY, Reload()],
            "reloading",
            ["generation 2 boots: web: 0 of 2 workers are ready"],
        ),
        (
            [*READY, Reload(), BecameReady(3)],
            "reloading",
            ["generation 2 boots: web: 1 of 2 workers are ready"],
        ),
        ([*READY, Reload(), BecameReady(3), BecameReady(4)], "ready", []),
        ([*READY, Stop()], "stopping", ["2 workers still to end"]),
    ],
)
def test_conditions(events: list[Event], condition: str, reasons: list[str]) -> None:
    found, why = judge(after(*events), 100.0)
    assert found == condition
    assert why[: len(reasons)] == reasons
    if condition != "stopping":
        assert why == reasons


def test_a_component_that_is_given_up_is_more_than_slow_to_start() -> None:
    other = Component(name="other", command=("o",), workers=1)
    web = replace(WEB, restart=Restart(max_restarts=0))
    service = Service(name="shop", components={"web": web, "other": other})
    state = initial(service)
    for event in (Tick(), Spawned(3, 103), CRASH[0]):
        state, _ = step(state, event, 100.0)
    assert judge(state, 100.0)[0] == "degraded"


def test_everything_is_described_in_plain_values() -> None:
    state = after(*READY, CRASH[0])
    deaths = Deaths()
    deaths.add("web", 0, Death(1, "exit", "exit code 3", 100.0))
    details = {2: WorkerDetails(text="busy", beat_age=0.5, memory=2**20)}
    described = describe(
        state, 110.0, service="shop", pid=7, started=90.0, details=details, deaths=deaths
    )
    assert json.loads(json.dumps(described)) == described
    assert (described["service"], described["pid"], described["age"], described["generation"]) == (
        "shop",
        7,
        20.0,
        1,
    )
    (web,) = described["components"]
    workers = web.pop("workers")
    death = {"worker": 1, "cause": "exit", "detail": "exit code 3", "ago": 10.0}
    assert web == {
        "name": "web",
        "wanted": 2,
        "ready": 1,
        "generation": 1,
        "fatal": False,
        "given_up": [],
        "short": [],
        "finished": 0,
        "crashes": 1,
        "last_death": death,
    }
    replacement, old = workers
    assert replacement | {"id": 3, "pid": None, "phase": "booting", "position": 0} == replacement
    assert (replacement["restarts"], replacement["last_death"]) == (1, death)
    assert old == {
        "id": 2,
        "pid": 102,
        "phase": "ready",
        "retiring": False,
        "position": 1,
        "generation": 1,
        "age": 10.0,
        "restarts": 0,
        "last_death": None,
        "status": "busy",
        "beat_age": 0.5,
        "memory": 2**20,
    }


def test_workers_that_leave_are_shown_until_they_have_left() -> None:
    state = after(*READY, Reload({}))
    described = describe(state, 100.0, service="shop", pid=7, started=0.0)
    (web,) = described["components"]
    assert (web["wanted"], web["generation"]) == (0, None)
    assert {worker["phase"] for worker in web["workers"]} == {"stopping"}


def test_how_long_a_rollback_is_possible() -> None:
    speaks: list[Event] = [*STARTED, BecameReady(1, speaks=True), BecameReady(2, speaks=True)]
    state = after(*speaks, Reload(), BecameReady(3), BecameReady(4), rollback=60.0)
    described = describe(state, 110.0, service="shop", pid=7, started=0.0)
    assert described["rollback"] == 50.0
    assert (
        describe(replace(state, previous=None), 110.0, service="s", pid=7, started=0.0)["rollback"]
        is None
    )


def test_one_line_for_the_service_manager() -> None:
    assert summary(after(*READY), 100.0) == "ready: web 2/2; generation 1"
    assert summary(after(*READY, CRASH[0]), 100.0) == "degraded: web 1/2; generation 1"


def test_when_a_position_is_tried_again() -> None:
    state = after(*READY, *CRASH)
    described = describe(state, 250.0, service="shop", pid=7, started=0.0)
    (web,) = described["components"]
    assert web["fatal"] and web["given_up"] == [{"position": 0, "next_try": 150.0, "why": ""}]
    assert "given up; next try in 150 s" in described["reasons"][0]
    state, _ = step(state, Tick(), 400.0)
    described = describe(state, 400.0, service="shop", pid=7, started=0.0)
    (web,) = described["components"]
    assert web["given_up"] == [{"position": 0, "next_try": None, "why": ""}]
    assert "given up; being tried now" in described["reasons"][0]
    for event in (Spawned(4, 104), BecameReady(4)):
        state, _ = step(state, event, 401.0)
    described = describe(state, 401.0, service="shop", pid=7, started=0.0)
    assert (described["condition"], described["reasons"]) == ("ready", [])
    assert not described["components"][0]["fatal"]


def test_what_the_supervisor_is_short_of() -> None:
    described = describe(after(*READY, *SHORT), 100.0, service="shop", pid=7, started=0.0)
    assert described["condition"] == "degraded"
    assert described["reasons"] == [
        "web: 1 of 2 workers is not started, a shortage of the supervisor: EMFILE; next try in 1 s",
        "web: 1 of 2 workers are not ready",
    ]
    (web,) = described["components"]
    (short,) = web["short"]
    assert not web["fatal"] and (short["position"], short["why"]) == (0, "EMFILE")
    assert 0 < short["next_try"] <= 0.1
