"""diff(): tables that were never any process's, against a model of one."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import pyforkfd as ff


def row(number: int, *, inode: int = 1, kind: str = "file", **others: Any) -> ff.FdInfo:
    made = ff.FdInfo(
        number=number,
        kind=kind,
        target=f"/{inode}",
        cloexec=True,
        flags=os.O_RDONLY,
        offset=0,
        device=1,
        inode=inode,
        details=None,
        open_file=(number,),
    )
    return dataclasses.replace(made, **others)


def table(*rows: ff.FdInfo) -> ff.FdTable:
    return ff.FdTable({r.number: r for r in rows}, pid=1)


def test_nothing() -> None:
    found = ff.diff(table(row(3)), table(row(3)))
    assert found == ff.FdDiff(closed=(), opened=(), changed=())
    assert not found


def test_closed_opened_and_changed() -> None:
    before = table(row(3), row(4, inode=2), row(5, inode=3))
    after = table(row(4, inode=2), row(5, inode=3, cloexec=False), row(6, inode=4))
    found = ff.diff(before, after)
    assert found and found.closed == (row(3),) and found.opened == (row(6, inode=4),)
    assert found.changed == ((row(5, inode=3), row(5, inode=3, cloexec=False)),)


def test_a_number_that_is_another_file_was_closed_and_opened() -> None:
    for other in (
        row(3, inode=2),
        row(3, kind="socket"),
        row(3, device=2),
        row(3, flags=os.O_WRONLY),
        row(3, flags=os.O_PATH),
    ):
        assert ff.diff(table(row(3)), table(other)) == ff.FdDiff(
            closed=(row(3),), opened=(other,), changed=()
        )


def test_eventfds_are_told_apart_by_id() -> None:
    def eventfd(number: int, count: int) -> ff.FdInfo:
        details = ff.EventfdDetails(count=count, id=number, semaphore=False)
        return row(3, kind="eventfd", details=details)

    assert ff.diff(table(eventfd(1, 0)), table(eventfd(1, 9))).changed
    assert ff.diff(table(eventfd(1, 0)), table(eventfd(2, 0))).opened


def test_what_is_not_a_change_of_the_descriptor() -> None:
    def timer(left: int, ticks: int) -> ff.FdInfo:
        return row(
            3,
            kind="timerfd",
            details=ff.TimerfdDetails(clock=1, ticks=ticks, remaining_ns=left, interval_ns=0),
        )

    assert not ff.diff(table(timer(9, 0)), table(timer(8, 0))), "time goes on"
    assert ff.diff(table(timer(9, 0)), table(timer(0, 1))).changed
    found = ff.diff(table(row(3)), table(row(3, open_file=(3, 7)), row(7, open_file=(3, 7))))
    assert (len(found.opened), found.changed) == (1, ()), "7 is new, 3 is what it was"


@dataclass
class Open:
    """A descriptor of the model; `life` is never used twice."""

    life: int
    cloexec: bool = True
    offset: int = 0


OPERATION = st.tuples(
    st.sampled_from(["open", "close", "mark", "seek"]), st.integers(0, 5), st.integers(0, 2)
)


class Model:
    """A descriptor table that is told what is done to it."""

    def __init__(self) -> None:
        self.open: dict[int, Open] = {}
        self.lives = 0

    def run(self, operation: tuple[str, int, int]) -> None:
        name, number, value = operation
        if name == "open":
            self.lives += 1
            self.open[number] = Open(self.lives)
        elif name == "close":
            self.open.pop(number, None)
        elif held := self.open.get(number):
            if name == "mark":
                held.cloexec = bool(value)
            else:
                held.offset = value

    def table(self) -> ff.FdTable:
        return table(
            *(
                row(n, inode=o.life, cloexec=o.cloexec, offset=o.offset)
                for n, o in self.open.items()
            )
        )


@given(st.lists(OPERATION), st.lists(OPERATION))
def test_against_a_model(
    first: list[tuple[str, int, int]], then: list[tuple[str, int, int]]
) -> None:
    model = Model()
    for operation in first:
        model.run(operation)
    before = model.table()
    old = {n: dataclasses.replace(o) for n, o in model.open.items()}
    for operation in then:
        model.run(operation)
    new = model.open
    found = ff.diff(before, model.table())

    kept = {n for n in old if n in new and new[n].life == old[n].life}
    assert [r.number for r in found.closed] == sorted(old.keys() - kept)
    assert [r.number for r in found.opened] == sorted(new.keys() - kept)
    assert [r.number for r, _ in found.changed] == sorted(n for n in kept if old[n] != new[n])
    assert bool(found) == (old != new)
    back = ff.diff(model.table(), before)
    assert (back.closed, back.opened) == (found.opened, found.closed)
