"""Sysmon sees what it is for: a real GIL that is held, a blocked loop, descriptors that leak."""

from __future__ import annotations

import asyncio
import ctypes
import os
import queue
import select
import selectors
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from forked import holding
from leaks import gone
from lines import parse_all

import pyforkfd as ff
from pyforkfd import _core

Event = TypeVar("Event", ff.FdGrowth, ff.GilStalled, ff.LoopStalled, ff.BoundExceeded)
WITH_GIL = ctypes.PyDLL(None)  # its functions keep the GIL
PATIENCE = 60  # seconds, until a test that waits for nothing fails


class Events:
    """What a monitor told, in order."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[ff.SysmonEvent] = queue.SimpleQueue()

    def __call__(self, event: ff.SysmonEvent) -> None:
        self._told.put(event)

    def wait_for(self, kind: type[Event]) -> Event:
        while True:
            event = self._told.get(timeout=PATIENCE)
            if isinstance(event, kind):
                return event


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def hold_the_gil_until_something_is_written(reader: int) -> bytes:
    pollfd = ctypes.create_string_buffer(struct.pack("ihh", reader, select.POLLIN, 0))
    assert WITH_GIL.poll(pollfd, 1, PATIENCE * 1000) == 1, "nothing came"
    return os.read(reader, 1)


def run(code: str, settings: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore::DeprecationWarning", "-c", code],
        env={**os.environ, "FORKFD_DEBUG": settings},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is no GIL to hold"
)
def test_a_gil_that_is_held_is_dumped_while_it_is_and_told_after(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    events = Events()
    with ff.Sysmon(events, gil_stall=0.2, dump=writer):
        # Only the dump itself, made without the GIL, ends this call.
        first = hold_the_gil_until_something_is_written(reader)
        stalled = events.wait_for(ff.GilStalled)
    assert stalled.seconds >= 0.2
    assert str(stalled).startswith("the GIL did not move for ")
    dump = (first + os.read(reader, 65536)).decode()
    assert "in hold_the_gil_until_something_is_written" in dump
    assert "in _help" in dump, "of all threads"


def test_a_blocked_loop_is_told_with_its_stack(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    told: list[ff.LoopStalled] = []

    def end_the_block(event: ff.SysmonEvent) -> None:
        if isinstance(event, ff.LoopStalled):
            told.append(event)
            os.write(writer, b"x")

    def block() -> None:
        os.read(reader, 1)

    async def main() -> asyncio.AbstractEventLoop:
        monitor.watch_loop()
        await asyncio.sleep(1)  # an idle loop is not a blocked one
        block()
        return asyncio.get_running_loop()

    with ff.Sysmon(end_the_block, loop_stall=0.5) as monitor:
        loop = asyncio.run(main())
    assert len(told) == 1
    assert told[0].loop is loop
    assert told[0].seconds >= 0.5
    names = [frame.name for frame in told[0].stack]
    assert names.index("main") + 1 == names.index("block") == len(names) - 1
    assert "os.read(reader, 1)" in str(told[0])


def test_several_loops_and_one_that_is_no_longer_watched(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    told: list[ff.SysmonEvent] = []
    ready = threading.Barrier(3)

    def note(event: ff.SysmonEvent) -> None:
        told.append(event)
        os.write(writer, b"xx")

    async def main(watched: bool) -> None:
        monitor.watch_loop()
        monitor.watch_loop()  # once is enough
        if not watched:
            monitor.unwatch_loop()
        ready.wait()
        os.read(reader, 1)

    with ff.Sysmon(note, gil_stall=None, fd_growth=None, loop_stall=0.1) as monitor:
        threads = [
            threading.Thread(target=asyncio.run, args=(main(watched),)) for watched in (False, True)
        ]
        for thread in threads:
            thread.start()
        ready.wait()
        for thread in threads:
            thread.join()
    assert [type(event) for event in told] == [ff.LoopStalled]


def test_no_more_loops_than_there_is_room_for() -> None:
    loops = [asyncio.new_event_loop() for _ in range(17)]
    try:
        monitor = ff.Sysmon()
        for loop in loops[:16]:
            monitor.watch_loop(loop)
        with pytest.raises(RuntimeError, match="16 loops"):
            monitor.watch_loop(loops[16])
        monitor.unwatch_loop(loops[3])
        monitor.watch_loop(loops[16])
        with pytest.raises(RuntimeError, match="no running event loop"):
            monitor.watch_loop()
    finally:
        for loop in loops:
            loop.close()


def test_descriptors_that_leak_are_told() -> None:
    told = threading.Event()
    events: list[ff.SysmonEvent] = []

    def note(event: ff.SysmonEvent) -> None:
        events.append(event)
        told.set()

    leaked: list[int] = []
    try:
        with ff.Sysmon(note, gil_stall=None, loop_stall=None, fd_growth=20):
            while not told.wait(0.01) and len(leaked) < 900:
                leaked.append(os.open("/dev/null", os.O_RDONLY))
            assert told.wait(PATIENCE)
    finally:
        for fd in leaked:
            os.close(fd)
    growth = events[0]
    assert isinstance(growth, ff.FdGrowth)
    assert growth.gained / growth.seconds > 20
    assert growth.descriptors > growth.gained
    assert "descriptors are open" in str(growth)


def test_a_gauge_above_its_bound_is_told() -> None:
    events = Events()
    sleepers = [ff.spawn(["sleep", "60"]) for _ in range(3)]
    try:
        with ff.Sysmon(events, bounds={"children": 2, "descriptors": 100000}):
            event = events.wait_for(ff.BoundExceeded)
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
            sleeper.close()
    assert (event.gauge, event.bound) == ("children", 2)
    assert event.value >= 3
    assert str(event) == f"children: {event.value} is more than 2"


def test_an_epoll_that_drifts_is_told(pipe: tuple[int, int]) -> None:
    """A descriptor is closed here while a child still has the open file."""
    events = Events()
    gauge = _core.gauges().index("epoll_drift")
    with ff.ForkSafeSelector() as selector:
        one, other = os.pipe()
        selector.register(pipe[0], selectors.EVENT_READ)
        selector.register(one, selectors.EVENT_READ)
        with holding():
            assert _core.read_gauge(gauge) == 0
            os.close(one)
            assert [drift.kind for drift in ff.audit(selector)] == ["closed"]
            with ff.Sysmon(events, bounds={"epoll_drift": 0}):
                event = events.wait_for(ff.BoundExceeded)
            selector.unregister(one)
            assert ff.audit(selector) == []
            assert _core.read_gauge(gauge) == 0
        os.close(other)
        # And one that the kernel has forgotten, and one that it was told of by somebody else.
        selector.register(one := os.eventfd(0), selectors.EVENT_READ)
        os.close(one)
        assert _core.read_gauge(gauge) == 1
        selector.unregister(one)
        with select.epoll.fromfd(os.dup(selector.fileno())) as raw:
            raw.register(pipe[1], select.EPOLLOUT)
            raw.unregister(pipe[0])  # as many as before, but others
        assert _core.read_gauge(gauge) == 1
    assert _core.read_gauge(gauge) == 0
    assert (event.gauge, event.value, event.bound) == ("epoll_drift", 1, 0)


def test_what_a_callback_raises_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: queue.SimpleQueue[object] = queue.SimpleQueue()
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.put(args.exc_value))
    error = LookupError("of the callback")

    def note(event: ff.SysmonEvent) -> None:
        raise error

    with ff.Sysmon(note, bounds={"threads": 1}):
        assert raised.get(timeout=PATIENCE) is error


def test_it_starts_and_stops_as_often_as_wanted_also_from_its_callback() -> None:
    stopped = threading.Event()

    def stop(event: ff.SysmonEvent) -> None:
        monitor.stop()
        stopped.set()

    monitor = ff.Sysmon(stop, bounds={"threads": 1})
    for _ in range(3):
        stopped.clear()
        monitor.start()
        monitor.start()
        assert stopped.wait(PATIENCE)
        monitor.stop()
        monitor.stop()
    with ff.Sysmon(), ff.Sysmon():  # several at once
        pass


def test_what_cannot_be_asked_for() -> None:
    for value in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="interval"):
            ff.Sysmon(interval=value)
        with pytest.raises(ValueError, match="gil_stall"):
            ff.Sysmon(gil_stall=value)
        with pytest.raises(ValueError, match="loop_stall"):
            ff.Sysmon(loop_stall=value)
        with pytest.raises(ValueError, match="fd_growth"):
            ff.Sysmon(fd_growth=value)
        with pytest.raises(ValueError, match="summary"):
            ff.Sysmon(summary=value)
    with pytest.raises(ValueError, match="no gauge 'colour'; there are descriptors, threads"):
        ff.Sysmon(bounds={"colour": 1})
    with pytest.raises(ValueError, match="threads=-1"):
        ff.Sysmon(bounds={"threads": -1})
    with pytest.raises(ValueError, match="signal"), ff.Sysmon(dump=2, dump_signal=9):
        pass


def test_a_summary_tells_of_loops_too(pipe: tuple[int, int]) -> None:
    code = """
