"""run(): a program to its end, with its output, and all it started gone when time is up."""

from __future__ import annotations

import dataclasses
import math
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, AnyStr, Generic, Literal, Unpack, overload

from ._checks import MAX_INT, as_fd, flag, integer, pairs, seconds, show
from ._options import CommandOptions, list_options, names, refuse_unknown
from ._process import Process
from ._spawn import Command
from ._types import (
    DEVNULL,
    PATHS,
    PIPE,
    PIPE_FROM_CHILD,
    PIPE_TO_CHILD,
    ExitStatus,
    FdSource,
    HasFileno,
    Special,
    StrPath,
)

_CHUNK = 65536  # what a pipe holds
_PIPES = (PIPE, PIPE_TO_CHILD, PIPE_FROM_CHILD)
_KNOWN = names(CommandOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(Generic[AnyStr]):
    """What :func:`run` has to tell of a program that has ended.

    Attributes:
        args: what was executed.
        status: how it ended.
        stdout: what it wrote to its 1, None where that was not captured.
        stderr: what it wrote to its 2, None where that was not captured.
    """

    args: Sequence[StrPath]
    status: ExitStatus
    stdout: AnyStr | None
    stderr: AnyStr | None

    @property
    def returncode(self) -> int | None:
        """As subprocess has it: the exit code, or minus the signal; None if lost."""
        return self.status.returncode


class RunError(Exception):
    """A program ran, but not as it should; it has ended.

    Attributes:
        result: how it ended, and its output so far.
    """

    result: Completed[Any]

    def __init__(self, text: str, result: Completed[Any]) -> None:
        super().__init__(text)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.result)


class ExitError(RunError):
    """It did not end with code 0, and ``check`` was asked for."""


class RunTimeoutError(RunError, TimeoutError):
    """The time was up; it and all it had started were killed."""


class OutputLimitError(RunError):
    """It wrote more than ``max_output``; it and all it had started were killed."""


@overload
def run(
    command: Command | Sequence[StrPath],
    *,
    input: bytes | None = None,
    capture: bool = False,
    timeout: float | None = None,
    check: bool = False,
    text: Literal[False] = False,
    max_output: int | None = None,
    **options: Unpack[CommandOptions],
) -> Completed[bytes]: ...
@overload
def run(
    command: Command | Sequence[StrPath],
    *,
    input: str | None = None,
    capture: bool = False,
    timeout: float | None = None,
    check: bool = False,
    text: Literal[True],
    max_output: int | None = None,
    **options: Unpack[CommandOptions],
) -> Completed[str]: ...
def run(
    command: Command | Sequence[StrPath],
    *,
    input: bytes | str | None = None,
    capture: bool = False,
    timeout: float | None = None,
    check: bool = False,
    text: bool = False,
    max_output: int | None = None,
    **options: Unpack[CommandOptions],
) -> Completed[Any]:
    """Run a program to its end, and return how it ended and what it wrote.

    It leads a process group of its own (a session with ``new_session``).  When the time is
    up, the output too long, or the wait interrupted (Ctrl-C), that group is killed; and the
    cgroup, by cgroup.kill (Linux 5.14), where ``cgroup`` is given and was empty before the
    start: no process escapes from that.  Its 0 is ``input``, or /dev/null where ``fds`` does
    not name 0: a group in the background may not read the terminal.

    Args:
        command: a :class:`Command`, or arguments as it takes them.
        input: written to its 0; bytes, or str with ``text``.
        capture: collect what it writes to 1 and 2, unless ``fds`` names them.  What ``fds``
            makes a PIPE of 1 and 2 is collected in any case.
        timeout: seconds until it must have ended and its output with it.
        check: a status that is not exit code 0 is an error.
        text: input and output are str: UTF-8, where bytes that are none become surrogates
            (os.fsdecode has the same), so that nothing is lost and nothing fails.
        max_output: bytes of 1 and 2 together that are read; None: as memory allows.
        options: as :class:`Command`; they replace those of a Command given.

    Returns:
        A frozen result.

    Raises:
        ExitError: ``check``, and it did not end with code 0.
        RunTimeoutError: a TimeoutError.  The output so far is in its ``result``.
        OutputLimitError: the first ``max_output`` bytes are in its ``result``.
        SpawnError: it could not be started.
        TypeError, ValueError, LookupError: a value makes no sense; nothing was started.
    """
    if not options.keys() <= _KNOWN:
        refuse_unknown("run", options, _KNOWN)
    for name, value in (("capture", capture), ("check", check), ("text", text)):
        flag(value, name)
    limit = None if timeout is None else seconds(timeout, "timeout")
    if max_output is not None:
        max_output = integer(max_output, "max_output", 0, sys.maxsize, "a number of bytes")
    exchange = _Exchange(_bytes(input), limit, max_output)
    described = _describe(command, input is not None, capture, options)
    cgroup = _own_cgroup(described.cgroup)
    try:
        child = described.spawn()
        with child:
            try:
                failed = exchange.run(child)
            except BaseException:
                _kill_tree(child, cgroup)
                raise
            if failed is not None:
                _kill_tree(child, cgroup)
                exchange.rest(child)
            status = child.wait()
    finally:
        if cgroup is not None:
            os.close(cgroup)
    outputs = [exchange.output(child, number, text) for number in (1, 2)]
    result: Completed[Any] = Completed(
        args=described.args, status=status, stdout=outputs[0], stderr=outputs[1]
    )
    name = os.fsdecode(described.args[0])
    if failed is RunTimeoutError:
        raise RunTimeoutError(f"run {name}: not ended after {timeout} s, killed", result)
    if failed is OutputLimitError:
        raise OutputLimitError(f"run {name}: more than {max_output} bytes, killed", result)
    if check and not status.success:
        raise ExitError(f"run {name}: {status}", result)
    return result


