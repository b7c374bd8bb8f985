"""All of a supervisor's logs: what comes from where, and goes where."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

from ._log_file import LogFile, Switch
from ._records import Entry, Origin, decode, encode, time_text
from ._sinks import RingTail

_NOBODY = Origin(component="-")
_US = Origin(component="supervisor")
_AGAIN = 30.0  # seconds until another try of a rotation that failed


class Sink(Protocol):
    """Takes entries without waiting: StreamSink, LokiSink."""

    def add(self, entry: Entry) -> None:
        """Take one."""


class Logs:
    """The file, the memory of the last entries, and other sinks, for the loop.

    A worker's record is in the file when it comes here, since the file is read for it; a
    captured line and an event of the supervisor's is not, and is written to it as well as
    given to the sinks, so that a full disk keeps nothing from them.

    Args:
        file: used, not owned; None: workers write to pipes, ``Capture(stream="log")``.
        tail: used.
        sinks: used.

    Attributes:
        strange: lines of the file that are no records: torn, or of other programs.
    """

    def __init__(
        self, file: LogFile | None, tail: RingTail, sinks: Iterable[Sink] = (), *, pid: int
    ) -> None:
        self.file, self.tail, self.sinks = file, tail, list(sinks)
        self.strange = 0
        self._pid = pid
        self._not_before = 0.0
        self._reopening = False

    def add(self, entry: Entry) -> None:
        """One that is in no file yet: of a Capture."""
        if self.file is not None:
            self.file.write(entry.line)
        self._publish(entry)

    def say(self, level: str, message: str, **fields: object) -> None:
        """A record of the supervisor's own."""
        ns = time.time_ns()
        head = {"time": time_text(ns), "level": level, **_US.fields(), "pid": self._pid}
        # Marked as what is published already.
        head["stream"] = "supervisor"
        line = encode(head, message, extra=fields)[:-1]
        self.add(Entry(time=ns, origin=_US, stream="supervisor", level=level, line=line))

    def reopen(self) -> None:
        """Somebody has moved the file: :meth:`poll` is to change over when it can."""
        self._reopening = True

    def poll(self, now: float, budget: int = 1 << 16) -> Switch | None:
        """Publish what workers have written since, rotate where it is due.

        To be called every 200 ms or so; while it has published its budget, sooner.

        Args:
            now: time.monotonic().
            budget: bytes of records; at about 10 microseconds for each.

        Returns:
            What is to be sent to the workers, if there is a new file.

        Raises:
            OSError: the file cannot be read.  One that cannot be rotated is an ERROR in the
                log, and tried again later.
        """
        if self.file is None:
            return None
        for line in self.file.read(budget, now):
            entry = decode(line)
            if entry is None:
                if not line:
                    continue  # the end of a torn line
                self.strange += 1
                ns = time.time_ns()
                text = line.decode("utf-8", "backslashreplace")
                head = {"time": time_text(ns), **_NOBODY.fields()}
                entry = Entry(
                    time=ns, origin=_NOBODY, stream="log", level="", line=encode(head, text)[:-1]
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
            self._not_before = now + _AGAIN
            self.say("ERROR", f"cannot rotate or reopen {self.file.path}: {error}")
            return None

    def _publish(self, entry: Entry) -> None:
        self.tail.add(entry)
        for sink in self.sinks:
            sink.add(entry)
