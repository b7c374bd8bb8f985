"""EpollSet and audit() against a model of the kernel's own rules, on real descriptors."""

from __future__ import annotations

import os
import select
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import pytest
from forked import holding, in_child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyforkfd as ff

FIRST = 300  # of the numbers that are opened, closed and opened again
NUMBERS = range(FIRST, FIRST + 4)
EVENTS = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT
IN_CHILD, HOLD = "fork and look", "fork and hold"


@dataclass(eq=False)
class File:
    """An open file; eventfds all have one inode."""

    inode: int
    held: bool = False  # by another process


@dataclass
class Model:
    """What is open here, what the kernel watches, what the set believes."""

    open: dict[int, File] = field(default_factory=dict)
    kernel: dict[tuple[int, File], tuple[int, bool]] = field(default_factory=dict)  # events, ours
    known: dict[int, tuple[File, int]] = field(default_factory=dict)

    def close(self, number: int) -> None:
        file = self.open.pop(number, None)
        if file is not None and file not in self.open.values() and not file.held:
            self.kernel = {key: value for key, value in self.kernel.items() if key[1] is not file}

    def put(self, number: int, file: File) -> None:
        if self.open.get(number) is not file:
            # dup2(2) opens before it closes.
            old, self.open[number] = self.open.get(number), file
            if old is not None and old not in self.open.values() and not old.held:
                self.kernel = {k: v for k, v in self.kernel.items() if k[1] is not old}

    def add(self, number: int, events: int) -> type[OSError] | None:
        file = self.open.get(number)
        if file is None:
            return OSError
        if (number, file) in self.kernel:
            return FileExistsError
        self.kernel[number, file] = (events, True)
        renamed = number in self.known
        if renamed:
            self.disown(number)
        self.known[number] = (file, events)
        if renamed:
            self.repair()
        return None

    def disown(self, number: int) -> None:
        """What the kernel has of it from now on is nobody's."""
        file, _ = self.known[number]
        if entry := self.kernel.get((number, file)):
            self.kernel[number, file] = (entry[0], False)

    def modify(self, number: int, events: int) -> type[OSError] | None:
        if number not in self.known:
            return FileNotFoundError
        file = self.open.get(number)
        if file is None:
            return OSError
        if (number, file) not in self.kernel:
            return FileNotFoundError
        # Whoever made the entry, it has our data from now on.
        if file is not self.known[number][0]:
            self.disown(number)
        self.kernel[number, file] = (events, True)
        self.known[number] = (self.known[number][0], events)
        return None

    def remove(self, number: int) -> type[OSError] | None:
        if number not in self.known:
            return FileNotFoundError
        file = self.open.get(number)
        if file is not None and (number, file) in self.kernel:
            del self.kernel[number, file]
            del self.known[number]
            return None
        self.disown(number)
        del self.known[number]
        self.repair()
        return OSError if file is None else FileNotFoundError

    def repair(self) -> None:
        if not all(ours for _, ours in self.kernel.values()):
            self.kernel = self.renewed()

    def renewed(self) -> dict[tuple[int, File], tuple[int, bool]]:
        """What a new instance watches."""
        return {
            (number, self.open[number]): (events, True)
            for number, (file, events) in self.known.items()
            if number in self.open and self.open[number].inode == file.inode
        }

    def drift(self) -> Counter[tuple[str, int]]:
        found: Counter[tuple[str, int]] = Counter()
        fine = set()
        for (number, file), (events, _) in self.kernel.items():
            if number not in self.open:
                found["closed", number] += 1
            elif self.open[number] is not file:
                found["replaced", number] += 1
            else:
                fine.add(number)
                if number not in self.known:
                    found["unknown", number] += 1
                elif self.known[number][1] != events:
                    found["events", number] += 1
        for number, (file, _) in self.known.items():
            if number not in fine and not found["closed", number] + found["replaced", number]:
                other = number in self.open and self.open[number].inode != file.inode
                found["replaced" if other else "unregistered", number] += 1
        return +found


