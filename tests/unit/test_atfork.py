"""The order of at-fork handlers, run by the interpreter's hooks without any fork."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyforkfd as ff
from pyforkfd import _core


def fork() -> None:
    """What the interpreter calls in the parent."""
    _core.run_before()
    _core.run_after_in_parent()


@contextmanager
def unraisable(caught: list[sys.UnraisableHookArgs]) -> Iterator[None]:
    before, sys.unraisablehook = sys.unraisablehook, caught.append
    try:
        yield
    finally:
        sys.unraisablehook = before


@dataclass
class Step:
    """What a handler does when it is called: changes of the list."""

    register: list[int] = field(default_factory=list)  # orders
    unregister: list[int] = field(default_factory=list)  # places among all, ever registered


STEPS = st.builds(
    Step,
    register=st.lists(st.integers(-2, 2), max_size=2),
    unregister=st.lists(st.integers(0, 12), max_size=2),
)


class World:
    """The registrations, beside a list that is kept sorted by hand."""

    def __init__(self, steps: Iterator[Step]) -> None:
        self.steps = steps
        self.all: list[ff.atfork.Registration] = []
        self.model: list[tuple[int, int]] = []  # (order, number), sorted
        self.said: list[tuple[str, int]] = []

    def add(self, order: int) -> None:
        number = len(self.all)

        def say(phase: str) -> Callable[[], None]:
            def handler() -> None:
                self.said.append((phase, number))
                self.change(next(self.steps, Step()))

            return handler

        self.all.append(
            ff.atfork.register(
                before=say("before"),
                after_in_parent=say("parent"),
                after_in_child=say("child"),
                order=order,
            )
        )
        self.model.append((order, number))
        self.model.sort()

    def change(self, step: Step) -> None:
        for order in step.register:
            if len(self.all) < 30:
                self.add(order)
        for place in step.unregister:
            if place < len(self.all):
                assert self.all[place].registered == (self._item(place) in self.model)
                self.all[place].unregister()
                if self._item(place) in self.model:
                    self.model.remove(self._item(place))

    def _item(self, place: int) -> tuple[int, int]:
        return self.all[place].order, place

    def run(self, phase: str, hook: Callable[[], None], expected: list[tuple[int, int]]) -> None:
        """All of `expected` that are there when their turn comes are called, in order."""
        self.said.clear()
        removed_before = {item for item in expected if item not in self.model}
        hook()
        called = [number for said, number in self.said if said == phase]
        numbers = [number for _, number in expected]
        assert [n for n in numbers if n in called] == called
        for item in expected:
            if item in removed_before:
                assert item[1] not in called
            elif item in self.model:
                assert item[1] in called


@given(
    st.lists(STEPS, max_size=5), st.lists(STEPS, max_size=30), st.sampled_from(["parent", "child"])
)
def test_order_is_that_of_a_sorted_list(first: list[Step], later: list[Step], phase: str) -> None:
    world = World(iter(later))
    hook = _core.run_after_in_parent if phase == "parent" else _core.run_after_in_child
    try:
        for step in first:
            world.change(step)
            start = list(world.model)
            world.run("before", _core.run_before, start[::-1])
            world.run(phase, hook, start)
    finally:
        for registration in world.all:
            registration.unregister()
    assert _core.at_fork_handlers() == []


def test_errors_name_the_handler_and_the_rest_run() -> None:
    ran: list[str] = []

    def fails() -> None:
        raise ValueError("of mine")

    caught: list[sys.UnraisableHookArgs] = []
    with ExitStack() as stack:
        stack.enter_context(ff.atfork.register(before=lambda: ran.append("outer")))
        failing = stack.enter_context(
            ff.atfork.register(before=fails, after_in_parent=lambda: ran.append("own"), name="mine")
        )
        stack.enter_context(unraisable(caught))
        fork()
        assert ran == ["outer", "own"]
        assert [(type(c.exc_value), c.object) for c in caught] == [(ValueError, failing)]
        assert repr(failing) == "<at-fork handler 'mine'>"
        (outer, mine) = ff.atfork.stats()
        caught.clear()
    assert (mine.name, mine.before.calls, mine.before.failures) == ("mine", 1, 1)
    assert mine.after_in_parent.calls == 1 and mine.after_in_child.calls == 0
    assert outer.before.failures == 0 and outer.after_in_parent.calls == 0
    assert outer.name == "test_errors_name_the_handler_and_the_rest_run.<locals>.<lambda>"
    assert 0 < mine.before.longest_ns <= mine.before.total_ns


def test_without_a_before_all_take_part() -> None:
    """An embedder may tell the interpreter of a fork only afterwards."""
    ran: list[str] = []
    with ff.atfork.register(after_in_child=lambda: ran.append("child")):
        _core.run_after_in_child()
    assert ran == ["child"]


def test_a_fork_within_a_handler_is_a_fork_of_its_own() -> None:
    ran: list[str] = []

    def forks() -> None:
        ran.append("before")
        if len(ran) == 1:
            fork()

    with ff.atfork.register(before=forks, after_in_parent=lambda: ran.append("parent")):
        fork()
    assert ran == ["before", "before", "parent", "parent"]


def test_what_register_refuses() -> None:
    with pytest.raises(TypeError, match="register: no function is given"):
        ff.atfork.register()
    with pytest.raises(TypeError, match="register: 3 cannot be called"):
        ff.atfork.register(before=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in_child: no action is given"):
        ff.atfork.in_child()
    with pytest.raises(ValueError, match="in_child: 1 is both redirected and closed"):
        ff.atfork.in_child(close=[1], redirect={1: 2})
    with pytest.raises(OSError, match="descriptor 999: duplicate: Bad file descriptor"):
        ff.atfork.in_child(redirect={1: 999})
    assert ff.atfork.stats() == []