list_options(run, CommandOptions, Command)


def _bytes(input: object) -> bytes | memoryview:
    """Return the input as bytes."""
    if input is None:
        return b""
    if isinstance(input, str):
        try:
            return input.encode(errors="surrogateescape")
        except UnicodeEncodeError as error:
            raise ValueError(f"input: cannot be encoded: {error}") from None
    try:
        return memoryview(input).cast("B")  # type: ignore[arg-type]  # it raises what is meant
    except Exception:
        raise TypeError(f"input: expected bytes or str, not {show(input)}") from None


def _describe(
    command: Command | Sequence[StrPath],
    has_input: bool,
    capture: bool,
    options: CommandOptions,
) -> Command:
    """Return the command that has the pipes and the group that run() needs."""
    given = command if isinstance(command, Command) else None
    named = options.get("fds", given.fds if given else None)
    fds: dict[int, FdSource] = {} if named is None else dict(pairs(named, "fds"))
    if has_input:
        if 0 in fds:
            raise ValueError("input: fds of run() names the child's 0 as well")
        fds[0] = PIPE
    fds.setdefault(0, DEVNULL)
    if capture:
        fds.setdefault(1, PIPE)
        fds.setdefault(2, PIPE)
    for number, source in fds.items():
        used = source is PIPE and number in (0, 1, 2)
        if isinstance(source, Special) and source in _PIPES and not used:
            raise ValueError(
                f"fds: child's descriptor {number}: run() neither reads nor writes this pipe"
            )
    options["fds"] = fds
    group = options.get("process_group", given.process_group if given is not None else None)
    if group is not None and integer(group, "process_group", 0, MAX_INT, "a process group"):
        raise ValueError(f"process_group: {group}: run() needs one that is the child's own")
    session = flag(
        options.get("new_session", given is not None and given.new_session), "new_session"
    )
    options["process_group"] = None if session else 0
    if isinstance(command, Command):
        return dataclasses.replace(command, **options)
    return Command(command, **options)


