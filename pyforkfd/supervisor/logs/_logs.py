"""The routes of log entries: from the file and captured output to the file and the sinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from ._log_file import LogFile, Switch
from ._losses import Loss, write_stderr
from ._records import Entry, Origin, attribute, decode, encode, time_text
from ._sinks import RingTail

_UNKNOWN = Origin(component="-")
_SUPERVISOR = Origin(component="supervisor")
_RETRY = 30.0  # seconds until another try of a rotation that failed
_STEP = 1 << 16  # bytes of one read of the file


class Sink(Protocol):
    """A destination of entries that never waits: StreamSink, LokiSink."""

    @property
    def name(self) -> str:
        """The name for reports and metrics."""

    @property
    def dropped(self) -> int:
        """The count of the entries that are lost."""

    @property
    def trouble(self) -> str:
        """The reason of the last loss."""

    @property
    def wants_write(self) -> bool:
        """Whether the queue has something."""

    def add(self, entry: Entry) -> None:
        """Take an entry."""


class Logs:
    """The log file, the memory of the last entries, and other sinks, for the loop.

    A trusted worker's record is read from the file, and goes to the sinks.  A captured line or
    record and a record of the supervisor are written to the file and go to the sinks as well,
    so that a full disk withholds nothing from them.

    What is lost is counted (:meth:`lost`), reported on standard error when it begins, and by a
    record with the count in ``lost`` when it is over.

    Args:
        file: borrowed; None: there is none.
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
        self._now = 0.0  # of the last poll
        self._not_before = 0.0
        self._reopening = False
        self._losses: dict[str, Loss] = {}
        self._lost_by_workers = 0
        self._missing = False  # the file was removed and cannot be made again

    def add(self, entry: Entry) -> None:
        """Write an entry that is in no file yet, such as a captured line, and publish it."""
        file = self.file
        self._lost_by_workers += entry.lost if entry.stream == "log" else 0
        if file is not None:
            self._write(file, entry.line)
        self._publish(entry)
        if file is not None and file.is_full and file.due():  # no need to wait for poll()
            self._try(file, file.rotate)

    def record(self, level: str, message: str, *, lost: int = 0, **fields: object) -> None:
        """Add a record of the supervisor.

        Args:
            level: its name.
            message: any text.
            lost: count of the lost records that this one reports.
            fields: further fields of the record.
        """
        self.add(self._own(level, message, lost, fields))

    def reopen(self) -> None:
        """Request the change to the file that the path means now: :meth:`poll` performs it."""
        self._reopening = True

    def lost(self) -> dict[str, int]:
        """Return the counts of lost records.

        Returns:
            ``file``: not in the file, those that workers reported included; ``unread``: in the
            file, which was rotated away before the sinks had them; and by name of the sink,
            dropped by it.
        """
        counts = {sink.name: sink.dropped for sink in self.sinks}
        if self.file is not None:
            counts["file"] = self.file.lost + self._lost_by_workers
            counts["unread"] = self.file.unread
        return counts

    def poll(self, now: float, budget: int = 1 << 18) -> Switch | None:
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
        self._now = now
        self._report_losses()
        if self.file is None:
            return None
        # First, so that what is not read yet is written again, and not only published.
        removed = self.file.removed() and not self._replace(self.file)
        if self.file.restore_flags():
            text = "a worker has changed the flags of the descriptor that all write by, O_APPEND"
            self.record("WARNING", f"{self.file.path}: {text}: restored")
        self._read(self.file, budget)
        if removed:
            return None
        if self._reopening and self.file.settled(now):
            self._try(self.file, self._change_over)
        elif self.file.due():
            self._try(self.file, self.file.rotate)
        return self.file.next_switch(now)

    def close(self) -> None:
        """Report the losses that no record has reported; the file and the sinks stay open."""
        file = self.file
        if file is None or file.lost == self._loss("file").reported:
            return
        if not self._report_lines(file):
            lost = file.lost - self._loss("file").reported
            write_stderr(f"{file.path}: {file.error}: {lost} log records were lost")

    def _read(self, file: LogFile, budget: int) -> None:
        while budget > 0 and (lines := file.read(min(_STEP, budget), self._now)):
            for line in lines:
                budget -= len(line) + 1
                if self._missing and line:
                    file.lost += 1  # the file has no name, nor its successor
                if line:  # else the end of a torn one
                    entry = self._entry_of(line)
                    self._lost_by_workers += entry.lost
                    self._publish(entry)

    def _entry_of(self, line: bytes) -> Entry:
        """Return the entry of a line of the file that the supervisor has not written."""
        if (entry := decode(line)) is not None:
            if entry.origin.component == _SUPERVISOR.component or entry.stream != "log":
                origin = entry.origin
                known = origin.component != _SUPERVISOR.component
                return attribute(line, origin if known else _UNKNOWN) or entry
            return entry
        self.malformed += 1
        return _entry(_UNKNOWN, "", {}, line.decode("utf-8", "backslashreplace"))

    def _write(self, file: LogFile, line: bytes) -> None:
        """Write a line to the file; after losses, their report comes first."""
        if self._missing:
            file.lost += 1
        elif file.lost > self._loss("file").reported and not self._report_lines(file):
            file.lost += 1  # not tried, as the report has just failed
        elif not file.write(line):
            self._notice_lines(file)

    def _try(self, file: LogFile, operation: Callable[[float], object]) -> None:
        if self._now < self._not_before:
            return
        try:
            operation(self._now)
        except OSError as error:
            self._not_before = self._now + _RETRY
            self.record("ERROR", f"cannot rotate or reopen {file.path}: {error}")

    def _change_over(self, now: float) -> None:
        assert self.file is not None
        self.file.reopen(now)
        self._reopening = False

    def _replace(self, file: LogFile) -> bool:
        """Make a removed file again; return False if that is impossible for now."""
        try:
            file.reopen(self._now)
        except OSError as error:
            if not self._missing:
                self._missing = True
                file.error = f"it was removed and cannot be made again: {error}"
                self._notice_lines(file)
                self.record("ERROR", f"{file.path}: {file.error}")
            return False
        self._missing = False
        text = f"{file.path} was removed: records that were not read yet are written here again"
        self.record("WARNING", text)
        return True

    def _report_losses(self) -> None:
        places = [(s.name, s.dropped, s.trouble, not s.wants_write) for s in self.sinks]
        if self.file is not None:
            if self.file.lost > self._loss("file").reported:
                self._notice_lines(self.file)
                self._report_lines(self.file)
            places.append(("unread", self.file.unread, "their file was rotated away", True))
        for place, count, trouble, over in places:
            loss = self._loss(place)
            if count == loss.reported:
                continue
            loss.notice(f"{place}: log records are dropped: {trouble}", self._now)
            if loss.due(self._now, over):
                lost = count - loss.reported
                loss.report(count, self._now)
                self.record(
                    "WARNING", f"{place}: {lost} records were dropped: {trouble}", lost=lost
                )

    def _notice_lines(self, file: LogFile) -> None:
        text = f"{file.path}: {file.error}: log records are lost"
        self._loss("file").notice(text, self._now)

    def _report_lines(self, file: LogFile) -> bool:
        """Write the report of the records that the file has lost; return False if it is full."""
        if self._missing:
            return False
        loss = self._loss("file")
        lost = file.lost - loss.reported
        text = f"{lost} records could not be written to {file.path}: {file.error}"
        entry = self._own("WARNING", text, lost)
        if not file.write(entry.line, counted=False):
            return False
        loss.report(file.lost, self._now)
        self._publish(entry)
        return True

    def _loss(self, place: str) -> Loss:
        return self._losses.setdefault(place, Loss())

    def _own(
        self, level: str, message: str, lost: int, fields: Mapping[str, object] | None = None
    ) -> Entry:
        head: dict[str, object] = {"pid": self._pid, "stream": "supervisor"}
        if lost:
            head["lost"] = lost
        return _entry(_SUPERVISOR, level, head, message, fields)

    def _publish(self, entry: Entry) -> None:
        self.tail.add(entry)
        for sink in self.sinks:
            sink.add(entry)


def _entry(
    origin: Origin,
    level: str,
    head: Mapping[str, object],
    message: str,
    extra: Mapping[str, object] | None = None,
) -> Entry:
    ns = time.time_ns()
    named = {"level": level} if level else {}
    fields = {"time": time_text(ns), **named, **origin.fields(), **head}
    line = encode(fields, message, extra=extra)[:-1]
    stream = str(head.get("stream", "log"))
    return Entry(time=ns, origin=origin, stream=stream, level=level, line=line)