import asyncio, sys, time
import pyforkfd as ff
async def main():
    monitor.watch_loop()
    while True:
        await asyncio.sleep(0.01)
        with open(sys.argv[1]) as log:
            if "loop_ms=" in log.read():
                return
with ff.Sysmon() as monitor:
    asyncio.run(main())
"""
    log = os.memfd_create("log")
    try:
        name = f"/proc/{os.getpid()}/fd/{log}"
        run(code.replace("sys.argv[1]", repr(name)), f"sched=20,file={name}")
        lines = parse_all(Path(name).read_text(), "sched")
    finally:
        os.close(log)
    assert lines[-1]["loop_ms"].isdecimal() or lines[-2]["loop_ms"].isdecimal()


THREADS = "len(os.listdir('/proc/self/task'))"


def test_a_child_of_fork_has_none_unless_it_is_wanted() -> None:
    code = f"""
import os, threading, pyforkfd as ff
for restart in (False, True):
    told = threading.Event()
    with ff.Sysmon(lambda e: told.set(), bounds={{"descriptors": 1}}, restart_after_fork=restart):
        assert told.wait(30)
        told.clear()
        pid = os.fork()
        if pid == 0:
            if restart:
                assert told.wait(30)
            assert {THREADS} == (3 if restart else 1), {THREADS}
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
"""
    run(code)


def test_forks_at_any_moment_leave_nothing_locked() -> None:
    code = """
