"""The compared ways to run a short program to its end, with its output captured."""

from __future__ import annotations

import asyncio
import functools
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyforkfd as ff
from pyforkfd import subprocess as ff_subprocess


@dataclass(frozen=True, slots=True)
class Load:
    """A program and what is exchanged with it.

    Attributes:
        name: its name in the tables.
        argv: the program.
        input: data for its 0; None: none, it has ours.
        timeout: seconds that the caller would wait.
        output: bytes that it writes.
    """

    name: str
    argv: tuple[str, ...]
    output: int
    input: bytes | None = None
    timeout: float | None = None

    def check(self, output: bytes | None) -> None:
        """Raise an AssertionError unless the output has arrived."""
        if output is None or len(output) != self.output:
            raise AssertionError(f"{self.name}: {output!r:.100} is not {self.output} bytes")


PIPES = Load("pipes", ("/bin/echo", "word"), 5)
INPUT = Load("input", ("/bin/cat",), 1000, input=b"x" * 1000)
TIMEOUT = Load("time-out", ("/bin/echo", "word"), 5, timeout=60)
MEGABYTE = Load("1 MB", ("/usr/bin/head", "-c", "1048576", "/dev/zero"), 1 << 20)
LOADS = {load.name: load for load in (PIPES, INPUT, TIMEOUT, MEGABYTE)}

Blocking: TypeAlias = Callable[[Load], bytes | None]
Async: TypeAlias = Callable[[Load], Awaitable[bytes | None]]
Way: TypeAlias = Callable[[Load, int, int], None]
"""Runs the program, so many at once, so many times together."""


def _ff_run(load: Load) -> bytes | None:
    done = ff.run(load.argv, capture=True, input=load.input, timeout=load.timeout)
    return done.stdout


def _run_of(module: Any) -> Blocking:
    def run(load: Load) -> bytes | None:
        done = module.run(load.argv, capture_output=True, input=load.input, timeout=load.timeout)
        output: bytes = done.stdout
        return output

    return run


def _sh_run() -> Blocking:
    import sh

    @functools.cache
    def command(path: str) -> Any:
        return sh.Command(path)

    def run(load: Load) -> bytes | None:
        given = {"_in": load.input, "_timeout": load.timeout, "_return_cmd": True}
        done = command(load.argv[0])(*load.argv[1:], **given)
        output: bytes = done.stdout
        return output

    return run


def _create(create: Any) -> Async:
    pipe = asyncio.subprocess.PIPE

    async def run(load: Load) -> bytes | None:
        stdin = None if load.input is None else pipe
        child = await create(*load.argv, stdin=stdin, stdout=pipe, stderr=pipe)
        wait = child.communicate(load.input)
        output, _ = await (wait if load.timeout is None else asyncio.wait_for(wait, load.timeout))
        return output  # type: ignore[no-any-return]  # of two modules with one interface

    return run


def _threads(blocking: Blocking) -> Way:
    @functools.cache
    def pool(at_once: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(at_once)

    def work(load: Load, numbers: Iterator[int]) -> None:
        for _ in numbers:  # next() of an itertools.count is atomic, of a range too
            load.check(blocking(load))

    def way(load: Load, at_once: int, programs: int) -> None:
        if at_once == 1:
            work(load, iter(range(programs)))
            return
        numbers = iter(range(programs))
        for ended in [pool(at_once).submit(work, load, numbers) for _ in range(at_once)]:
            ended.result()

    return way


async def _work(run: Async, load: Load, numbers: Iterator[int]) -> None:
    for _ in numbers:
        load.check(await run(load))


def _asyncio(run: Async) -> Way:
    async def all_of(load: Load, at_once: int, programs: int) -> None:
        numbers = iter(range(programs))
        await asyncio.gather(*(_work(run, load, numbers) for _ in range(at_once)))

    return lambda *args: asyncio.run(all_of(*args))


def _trio(installed: Callable[[], AbstractContextManager[None]]) -> Way:
    import trio

    async def run(load: Load) -> bytes | None:
        with trio.fail_after(load.timeout or float("inf")):
            done = await trio.run_process(
                load.argv, capture_stdout=True, capture_stderr=True, stdin=load.input or b""
            )
        return done.stdout

    async def all_of(load: Load, at_once: int, programs: int) -> None:
        numbers = iter(range(programs))
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(_work, run, load, numbers)

    def way(load: Load, at_once: int, programs: int) -> None:
        with installed():
            trio.run(all_of, load, at_once, programs)

    return way


def _anyio() -> Async:
    import anyio

    async def run(load: Load) -> bytes | None:
        with anyio.fail_after(load.timeout):
            done = await anyio.run_process(load.argv, input=load.input)
        return done.stdout

    return run


THREADS_STOCK = "threads: subprocess.run"
THREADS_OURS = "threads: ff.run"
THREADS_DROP_IN = "threads: ff.subprocess.run"
SH = "threads: sh"  # it forks, and has threads of its own for each program
ASYNCIO_STOCK = "asyncio: stock"
ASYNCIO_OURS = "asyncio: ff"
TRIO = "trio: stock"
TRIO_OURS = "trio: install()"
OURS = {THREADS_OURS: THREADS_STOCK, THREADS_DROP_IN: THREADS_STOCK}
OURS |= {ASYNCIO_OURS: ASYNCIO_STOCK, TRIO_OURS: TRIO}
"""Each way of ours, and the stock one that it is compared with."""


def all_ways() -> dict[str, Way]:
    """Return every way whose library is installed, by its name."""
    makers: dict[str, Callable[[], Way]] = {
        THREADS_STOCK: lambda: _threads(_run_of(subprocess)),
        THREADS_OURS: lambda: _threads(_ff_run),
        THREADS_DROP_IN: lambda: _threads(_run_of(ff_subprocess)),
        SH: lambda: _threads(_sh_run()),
        ASYNCIO_STOCK: lambda: _asyncio(_create(asyncio.create_subprocess_exec)),
        ASYNCIO_OURS: lambda: _asyncio(_create(ff.create_subprocess_exec)),
        "asyncio: anyio": lambda: _asyncio(_anyio()),
        TRIO: lambda: _trio(nullcontext),
        TRIO_OURS: lambda: _trio(ff_subprocess.installed),
    }
    ways = {}
    for name, make in makers.items():
        try:
            ways[name] = make()
        except ImportError:
            continue
    return ways
