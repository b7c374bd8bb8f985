"""The log of a service on the loop: its file, captured streams, and sinks."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from pyforkfd._closing import Closing
from pyforkfd._fd import Fd
from pyforkfd._types import HasFileno
from pyforkfd.supervisor._reactor import READABLE, WRITABLE, Reactor
from pyforkfd.supervisor.spec._spec import Log
from pyforkfd.supervisor.state._model import Worker
from pyforkfd.supervisor.succession._succession import Succession

from ._capture import Capture
from ._log_file import LogFile, Switch
from ._logs import Logs
from ._loki_sink import LokiSink
from ._records import Origin
from ._sinks import RingTail, StreamSink

_LOKI_RESTART = 5.0  # seconds before another sender is started in place of one that died
_BUDGET = 1 << 15  # bytes read of a stream in a turn of the loop
_LOG = "log"
_STREAMS = {
    "stdout": "o",
    "stderr": "e",
    _LOG: "l",
}  # and the prefix by which a successor finds them
_FORMATTER = logging.Formatter()
_LOKI_DRAIN = 3.0  # seconds for the sender to send what it has when we end


class _Queued(Protocol):
    """A sink with a queue: its descriptor is watched while the queue has something."""

    def fileno(self) -> int: ...
    @property
    def wants_write(self) -> bool: ...
    def handle(self) -> None: ...


class Output(Closing):
    """The log of the supervisor and its workers.  Owns the file, the pipes and the sinks.

    Attributes:
        file: the file that trusted workers share; None where there is none.
        tail: the last entries of each component.
    """

    def __init__(self, config: Log, reactor: Reactor, succession: Succession) -> None:
        """Open the file and the sinks of the specification.

        Args:
            config: the section ``[log]``.
            reactor: watches what is read and written.
            succession: has the pipes of a predecessor's workers, and gets ours.

        Raises:
            OSError: the file cannot be opened.
            SpawnError: the sender for Loki cannot be started.
        """
        self._reactor = reactor
        self._succession = succession
        self._captures: dict[int, list[Capture]] = {}  # by worker id
        self._watched: dict[int, _Queued] = {}  # by descriptor
        # Lines that a predecessor has begun to read, by the names of their streams.
        self._unfinished: dict[str, tuple[str, int]] = succession.resources.pop("output", {})
        self.tail = RingTail()
        self._stdout = StreamSink(1, text=True, name="stdout") if config.stdout else None
        self._loki: LokiSink | None = None
        self._loki_not_before = 0.0
        self.file: LogFile | None = None
        if config.path is not None:
            self.file = LogFile(
                config.path,
                mode=config.mode,
                o_dsync=config.dsync,
                max_bytes=config.max_bytes,
                keep=config.keep,
            )
        self._logs = Logs(self.file, self.tail, pid=os.getpid())
        try:
            if config.loki is not None:
                self._loki = LokiSink(config.loki)
                reactor.add(self._loki.fileno(), self._on_loki)
        except BaseException:
            self.close()
            raise
        self._logs.sinks += [sink for sink in (self._stdout, self._loki) if sink is not None]

    def record(self, level: str, text: str) -> None:
        """Add a record of the supervisor."""
        self._logs.record(level.upper(), text)

    def lend(self, origin: Origin, *, trusted: bool, worker_ends: ExitStack) -> HasFileno | None:
        """Return the descriptor by which a worker is to write its records; borrowed.

        Args:
            origin: the worker.
            trusted: it gets the description of the file, with which it could truncate the file
                or change its flags; otherwise a pipe, of which the supervisor writes the
                records to the file as that worker's.
            worker_ends: gets what is to be closed here after the spawn.

        Returns:
            None: there is no file.

        Raises:
            OSError: pipe2(2) failed.
        """
        assert origin.worker is not None
        if self.file is None:
            return None
        if not trusted:
            return worker_ends.enter_context(self.capture(origin, _LOG).writer)
        self.file.give(origin.worker)
        return self.file

    def capture(self, origin: Origin, stream: str) -> Capture:
        """Make a pipe for one stream of a worker, and read it from now on.

        Args:
            origin: the worker.
            stream: "stdout", "stderr" or "log".

        Returns:
            The stream.  Its ``writer`` is for the worker; close it here after the spawn.

        Raises:
            OSError: pipe2(2) failed.
        """
        return self._read(origin, stream, None)

    def readopt(self, worker: Worker) -> None:
        """Take over a predecessor's worker: read its pipes, expect it to have the log file."""
        origin = Origin(component=worker.component, worker=worker.id, generation=worker.generation)
        has_file = self.file is not None
        for stream in _STREAMS:
            if (fd := self._succession.take(_name(worker.id, stream))) is not None:
                self._read(origin, stream, fd)
                has_file = has_file and stream != _LOG
        if self.file is not None and has_file:
            self.file.adopt(worker.id, time.monotonic())

    def _read(self, origin: Origin, stream: str, fd: Fd | None) -> Capture:
        assert origin.worker is not None
        name = _name(origin.worker, stream)

        def end(capture_fd: int) -> None:
            self._succession.drop(name)
            if capture_fd in self._reactor:
                self._reactor.remove(capture_fd)

        capture = Capture(origin, stream, self._logs.add, budget=_BUDGET, on_end=end, reader=fd)
        if fd is not None and (begun := self._unfinished.pop(name, None)) is not None:
            capture.go_on(begun[0].encode("latin-1"), begun[1])

        def handle(events: int) -> None:
            capture.handle(time.monotonic())

        try:
            self._reactor.add(capture.fileno(), handle)
        except BaseException:  # no memory, or no watch of epoll(7), for it
            capture.close()
            raise
        self._captures.setdefault(origin.worker, []).append(capture)
        self._succession.put(name, capture)
        return capture

    def unfinished(self) -> dict[str, tuple[str, int]]:
        """Return the lines under way, for a successor that goes on reading where we end.

        Returns:
            Name of a stream -> the retained part of its line, a character for each byte, and the
            line's length so far.
        """
        found = {}
        for worker_id, captures in self._captures.items():
            for capture in captures:
                part, length = capture.begun
                if length:
                    found[_name(worker_id, capture.stream)] = part.decode("latin-1"), length
        return found

    def worker_gone(self, worker_id: int, now: float) -> None:
        """Take the end of a worker that was reaped: the rest of its pipes is still read."""
        if self.file is not None:
            self.file.forget(worker_id)
        for capture in self._captures.get(worker_id, ()):
            capture.worker_gone(now)

    def last_lines(self, component: str, worker_id: int) -> list[bytes]:
        """Read what a worker's pipes hold, and return what is retained of its output.

        Returns:
            Entries in JSON, the last at the end.
        """
        for capture in self._captures.get(worker_id, ()):
            left = capture.pipe_size  # no more: an orphan of the worker may write without end
            while left > 0 and (length := capture.handle()):
                left -= length
        entries = self.tail.tail(components=[component])
        return [entry.line for entry in entries if entry.origin.worker == worker_id]

    def poll(self, now: float) -> Switch | None:
        """Do what is due every 200 ms: end streams, restart the sender, publish, rotate.

        Args:
            now: time.monotonic().

        Returns:
            The order to send to workers, if there is a new file.
        """
        for worker_id, captures in list(self._captures.items()):
            for capture in captures:
                if capture.overdue(now):
                    capture.handle(now)
            captures[:] = [capture for capture in captures if not capture.ended]
            if not captures:
                del self._captures[worker_id]
        if self._loki is not None and self._loki.down and now >= self._loki_not_before:
            self._restart_loki(self._loki, now)
        switch = self._logs.poll(now)
        self.settle()
        return switch

    def pending_switch(self) -> Switch | None:
        """Return the order for the workers that have an older file; None if there is none."""
        return None if self.file is None else self.file.next_switch(time.monotonic())

    def lost(self) -> dict[str, int]:
        """Return the counts of lost records, as :meth:`._logs.Logs.lost` has them."""
        return self._logs.lost()

    def settle(self) -> None:
        """Watch the descriptors of those sinks that have a queue, and no others."""
        if self._stdout is not None:
            self._watch(self._stdout, always=False)
        if self._loki is not None and not self._loki.down:
            self._watch(self._loki, always=True)

    def reopen(self) -> None:
        """Go on in the file that the path means now: another program has moved ours."""
        self._logs.reopen()

    def _watch(self, sink: _Queued, *, always: bool) -> None:
        fd = sink.fileno()
        wanted, watched = sink.wants_write, fd in self._watched
        if wanted == watched:
            return
        if wanted:
            self._watched[fd] = sink
        else:
            del self._watched[fd]
        if always:
            self._reactor.change(fd, READABLE | WRITABLE if wanted else READABLE)
        elif wanted:
            self._reactor.add(fd, lambda _: self._on_writable(sink), WRITABLE)
        else:
            self._reactor.remove(fd)

    def _on_writable(self, sink: _Queued) -> None:
        sink.handle()
        self.settle()

    def _on_loki(self, events: int) -> None:
        assert self._loki is not None
        fd = self._loki.fileno()
        self._loki.handle()
        if self._loki.down:
            self._reactor.remove(fd)
            self._watched.pop(fd, None)
            self._loki_not_before = time.monotonic() + _LOKI_RESTART
            why = self._loki.error or "it reported no error"
            self.record("warning", f"the sender for Loki has died: {why}")

    def _restart_loki(self, loki: LokiSink, now: float) -> None:
        try:
            loki.restart()
        except OSError as error:
            self._loki_not_before = now + _LOKI_RESTART
            self.record("error", f"the sender for Loki cannot be started: {error}")
            return
        self._reactor.add(loki.fileno(), self._on_loki)

    def close(self) -> None:
        """Write what can be written without waiting, and close everything."""
        for captures in self._captures.values():
            for capture in captures:
                capture.close()
        self._captures.clear()
        self._logs.close()
        if self._stdout is not None:
            if self._stdout.fileno() in self._watched:
                self._reactor.remove(self._stdout.fileno())
            self._stdout.handle()
            self._stdout.close()
        if self._loki is not None:
            if not self._loki.down:
                self._reactor.remove(self._loki.fileno())
            self._loki.finish()
            try:
                self._loki.process.wait(_LOKI_DRAIN)
            except TimeoutError:
                pass  # the sender is slow, or Loki is: close() ends it
            self._loki.close()
        if self.file is not None:
            self.file.close()


def _name(worker_id: int, stream: str) -> str:
    return f"{_STREAMS[stream]}{worker_id}"


class _Forwarder(logging.Handler):
    """A handler that puts the records of our own loggers into the log."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.INFO)
        self._output = output
        self._busy = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._busy:  # a record of the log itself
            return
        self._busy = True
        try:
            self._output.record(record.levelname, _text_of(record))
        except Exception:
            self.handleError(record)
        finally:
            self._busy = False


def _text_of(record: logging.LogRecord) -> str:
    if not record.exc_info:
        return record.getMessage()
    return f"{record.getMessage()}\n{_FORMATTER.formatException(record.exc_info)}"


@contextmanager
def forwarded(output: Output) -> Iterator[None]:
    """Put the records of the supervisor's loggers into the log, until the block ends."""
    logger = logging.getLogger("pyforkfd")
    handler, level = _Forwarder(output), logger.level
    logger.addHandler(handler)
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
