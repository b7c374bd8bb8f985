"""The memory guard as pure code: samples in, orders out, no clock and no worker."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyforkfd.supervisor.health._memory_guard import Guard, Order, Orders
from pyforkfd.supervisor.spec._limits import MemoryGuard

LIMITED: tuple[Order, ...] = ("stop_accepting", "collect", "buffer_logs")
FREE: tuple[Order, ...] = ("resume_accepting", "flush_logs")


def orders_for(guard: Guard, now: float, *used: int) -> dict[int, tuple[str, ...]]:
    return {each.worker_id: each.orders for each in guard.sample(dict(enumerate(used)), now)}


def test_above_for_long_enough_and_below_again() -> None:
    guard = Guard(MemoryGuard(high=100, low=50))
    assert orders_for(guard, 0, 99, 0) == {}
    assert orders_for(guard, 1, 100, 0) == {}
    assert orders_for(guard, 30.9, 100, 0) == {}
    assert orders_for(guard, 31, 100, 0) == {0: LIMITED}
    assert orders_for(guard, 32, 100, 0) == {}
    assert orders_for(guard, 40, 50, 0) == {}, "between the bounds nothing changes"
    assert orders_for(guard, 41, 49, 0) == {0: FREE}
    assert orders_for(guard, 42, 49, 0) == {}


def test_a_break_starts_the_time_anew() -> None:
    guard = Guard(MemoryGuard(high=100))
    assert orders_for(guard, 0, 100, 0) == {}
    assert orders_for(guard, 29, 99, 0) == {}
    assert orders_for(guard, 30, 100, 0) == {}
    assert orders_for(guard, 59, 100, 0) == {}
    assert orders_for(guard, 60, 100, 0) == {0: LIMITED}


def test_a_worker_under_pressure_is_limited_at_once_and_until_the_pressure_ends() -> None:
    guard = Guard(MemoryGuard(high=100, low=50, seconds=10))
    assert orders_for(guard, 0, 10, 0) == {}
    guard.pressure(0, 1)
    assert orders_for(guard, 1, 10, 0) == {0: LIMITED}
    guard.pressure(0, 3)
    assert orders_for(guard, 10, 10, 0) == {}
    assert orders_for(guard, 12.9, 10, 0) == {0: ("collect",)}
    assert orders_for(guard, 13, 10, 0) == {0: FREE}


def test_pressure_is_reported_once_in_a_window_and_lasts_for_two() -> None:
    guard = Guard(MemoryGuard(high=100, seconds=0, recycle_after=None))
    guard.pressure(0, 0)
    assert orders_for(guard, 0, 10, 0)[0] == LIMITED
    assert "resume_accepting" not in orders_for(guard, 2.1, 10, 0)[0]
    assert orders_for(guard, 4, 10, 0) == {0: FREE}


def test_collects_again_while_it_is_limited() -> None:
    guard = Guard(MemoryGuard(high=100, seconds=10, recycle_after=None))
    orders_for(guard, 0, 100, 0)
    assert orders_for(guard, 10, 100, 0) == {0: LIMITED}
    assert orders_for(guard, 19, 90, 0) == {}
    assert orders_for(guard, 20, 90, 0) == {0: ("collect",)}


def test_the_largest_stop_and_half_go_on() -> None:
    guard = Guard(MemoryGuard(high=100, seconds=0))
    sent = orders_for(guard, 0, 101, 104, 103, 102, 105)
    assert {n for n, orders in sent.items() if "stop_accepting" in orders} == {4, 1}
    assert all(orders[-2:] == ("collect", "buffer_logs") for orders in sent.values())


def test_a_share_is_rounded_up_but_not_by_a_rounding_error() -> None:
    assert 0.07 * 100 > 7
    guard = Guard(MemoryGuard(high=1, seconds=0, keep_accepting=0.07))
    assert sum(orders == LIMITED for orders in orders_for(guard, 0, *[2] * 100).values()) == 93
    guard = Guard(MemoryGuard(high=1, seconds=0, keep_accepting=0.07))
    assert sum(orders == LIMITED for orders in orders_for(guard, 0, *[2] * 15).values()) == 13


def test_the_next_stops_when_one_resumes() -> None:
    guard = Guard(MemoryGuard(high=100, low=50, seconds=10))
    orders_for(guard, 0, 200, 150)
    assert orders_for(guard, 10, 200, 150) == {0: LIMITED, 1: ("collect", "buffer_logs")}
    assert orders_for(guard, 11, 10, 150) == {0: FREE, 1: ("stop_accepting",)}


def test_only_where_it_is_allowed_does_a_single_worker_stop() -> None:
    assert orders_for(Guard(MemoryGuard(high=1, seconds=0)), 0, 2) == {
        0: ("collect", "buffer_logs")
    }
    assert orders_for(Guard(MemoryGuard(high=1, seconds=0, keep_accepting=0)), 0, 2) == {0: LIMITED}


def test_a_stopped_worker_resumes_when_the_others_have_ended() -> None:
    guard = Guard(MemoryGuard(high=100, seconds=10))
    guard.sample({7: 200, 8: 10}, 0)
    assert guard.sample({7: 200, 8: 10}, 10) == [Orders(7, LIMITED)]
    assert guard.sample({7: 200}, 11) == [Orders(7, ("resume_accepting",))]


def test_an_ended_worker_is_forgotten() -> None:
    guard = Guard(MemoryGuard(high=100, seconds=10))
    guard.sample({7: 200, 8: 10}, 0)
    guard.sample({8: 10}, 5)
    assert guard.sample({7: 200, 8: 10}, 11) == []


def test_replaced_at_the_soft_limit_once() -> None:
    guard = Guard(MemoryGuard(high=100, recycle=150))
    assert orders_for(guard, 0, 149) == {}
    assert orders_for(guard, 1, 150) == {0: ("recycle",)}
    assert orders_for(guard, 2, 151) == {}


def test_replaced_when_nothing_helps() -> None:
    guard = Guard(MemoryGuard(high=100, seconds=1000, recycle_after=60))
    orders_for(guard, 0, 100)
    orders_for(guard, 1000, 100)
    assert orders_for(guard, 1059, 90) == {}
    assert orders_for(guard, 1060, 90) == {0: ("recycle",)}


CONFIGS = st.builds(
    MemoryGuard,
    high=st.just(100),
    low=st.one_of(st.none(), st.integers(1, 99)),
    seconds=st.sampled_from([0.0, 2.0, 5.0]),
    keep_accepting=st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]),
    recycle=st.one_of(st.none(), st.integers(100, 200)),
    recycle_after=st.one_of(st.none(), st.sampled_from([0.0, 7.0])),
)
SAMPLES = st.lists(
    st.tuples(
        st.floats(0, 4, allow_nan=False),
        st.dictionaries(st.integers(0, 5), st.integers(0, 250), max_size=6),
    ),
    max_size=40,
)


@dataclass
class Model:
    """One worker: its state by the orders that it got, and its samples."""

    accepts: bool = True
    buffers: bool = False
    recycled: bool = False
    history: list[tuple[float, int]] = field(default_factory=list)


@given(CONFIGS, SAMPLES)
def test_invariants(config: MemoryGuard, samples: list[tuple[float, dict[int, int]]]) -> None:
    guard, now = Guard(config), 0.0
    models: dict[int, Model] = {}
    for pause, used in samples:
        now += pause
        models = {number: models.get(number, Model()) for number in used}
        for number, amount in used.items():
            models[number].history.append((now, amount))
        for order in guard.sample(used, now):
            obey(models[order.worker_id], order.orders, config, now)
        accepting = sum(model.accepts for model in models.values())
        assert accepting >= math.ceil(config.keep_accepting * len(models) - 1e-9)
        for number, model in models.items():
            if used[number] < config.resume_below:
                assert model.accepts and not model.buffers
            if above_for_long(model, config, now):
                assert model.buffers


def obey(model: Model, orders: tuple[str, ...], config: MemoryGuard, now: float) -> None:
    """Obey orders; one that changes nothing, or has no cause, is a fault."""
    assert len(set(orders)) == len(orders)
    for order in orders:
        match order:
            case "stop_accepting":
                assert model.accepts and model.history[-1][1] >= config.high
                model.accepts = False
            case "resume_accepting":
                assert not model.accepts
                model.accepts = True
            case "buffer_logs":
                assert not model.buffers and above_for_long(model, config, now)
                model.buffers = True
            case "flush_logs":
                assert model.buffers and model.history[-1][1] < config.resume_below
                model.buffers = False
            case "recycle":
                assert not model.recycled
                assert config.recycle is not None or config.recycle_after is not None
                model.recycled = True


def above_for_long(model: Model, config: MemoryGuard, now: float) -> bool:
    """Return whether the samples were above the bound for long enough, without a break."""
    since = None
    for when, amount in model.history:
        since = None if amount < config.high else when if since is None else since
    return since is not None and now - since >= config.seconds


@pytest.mark.parametrize(
    ("options", "errors"),
    [
        ({"high": 0}, ["high: 0 is out of range; write bytes, above 0"]),
        ({"high": True}, ["high: true is not a whole number; write bytes"]),
        (
            {"high": 10, "low": 10},
            ["low: 10 is not below high, 10: a worker would stop and resume in turn; write less"],
        ),
        (
            {"high": 10, "recycle": 9},
            ["recycle: 9 is below high, 10, and the guard would never act; write more"],
        ),
        (
            {"high": -1, "seconds": -1.0, "keep_accepting": 2.0, "recycle_after": math.nan},
            [
                "high: -1 is out of range; write bytes, above 0",
                "seconds: -1.0 is out of range; write seconds, 0 or more",
                "keep_accepting: 2.0 is out of range; write a number, from 0 to 1",
                "recycle_after: nan is out of range; write seconds, 0 or more",
            ],
        ),
    ],
)
def test_all_errors_of_the_options_are_reported(options: dict[str, Any], errors: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        MemoryGuard(**options)
    assert str(caught.value).splitlines() == errors
