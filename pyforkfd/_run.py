"""run(): a program until its end, and its output; all it started is killed at a timeout."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, AnyStr, Generic, Literal, Unpack, overload

from . import _core
from ._checks import MAX_INT, as_fd, flag, integer, pairs, seconds, show
from ._errors import from_core
from ._options import CommandOptions, list_options, names, refuse_unknown
from ._process import _forgotten, exit_status, reap_forgotten
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

_PIPES = (PIPE, PIPE_TO_CHILD, PIPE_FROM_CHILD)
_KNOWN = names(CommandOptions)
_NOTE_LINES, _NOTE_BYTES = 10, 2000  # of stderr, in the note of an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(Generic[AnyStr]):
    """The result of :func:`run`: a program that has ended.

    Attributes:
        args: the program and its arguments.
        status: its exit status.
        stdout: its output to 1, None where that was not captured.
        stderr: its output to 2, None where that was not captured.
    """

    args: Sequence[StrPath]
    status: ExitStatus
    stdout: AnyStr | None
    stderr: AnyStr | None

    @property
    def returncode(self) -> int | None:
        """The return code as subprocess has it: exit code, or minus the signal; None if lost."""
        return self.status.returncode


class RunError(Exception):
    """A program that :func:`run` ran has failed; it has ended.

    Where its stderr was captured, the last lines are a note of the error, for its traceback.

    Attributes:
        result: its exit status, and its output so far.
    """

    result: Completed[Any]

    def __init__(self, text: str, result: Completed[Any]) -> None:
        super().__init__(text)
        self.result = result
        if last := _last_lines(result.stderr):
            self.add_note(f"the end of its stderr:\n{last}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.result)


class ExitError(RunError):
    """The program did not end with code 0, and ``check`` is set."""


class RunTimeoutError(RunError, TimeoutError):
    """The timeout was reached; the program and all that it had started were killed."""


class OutputLimitError(RunError):
    """The output exceeded ``max_output``; the program and all that it had started were killed."""


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
    """Run a program until its end; return its exit status and its output.

    The program leads a process group of its own (a session with ``new_session``).  At the
    timeout, at the output's limit, or when the wait is interrupted (Ctrl-C), that group is
    killed; and the cgroup, by cgroup.kill (Linux 5.14), where ``cgroup`` is given and was
    empty before the start: no process escapes from that.  The program's 0 is ``input``, or
    /dev/null where ``fds`` does not name 0: a group in the background may not read the
    terminal.

    Args:
        command: a :class:`Command`, or arguments as it takes them.
        input: data for the program's 0; bytes, or str with ``text``.
        capture: collect output to 1 and 2, unless ``fds`` names them.  A PIPE of ``fds`` for
            1 or 2 is collected in any case.
        timeout: seconds until the program must have ended and closed its output.
        check: a status that is not exit code 0 is an error.
        text: input and output are str: UTF-8, where other bytes become surrogates
            (os.fsdecode has the same), so that nothing is lost and nothing fails.
        max_output: bytes of 1 and 2 together that are read; None: as memory allows.
        options: the options of :class:`Command`; they replace those of a Command given.
            ``process_group`` may be 0 alone.

    Returns:
        A frozen result.

    Raises:
        ExitError: ``check`` is set, and the program did not end with code 0.
        RunTimeoutError: the timeout was reached; also a TimeoutError.  The output so far is
            in its ``result``.
        OutputLimitError: the first ``max_output`` bytes are in its ``result``.
        SpawnError: the program could not be started.
        TypeError, ValueError, LookupError: a value makes no sense; nothing was started.
    """
    if not options.keys() <= _KNOWN:
        refuse_unknown("run", options, _KNOWN)
    for name, value in (("capture", capture), ("check", check), ("text", text)):
        flag(value, name)
    limit = None if timeout is None else seconds(timeout, "timeout")
    if max_output is not None:
        max_output = integer(max_output, "max_output", 0, sys.maxsize, "a number of bytes")
    data = _bytes(input)
    described = _describe(command, input is not None, capture, options)
    cgroup = _own_cgroup(described.cgroup)
    if _forgotten:
        reap_forgotten()
    try:
        failed, reaped, *outputs = _core.run(
            described._plan,
            described._sources.numbers(),
            data,
            limit,
            max_output,
            lambda pid, pidfd: _kill_tree(pid, pidfd, cgroup),
        )
    except _core.SysError as error:
        raise from_core(described._program, error) from None
    finally:
        if cgroup is not None:
            os.close(cgroup)
    stdout, stderr = (_decoded(output) for output in outputs) if text else outputs
    status = exit_status(reaped)
    result: Completed[Any] = Completed(
        args=described.args, status=status, stdout=stdout, stderr=stderr
    )
    if failed == _core.RUN_ENDED and (status.success or not check):
        return result
    name = os.fsdecode(described.args[0])
    if failed == _core.RUN_TIMED_OUT:
        raise RunTimeoutError(f"run {name}: not ended after {timeout} s, killed", result)
    if failed == _core.RUN_TOO_LONG:
        raise OutputLimitError(f"run {name}: more than {max_output} bytes, killed", result)
    raise ExitError(f"run {name}: {status}", result)


list_options(run, CommandOptions, Command)


def _last_lines(output: bytes | str | None) -> str:
    """Return the end of an output, for a traceback."""
    if output is None:
        return ""
    end = output[-_NOTE_BYTES:]
    text = end if isinstance(end, str) else end.decode(errors="backslashreplace")
    return "\n".join(text.strip().splitlines()[-_NOTE_LINES:])


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
    """Return a descriptor of the cgroup if it is empty; its errors are those of the spawn."""
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


def _kill_tree(pid: int, pidfd: int, cgroup: int | None) -> None:
    if cgroup is not None:
        try:
            kill = os.open("cgroup.kill", os.O_WRONLY, dir_fd=cgroup)
            with open(kill, "wb", buffering=0) as file:
                file.write(b"1")
        except OSError:
            pass  # before Linux 5.14: killing the group must suffice
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # not reaped, so its number is still that of its group
    with suppress(ProcessLookupError, PermissionError):
        _core.send_signal(pidfd, signal.SIGKILL)


def _decoded(output: bytes | None) -> str | None:
    return None if output is None else output.decode(errors="surrogateescape")
