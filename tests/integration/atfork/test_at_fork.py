"""Which handlers run for which kind of fork, and what they can do."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import CLOSED, INHERITABLE, OPEN, beside_threads, build_library, os_fork, our_fork, state
from places import TESTS

import pyforkfd as ff
from pyforkfd import _core

HERE = TESTS
NUMBER = 40  # where in_child() puts something
LOOK = f"test -e /proc/self/fd/{NUMBER} && exit {INHERITABLE}; exit {CLOSED}"


@pytest.fixture(scope="module")
def library(programs: Path) -> Path:
    return build_library(programs)


@pytest.fixture
def ways(library: Path) -> dict[str, Callable[[], int]]:
    """Every way to start a child -> what the child has at NUMBER."""
    with_gil, without_gil = ctypes.PyDLL(str(library)), ctypes.CDLL(str(library))
    shell = ["/bin/sh", "-c", LOOK]

    def posix_spawn() -> int:
        pid = os.posix_spawn(shell[0], shell, {})
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def forkpty() -> int:
        pid, terminal = os.forkpty()
        if pid == 0:
            os._exit(state(NUMBER))
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        finally:
            os.close(terminal)

    def by_multiprocessing() -> int:
        process = multiprocessing.get_context("fork").Process(
            target=lambda: os._exit(state(NUMBER))
        )
        process.start()
        process.join()
        code = process.exitcode
        process.close()
        assert code is not None
        return code

    def by_subprocess(preexec: Callable[[], None] | None) -> Callable[[], int]:
        return lambda: (
            subprocess.run(shell, preexec_fn=preexec, close_fds=False, check=False).returncode
        )

    def spawn() -> int:
        with ff.spawn(shell, close_others=False) as child:
            return child.wait().code or 0

    return {
        "`ff.fork()`": lambda: our_fork(lambda: state(NUMBER)),
        "`os.fork()`": lambda: os_fork(lambda: state(NUMBER)),
        "`os.forkpty()`": forkpty,
        "multiprocessing's fork method": by_multiprocessing,
        "`subprocess` with `preexec_fn`": by_subprocess(lambda: None),
        "`fork()` in C, with the GIL": lambda: with_gil.fork_and_look(NUMBER),
        "`fork()` in C, without the GIL": lambda: without_gil.fork_and_look(NUMBER),
        "`vfork()` in C": lambda: without_gil.vfork_and_look(NUMBER),
        "`subprocess` without `preexec_fn`": by_subprocess(None),
        "`os.posix_spawn()`": posix_spawn,
        "`ff.spawn()`": spawn,
    }


def documented() -> dict[str, tuple[str, str]]:
    page = (HERE.parent / "docs" / "fork-safety.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (runs|nothing) \| (run|nothing) \|$", page, re.M)
    return {way: (functions, actions) for way, functions, actions in rows}


def test_what_runs_is_as_documented(ways: dict[str, Callable[[], int]], other_fd: int) -> None:
    seen: dict[str, tuple[str, str]] = {}
    assert state(NUMBER) == CLOSED
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with (
        open(reader, "rb", 0) as told,
        open(writer, "wb", 0) as tell,
        ff.atfork.register(
            before=lambda: tell.write(b"b"),
            after_in_parent=lambda: tell.write(b"p"),
            after_in_child=lambda: tell.write(b"c"),
        ),
        ff.atfork.in_child(redirect={NUMBER: other_fd}),
        beside_threads(),
    ):
        for way, start in ways.items():
            has = start()
            functions = {None: "nothing", b"": "nothing"}.get(said := told.read(), "runs")
            if functions == "runs":
                assert said is not None and sorted(said) == sorted(b"bpc"), way
            seen[way] = (functions, "run" if has == INHERITABLE else "nothing")
            assert state(NUMBER) == CLOSED
    assert seen == documented()


def test_actions_of_a_child(library: Path) -> None:
    look = ctypes.CDLL(str(library)).fork_and_look
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    try:
        os.set_inheritable(fds[1], True)
        with ff.atfork.in_child(close=fds[:1], cloexec=[fds[1]], name="tidy") as actions:
            assert [look(fd) for fd in fds] == [CLOSED, OPEN, OPEN]
            assert our_fork(lambda: [s.after_in_child.calls for s in ff.atfork.stats()] != [1]) == 0
            (found,) = ff.atfork.stats()
            assert (found.name, found.after_in_child.calls) == ("tidy", 0)
            assert [state(fd) for fd in fds] == [OPEN, INHERITABLE, OPEN]
            actions.unregister()
            assert not actions.registered and ff.atfork.stats() == []
            assert [look(fd) for fd in fds] == [OPEN, INHERITABLE, OPEN]
    finally:
        for fd in fds:
            os.close(fd)


def test_a_dropped_registration_stays(other_fd: int, library: Path) -> None:
    look = ctypes.CDLL(str(library)).fork_and_look
    ran: list[int] = []
    ff.atfork.register(before=lambda: ran.append(1), name="dropped")
    kept = ff.atfork.in_child(redirect={NUMBER: other_fd})
    undo = kept._undo
    del kept
    gc.collect()
    assert look(NUMBER) == INHERITABLE
    assert our_fork(lambda: 0) == 0 and ran == [1]
    undo.pop()()
    ((registration, *_),) = _core.at_fork_handlers()
    registration.unregister()


def test_the_source_of_a_redirection_may_be_closed(library: Path) -> None:
    fd = os.memfd_create("gone soon")
    with ff.atfork.in_child(redirect={NUMBER: fd}):
        os.close(fd)
        assert (
            os_fork(lambda: os.readlink(f"/proc/self/fd/{NUMBER}") != "/memfd:gone soon (deleted)")
            == 0
        )


@pytest.mark.parametrize("fork", [our_fork, os_fork])
def test_handlers_change_the_list_as_they_run(fork: Callable[[Callable[[], object]], int]) -> None:
    said: list[str] = []
    made: list[ff.atfork.Registration] = []

    def before() -> None:
        said.append("before")
        victim.unregister()
        made.append(
            ff.atfork.register(
                before=lambda: said.append("new"), after_in_parent=lambda: said.append("new after")
            )
        )

    victim = ff.atfork.register(before=lambda: said.append("victim"))
    with ff.atfork.register(before=before, order=1):
        assert fork(lambda: said != ["before"]) == 0
        assert said == ["before"]
        said.clear()
        assert fork(lambda: 0) == 0
    assert said == ["before", "new", "new after"]
    for registration in made:
        registration.unregister()


def test_threads_register_while_another_forks() -> None:
    """One that sits in a handler keeps nobody from registering."""
    entered, leave = threading.Event(), threading.Event()

    def before() -> None:
        entered.set()
        leave.wait()

    codes: list[int] = []
    with ff.atfork.register(before=before):
        thread = threading.Thread(target=lambda: codes.append(our_fork(lambda: 0)))
        thread.start()
        entered.wait()
        ran: list[str] = []
        late = ff.atfork.register(
            before=lambda: ran.append("b"), after_in_parent=lambda: ran.append("p")
        )
        leave.set()
        thread.join()
        assert codes == [0] and ran == []
        late.unregister()


def test_the_default_hook_names_the_handler() -> None:
    script = (
        "import os, pyforkfd as ff\n"
        "ff.atfork.register(after_in_parent=lambda: 1 / 0, name='metrics')\n"
        "child = ff.fork()\n"
        "if child is None: os._exit(0)\n"
        "child.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )
    assert "at-fork handler 'metrics'" in done.stderr and "ZeroDivisionError" in done.stderr
