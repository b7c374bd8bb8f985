"""Commands connected by pipes, without a shell."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from types import TracebackType
from typing import TYPE_CHECKING

from ._process import Process
from ._types import ExitStatus, FdSource

if TYPE_CHECKING:
    from ._spawn import Command  # a floor above, whose | makes pipelines


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands, each of whose 1 is the next one's 0: ``Command(...) | Command(...)``.

    No shell is involved, so nothing is quoted.  All run in one process group, which the
    first one leads.  The first one's 0, the last one's 1 and every 2 are those of their
    ``fds``.  Frozen, and safe to spawn from many threads.

    Raises:
        ValueError: fewer than two commands; or one names an end that the pipeline connects,
            a session or a process group.
    """

    commands: tuple[Command, ...]

    def __post_init__(self) -> None:
        if len(self.commands) < 2:
            raise ValueError("Pipeline: needs two commands at least")
        last = len(self.commands) - 1
        for place, command in enumerate(self.commands):
            named = command.fds or {}
            if (place > 0 and 0 in named) or (place < last and 1 in named):
                raise ValueError(
                    f"Pipeline: fds of command {place} names an end that the pipeline connects"
                )
            if command.new_session or command.process_group is not None:
                raise ValueError(
                    f"Pipeline: command {place} names a session or a process group, but all "
                    "are in one of their own"
                )

    def __or__(self, other: Command | Pipeline) -> Pipeline:
        """Return the pipeline with a command or a pipeline added at its end."""
        more = other.commands if isinstance(other, Pipeline) else (other,)
        return Pipeline((*self.commands, *more))

    def spawn(self) -> PipelineProcess:
        """Start all commands; return when each has become its program.

        Returns:
            The children; the caller owns them and their pipes.

        Raises:
            SpawnError: one could not be started.  Those before it have been killed and
                reaped, and nothing is left behind.
            OSError: a pipe could not be made.
        """
        started: list[Process] = []
        last = len(self.commands) - 1
        with ExitStack() as ours:
            readers, writers = [-1], []
            for _ in range(last):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                ours.callback(os.close, reader)
                ours.callback(os.close, writer)
                readers.append(reader)
                writers.append(writer)
            try:
                for place, command in enumerate(self.commands):
                    fds: dict[int, FdSource] = dict(command.fds or {})
                    if place > 0:
                        fds[0] = readers[place]
                    if place < last:
                        fds[1] = writers[place]
                    # An unreaped child keeps the group alive, be it a zombie.
                    group = started[0].pid if started else 0
                    member = dataclasses.replace(command, fds=fds, process_group=group)
                    started.append(member.spawn())
            except BaseException:
                for child in started:
                    child.kill()
                    child.wait()
                    child.close()
                raise
        return PipelineProcess(tuple(started))


class PipelineProcess:
    """A started pipeline.  Made by :meth:`Pipeline.spawn`.

    Safe to use from many threads.  As a context manager it closes its pipes, waits for all
    children and closes their pidfds.

    Attributes:
        processes: the children, in the order of the commands.
        process_group: the process group of all of them, the pid of the first.
    """

    __slots__ = ("process_group", "processes")

    def __init__(self, processes: tuple[Process, ...]) -> None:
        self.processes = processes
        self.process_group = processes[0].pid

    @property
    def stdin(self) -> BufferedWriter | None:
        """Our end of ``fds={0: PIPE}`` of the first command."""
        return self.processes[0].stdin

    @property
    def stdout(self) -> BufferedReader | None:
        """Our end of ``fds={1: PIPE}`` of the last command."""
        return self.processes[-1].stdout

    def wait(self, timeout: float | None = None) -> tuple[ExitStatus, ...]:
        """Wait for all children.

        Args:
            timeout: seconds, for all together.

        Returns:
            The exit status of each, in the order of the commands.

        Raises:
            TimeoutError: a child still runs; all go on.
        """
        if timeout is None:
            return tuple(child.wait() for child in self.processes)
        deadline = time.monotonic() + timeout
        return tuple(
            child.wait(timeout=max(0.0, deadline - time.monotonic())) for child in self.processes
        )

    async def wait_async(self) -> tuple[ExitStatus, ...]:
        """Wait for all children on the running asyncio loop."""
        import asyncio  # here: a third of what importing us would cost

        return tuple(await asyncio.gather(*(child.wait_async() for child in self.processes)))

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process group: to all children, and processes they started in it.

        Does nothing once all children are known to have ended: the group's number may then be
        another's.
        """
        # Each is polled, and not only as far as the first that runs.
        if None not in {child.poll() for child in self.processes}:
            return
        try:
            os.killpg(self.process_group, signum)
        except ProcessLookupError:
            pass  # the last one has ended since, and another thread has reaped it

    def terminate(self) -> None:
        """Send SIGTERM to the process group."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process group."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close our pipe ends and the pidfds; no child is ended or waited for."""
        for child in self.processes:
            child.close()

    def __enter__(self) -> PipelineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self.processes:
            child.close_pipes()
        try:
            self.wait()
        finally:
            self.close()

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.processes))
