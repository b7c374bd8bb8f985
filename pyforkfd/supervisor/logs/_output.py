"""All that is logged, joined to the loop: the file, captured streams, sinks."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from pyforkfd._closing import Closing
from pyforkfd._fd import Fd
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

_LOKI_AGAIN = 5.0  # seconds before another sender is started in place of one that died
_STREAMS = {"stdout": "o", "stderr": "e"}  # and how a successor finds them
_LOKI_FAREWELL = 3.0  # seconds for it to send what it has when we end


class _Writing(Protocol):
    """A sink with a queue: its descriptor is watched while something waits."""

    def fileno(self) -> int: ...
    @property
    def wants_write(self) -> bool: ...
    def handle(self) -> None: ...


class Output(Closing):
    """Where the words of the supervisor and of its workers go.  Owns all of it.

    Attributes:
        file: which workers share; None where there is none.
        tail: the last entries of each component.
    """

    def __init__(self, config: Log, reactor: Reactor, succession: Succession) -> None:
        """Open what the specification names.

        Args:
            config: of the specification.
            reactor: watches what is read and written.
            succession: has the pipes of a predecessor's workers, and gets ours.

        Raises:
            OSError: the file cannot be opened.
            SpawnError: the sender for Loki cannot be started.
        """
        self._reactor = reactor
        self._succession = succession
        self._captures: dict[int, list[Capture]] = {}  # by worker
        self._watched: dict[int, _Writing] = {}  # by descriptor
        self.tail = RingTail()
        self._stdout = StreamSink(1, text=True) if config.stdout else None
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
        try:
            if config.loki is not None:
                self._loki = LokiSink(config.loki)
                reactor.add(self._loki.fileno(), self._on_loki)
        except BaseException:
            self.close()
            raise
        sinks = [sink for sink in (self._stdout, self._loki) if sink is not None]
        self._logs = Logs(self.file, self.tail, sinks, pid=os.getpid())

    def say(self, level: str, text: str, **fields: object) -> None:
        """A record of the supervisor's own; fields that are None are left out."""
        known = {name: value for name, value in fields.items() if value is not None}
        self._logs.say(level.upper(), text, **known)

    def capture(self, origin: Origin, stream: str) -> Capture:
        """A pipe for one stream of a worker, read from now on.

        Returns:
            Its ``writer`` is for the worker, and to be closed here after the spawn.
        """
        return self._read(origin, stream, None)

    def readopt(self, worker: Worker) -> None:
        """A predecessor's worker: read on from its pipes, and expect it to have its log file."""
        origin = Origin(component=worker.component, worker=worker.id, generation=worker.generation)
        for stream in _STREAMS:
            if (fd := self._succession.take(_name(worker.id, stream))) is not None:
                self._read(origin, stream, fd)
        if self.file is not None:
            self.file.adopt(worker.id, time.monotonic())

    def _read(self, origin: Origin, stream: str, fd: Fd | None) -> Capture:
        assert origin.worker is not None
        name = _name(origin.worker, stream)

        def end(number: int) -> None:
            self._succession.drop(name)
            self._reactor.remove(number)

        made = Capture(origin, stream, self._logs.add, on_end=end, reader=fd)
        self._captures.setdefault(origin.worker, []).append(made)

        def handle(events: int) -> None:
            made.handle(time.monotonic())

        self._reactor.add(made.fileno(), handle)
        self._succession.put(name, made)
        return made

    def worker_gone(self, worker_id: int, now: float) -> None:
        """A worker has been reaped: what is in its pipes is still read."""
        if self.file is not None:
            self.file.gone(worker_id)
        for capture in self._captures.get(worker_id, ()):
            capture.worker_gone(now)

    def poll(self, now: float) -> Switch | None:
        """What is to be done every 200 ms.

        Returns:
            What is to be sent to workers, if there is a new file.
        """
        for worker, captures in list(self._captures.items()):
            for capture in captures:
                if capture.overdue(now):
                    capture.handle(now)
            captures[:] = [capture for capture in captures if not capture.ended]
            if not captures:
                del self._captures[worker]
        if self._loki is not None and self._loki.down and now >= self._loki_not_before:
            self._restart_loki(self._loki, now)
        switch = self._logs.poll(now)
        self.settle()
        return switch

    def pending_switch(self) -> Switch | None:
        """What is to be sent to workers that have an older file."""
        return None if self.file is None else self.file.pending_switch()

    def settle(self) -> None:
        """Watch those sinks whose reader has no room, and no others."""
        if self._stdout is not None:
            self._watch(self._stdout, always=False)
        if self._loki is not None and not self._loki.down:
            self._watch(self._loki, always=True)

    def reopen(self) -> None:
        """Somebody has moved the file: go on in the one that its path means."""
        self._logs.reopen()

    def _watch(self, sink: _Writing, *, always: bool) -> None:
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
            self._reactor.add(fd, lambda _: self._on_room(sink), WRITABLE)
        else:
            self._reactor.remove(fd)

    def _on_room(self, sink: _Writing) -> None:
        sink.handle()
        self.settle()

    def _on_loki(self, events: int) -> None:
        assert self._loki is not None
        fd = self._loki.fileno()
        self._loki.handle()
        if self._loki.down:
            self._reactor.remove(fd)
            self._watched.pop(fd, None)
            self._loki_not_before = time.monotonic() + _LOKI_AGAIN
            self.say("warning", f"the sender for Loki has died: {self._loki.error or 'no reason'}")

    def _restart_loki(self, loki: LokiSink, now: float) -> None:
        try:
            loki.restart()
        except OSError as error:
            self._loki_not_before = now + _LOKI_AGAIN
            self.say("error", f"the sender for Loki cannot be started: {error}")
            return
        self._reactor.add(loki.fileno(), self._on_loki)

    def close(self) -> None:
        """Write what can be written, and close everything."""
        for captures in self._captures.values():
            for capture in captures:
                capture.close()
        self._captures.clear()
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
                self._loki.process.wait(_LOKI_FAREWELL)
            except TimeoutError:
                pass  # it is slow, or Loki is: close() ends it
            self._loki.close()
        if self.file is not None:
            self.file.close()


def _name(worker_id: int, stream: str) -> str:
    return f"{_STREAMS[stream]}{worker_id}"


class _Forwarder(logging.Handler):
    """Records of our own loggers become lines of the log."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.INFO)
        self._output = output
        self._busy = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._busy:  # what the log itself has to say
            return
        self._busy = True
        try:
            self._output.say(record.levelname, record.getMessage())
        except Exception:
            self.handleError(record)
        finally:
            self._busy = False


@contextmanager
def forwarded(output: Output) -> Iterator[None]:
    """What the supervisor's rooms log goes where the workers' output goes."""
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