def _own_cgroup(cgroup: StrPath | int | HasFileno | None) -> int | None:
    """A descriptor of it if nobody is in it; what is wrong with it the spawn will say."""
    if cgroup is None:
        return None
    try:
        if isinstance(cgroup, PATHS):
            folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        else:
            folder = os.dup(as_fd(cgroup, "cgroup"))
    except OSError:
        return None
    try:
        events = os.open("cgroup.events", os.O_RDONLY, dir_fd=folder)
        with open(events, "rb") as file:
            if b"populated 0" in file.read().split(b"\n"):
                return folder
    except OSError:
        pass
    os.close(folder)
    return None


def _kill_tree(child: Process, cgroup: int | None) -> None:
    if cgroup is not None:
        try:
            kill = os.open("cgroup.kill", os.O_WRONLY, dir_fd=cgroup)
            with open(kill, "wb", buffering=0) as file:
                file.write(b"1")
        except OSError:
            pass  # before Linux 5.14: the group must do
    if child.status is None:  # not reaped, so that its number is still its group's
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        child.kill()


class _Exchange:
    """Feeds a child, collects what it writes, and watches the clock and the amount."""

    def __init__(self, data: bytes | memoryview, timeout: float | None, most: int | None) -> None:
        self._data = memoryview(data)
        self._deadline: float | None = None
        if timeout is not None and timeout != math.inf:
            self._deadline = time.monotonic() + timeout
        self._left = most
        self._chunks: dict[int, list[bytes]] = {1: [], 2: []}

    def run(self, child: Process) -> type[RunError] | None:
        """Until the child has ended and its output too; or what must not be, is."""
        poll = select.poll()
        numbers: dict[int, int] = {}  # our descriptor -> the child's
        for number, pipe in child.pipes.items():
            numbers[pipe.fileno()] = number
            poll.register(pipe.fileno(), select.POLLOUT if number == 0 else select.POLLIN)
            os.set_blocking(pipe.fileno(), False)
        while numbers:
            ready = poll.poll(self._milliseconds())
            if not ready and self._milliseconds() == 0:
                return RunTimeoutError
            for fd, _ in ready:
                number = numbers[fd]
                more = self._feed(fd) if number == 0 else self._collect(fd, number)
                if not more:
                    poll.unregister(fd)
                    del numbers[fd]
                    child.pipes[number].close()
                if self._left is not None and self._left < 0:
                    return OutputLimitError
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            child.wait(timeout=left)
        except TimeoutError:
            return RunTimeoutError
        return None

    def _milliseconds(self) -> int | None:
        if self._deadline is None:
            return None
        left = (self._deadline - time.monotonic()) * 1000
        return max(0, math.ceil(min(left, MAX_INT)))  # poll(2) takes a C int

    def _feed(self, fd: int) -> bool:
        try:
            self._data = (
                self._data[os.write(fd, self._data[:_CHUNK]) :] if self._data else self._data
            )
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False  # it does not want more
        return bool(self._data)

    def _collect(self, fd: int, number: int) -> bool:
        try:
            chunk = os.read(fd, _CHUNK)
        except BlockingIOError:
            return True
        if self._left is not None:
            if len(chunk) > self._left:
                chunk, self._left = chunk[: max(self._left, 0)], -1
            else:
                self._left -= len(chunk)
        self._chunks[number].append(chunk)
        return bool(chunk)

    def rest(self, child: Process) -> None:
        """What is in the pipes of a child that was killed; others may still hold them."""
        for number in (1, 2):
            pipe = child.pipes.get(number)
            while pipe is not None and not pipe.closed and (self._left is None or self._left > 0):
                before = len(self._chunks[number])
                if not self._collect(pipe.fileno(), number) or before == len(self._chunks[number]):
                    break

    def output(self, child: Process, number: int, text: bool) -> bytes | str | None:
        if number not in child.pipes:
            return None
        joined = b"".join(self._chunks[number])
        return joined.decode(errors="surrogateescape") if text else joined