import os, threading, pyforkfd as ff
seen = []
with ff.Sysmon(seen.append, interval=0.0005, gil_stall=0.001, fd_growth=1, summary=0.001,
               bounds={"children": 1}, dump=os.open("/dev/null", os.O_WRONLY)):
    for _ in range(200):
        pid = os.fork()
        if pid == 0:
            with ff.Sysmon(seen.append):
                assert ff.spawn(["/bin/true"]).wait(timeout=60).success
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
"""
    run(code)


@pytest.mark.parametrize("ending", ["pass", "1 / 0", "os.kill(os.getpid(), signal.SIGINT)"])
def test_the_end_of_the_interpreter_waits_for_nothing(ending: str) -> None:
    code = f"""
import os, signal, threading, time, pyforkfd as ff
called = threading.Event()
def for_ever(event):
    called.set()
    time.sleep(3600)
ff.Sysmon(for_ever, bounds={{"threads": 1}}).start()
ff.Sysmon(interval=0.001, gil_stall=0.001).start()
called.wait()
try:
    {ending}
except (ZeroDivisionError, KeyboardInterrupt):
    pass
"""
    assert run(code) == ""


def test_its_threads_have_names_and_the_native_one_takes_no_signal() -> None:
    def named() -> dict[str, Path]:
        tasks = Path("/proc/self/task").iterdir()
        return {(task / "comm").read_text().strip(): task for task in tasks}

    with ff.Sysmon():
        assert gone(lambda: {"forkfd-sysmon", "forkfd-events"} <= named().keys())
        status = (named()["forkfd-sysmon"] / "status").read_text()
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk:"))
    assert int(blocked.split()[1], 16) | 1 << 8 | 1 << 18 == 2**64 - 1  # but SIGKILL, SIGSTOP