class Real:
    """The same on the kernel."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.selector = stack.enter_context(ff.ForkSafeSelector())
        self.set = self.selector._set
        self.model = Model()
        self.forks = 0
        stack.callback(self.close_all)

    def close_all(self) -> None:
        for number in self.model.open:
            os.close(number)

    def run(self, step: tuple[str, int, int]) -> None:
        name, number, choice = step
        events, model = EVENTS[choice % 2], self.model
        if name == "open":
            fd = os.eventfd(0) if choice == 0 else self.half_of_a_pipe()
            os.dup2(fd, number, inheritable=False)
            model.put(number, File(os.fstat(number).st_ino))
            os.close(fd)
        elif name == "dup":
            source = FIRST + choice
            if source in model.open and source != number:
                os.dup2(source, number, inheritable=False)
                model.put(number, model.open[source])
        elif name == "close":
            if number in model.open:
                os.close(number)
            model.close(number)
        elif name in ("add", "modify", "remove"):
            arguments = (number,) if name == "remove" else (number, events)
            expected = getattr(model, name)(*arguments)
            try:
                getattr(self.set, name)(*arguments)
                happened = None
            except OSError as error:
                happened = type(error)
            assert happened is expected, step
        elif name == "behind":
            self.behind_its_back(number, events, choice)
        elif self.forks < 3:
            self.forks += 1
            self.fork(name)

    def half_of_a_pipe(self) -> int:
        reader, writer = os.pipe()
        os.close(writer)
        return reader

    def behind_its_back(self, number: int, events: int, choice: int) -> None:
        if (file := self.model.open.get(number)) is None:
            return
        copy = select.epoll.fromfd(os.dup(self.set.fileno()))
        with closing(copy):
            entry = self.model.kernel.get((number, file))
            if entry is None:
                copy.register(number, events)
                self.model.kernel[number, file] = (events, False)
            elif choice == 0:
                copy.unregister(number)
                del self.model.kernel[number, file]
            else:
                copy.modify(number, events)
                self.model.kernel[number, file] = (events, False)

    def fork(self, name: str) -> None:
        if name == HOLD:
            self.stack.enter_context(holding())
            for file in self.model.open.values():
                file.held = True
            return
        child = Model(dict(self.model.open), self.model.renewed(), dict(self.model.known))
        entries, drift = in_child(lambda: (self.entries(), self.drift()))
        assert entries == self.expected_entries(child)
        assert drift == child.drift()

    def entries(self) -> Counter[tuple[int, int, int]]:
        mask = select.EPOLLIN | select.EPOLLOUT
        found = ff.epoll_entries(self.selector)
        return Counter((w.number, w.inode, w.events & mask) for w in found)

    @staticmethod
    def expected_entries(model: Model) -> Counter[tuple[int, int, int]]:
        return Counter((n, file.inode, events) for (n, file), (events, _) in model.kernel.items())

    def drift(self) -> Counter[tuple[str, int]]:
        return Counter((d.kind, d.number) for d in ff.audit(self.selector))

    def check(self, step: object) -> None:
        assert self.entries() == self.expected_entries(self.model), step
        assert self.drift() == self.model.drift(), step


STEP = st.tuples(
    st.sampled_from(
        ["open", "open", "dup", "close", "add", "add", "modify", "remove", "behind", IN_CHILD, HOLD]
    ),
    st.sampled_from(NUMBERS),
    st.integers(0, 3),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=5, max_size=25))
def test_against_a_model(steps: list[tuple[str, int, int]]) -> None:
    with ExitStack() as stack:
        real = Real(stack)
        for step in steps:
            real.run(step)
            real.check(step)


@pytest.mark.parametrize("kind", ["closed", "replaced", "unknown", "events", "unregistered"])
def test_that_the_model_knows_each_kind(kind: str) -> None:
    """Steps that lead there: a model that never drifts would agree with anything."""
    n = FIRST
    made = [("open", n, 1), ("add", n, 0)]
    steps = {
        "closed": [*made, (HOLD, n, 0), ("close", n, 0)],
        "replaced": [*made, (HOLD, n, 0), ("open", n, 1)],
        "unknown": [("open", n, 1), ("behind", n, 0)],
        "events": [*made, ("behind", n, 1)],
        "unregistered": [*made, ("behind", n, 0)],
    }
    with ExitStack() as stack:
        real = Real(stack)
        for step in steps[kind]:
            real.run(step)
            real.check(step)
        assert real.model.drift() == {(kind, n): 1}
        assert real.drift() == {(kind, n): 1}
