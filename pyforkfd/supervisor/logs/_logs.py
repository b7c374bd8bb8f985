"""The routes of log entries: from the file and captured output to the file and the sinks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

from ._log_file import LogFile, Switch
from ._records import Entry, Origin, decode, encode, time_text
from ._sinks import RingTail

_UNKNOWN = Origin(component="-")
_SUPERVISOR = Origin(component="supervisor")
_RETRY = 30.0  # seconds until another try of a rotation that failed


class Sink(Protocol):
    """A destination of entries that never waits: StreamSink, LokiSink."""

    def add(self, entry: Entry) -> None:
        """Take an entry."""


class Logs:
    """The log file, the memory of the last entries, and other sinks, for the loop.

    A worker's record is read from the file, and goes to the sinks.  A captured line and a
    record of the supervisor are written to the file and go to the sinks as well, so that a
    full disk withholds nothing from them.

    Args:
        file: borrowed; None: workers write to pipes, ``Capture(stream="log")``.
        tail: borrowed.
        sinks: borrowed.
        pid: of the supervisor, for its records.

    Attributes:
        malformed: count of the lines of the file that are not records: torn, or written by
            another program.
    """

    def __init__(
        self, file: LogFile | None, tail: RingTail, sinks: Iterable[Sink] = (), *, pid: int
    ) -> None:
        self.file, self.tail, self.sinks = file, tail, list(sinks)
        self.malformed = 0
        self._pid = pid
        self._not_before = 0.0
        self._reopening = False

    def add(self, entry: Entry) -> None:
        """Write an entry that is in no file yet, such as a captured line, and publish it."""
        if self.file is not None:
            self.file.write(entry.line)
        self._publish(entry)

    def record(self, level: str, message: str, **fields: object) -> None:
        """Add a record of the supervisor.

        Args:
            level: its name.
            message: any text.
            fields: further fields of the record.
        """
        ns = time.time_ns()
        head = {"time": time_text(ns), "level": level, **_SUPERVISOR.fields(), "pid": self._pid}
        # Marks a record that is published already, for poll().
        head["stream"] = "supervisor"
        line = encode(head, message, extra=fields)[:-1]
        self.add(Entry(time=ns, origin=_SUPERVISOR, stream="supervisor", level=level, line=line))

    def reopen(self) -> None:
        """Request the change to the file that the path means now: :meth:`poll` performs it."""
        self._reopening = True

    def poll(self, now: float, budget: int = 1 << 16) -> Switch | None:
        """Publish what workers have written, and rotate the file where that is due.

        Call it every 200 ms or so.

        Args:
            now: time.monotonic().
            budget: bytes of records, at about 10 microseconds for each record.

        Returns:
            The order to send to the workers, if there is a new file.

        Raises:
            OSError: the file cannot be read.  A rotation that fails is an ERROR in the log,
                and tried again later.
        """
        if self.file is None:
            return None
        for line in self.file.read(budget, now):
            entry = decode(line)
            if entry is None:
                if not line:
                    continue  # the end of a torn line
                self.malformed += 1
                ns = time.time_ns()
                text = line.decode("utf-8", "backslashreplace")
                head = {"time": time_text(ns), **_UNKNOWN.fields()}
                entry = Entry(
                    time=ns, origin=_UNKNOWN, stream="log", level="", line=encode(head, text)[:-1]
                )
            if entry.stream == "log":
                self._publish(entry)
        if now < self._not_before:
            return None
        try:
            if self._reopening and self.file.settled(now):
                switch = self.file.reopen(now)
                self._reopening = False
                return switch
            return self.file.rotate(now) if self.file.due(now) else None
        except OSError as error:
            self._not_before = now + _RETRY
            self.record("ERROR", f"cannot rotate or reopen {self.file.path}: {error}")
            return None

    def _publish(self, entry: Entry) -> None:
        self.tail.add(entry)
        for sink in self.sinks:
            sink.add(entry)
