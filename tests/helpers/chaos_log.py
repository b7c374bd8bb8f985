"""The log of the chaos test: all of its files are read while they are written and removed."""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_INTERVAL = 0.05  # seconds
PATIENCE = 5.0  # seconds in which what was written is read
_LINE = re.compile(r"line (\d+) end of (\d+)")
_RECORD = '{"time":"'
# What the supervisor has read of a pipe and not yet written when it is killed: one read(2).
LINES_IN_A_READ = 4096 // len("line 0 end of 0\n")


@dataclass
class File:
    """One file of the log, perhaps removed by now."""

    fd: int
    at: int = 0
    rest: bytes = b""
    quiet_since: float = 0.0


@dataclass
class Writer:
    """The numbered records of a process, or the numbered lines of a worker.

    Attributes:
        seen: how many there are.
        next: the number after the highest.
        stated: how many the records themselves report as lost.
        first: when the first was read.
        last: when the last was read.
    """

    seen: int = 0
    next: int = 0
    stated: int = 0
    first: float = math.inf
    last: float = 0.0

    def add(self, number: int, lost: int = 0) -> None:
        self.last = time.monotonic()
        self.first = min(self.first, self.last)
        self.seen += 1
        self.next = max(self.next, number + 1)
        self.stated += lost

    def lived(self, begun: float, over: float) -> bool:
        """Whether it has written in this time, or may have."""
        return self.first - PATIENCE <= over and begun <= self.last + PATIENCE

    @property
    def missing(self) -> int:
        return self.next - self.seen


@dataclass
class LogWatch:
    """Reads a directory of log files until it is closed.

    Attributes:
        records: (worker, pid) -> its records.
        lines: worker -> its captured lines.
        stated: sum of ``lost`` in records that are no worker's own.
        torn: lines that are no record, with the time at which they were read.
        swallowed: records that are whole but follow a torn one in its line.
        broken_lines: worker -> captured lines that are not whole.
        size: bytes read.
    """

    directory: int
    records: dict[tuple[int, int], Writer] = field(default_factory=lambda: defaultdict(Writer))
    lines: dict[int, Writer] = field(default_factory=lambda: defaultdict(Writer))
    broken_lines: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    stated: int = 0
    torn: list[tuple[float, bytes]] = field(default_factory=list)
    swallowed: int = 0
    size: int = 0
    _files: dict[int, File] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Read from a thread."""
        self._thread = threading.Thread(target=self._run, name="log")
        self._thread.start()

    def close(self) -> None:
        """Read to the end of what is there now, and close everything; the first call does."""
        if self._thread is None:
            return
        self._end.set()
        self._thread.join()
        self._thread = None
        self.read()
        for file in self._files.values():
            os.close(file.fd)
        self._files.clear()
        os.close(self.directory)

    def _run(self) -> None:
        while not self._end.wait(_INTERVAL):
            self.read()

    def read(self) -> None:
        """Read what there is."""
        with self._lock:
            for name in os.listdir(self.directory):
                if "log" in name:
                    self._open(name)
            for inode, file in list(self._files.items()):
                self._read(file)
                now = time.monotonic()
                # A removed file is closed, or it would take space: nobody writes to it.
                if os.fstat(file.fd).st_nlink == 0 and now - file.quiet_since > 1.0:
                    os.close(file.fd)
                    del self._files[inode]

    def _open(self, name: str) -> None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.directory)
        except FileNotFoundError:
            return  # renamed since
        inode = os.fstat(fd).st_ino
        if inode in self._files:
            os.close(fd)
        else:
            self._files[inode] = File(fd)

    def _read(self, file: File) -> None:
        while data := os.pread(file.fd, 1 << 16, file.at):
            file.at += len(data)
            self.size += len(data)
            file.quiet_since = time.monotonic()
            *lines, file.rest = (file.rest + data).split(b"\n")
            for line in lines:
                if line:  # the end of a torn line
                    self._take(line)

    def _take(self, line: bytes) -> None:
        for number, record in enumerate(_parse(line)):
            if record is None:
                self.torn.append((time.monotonic(), line))
                continue
            self.swallowed += number > 0
            self._count(record)

    def _count(self, record: dict[str, Any]) -> None:
        lost = int(record.get("lost", 0))
        stream = record.get("stream")
        if "seq" in record:
            self.records[record["worker"], record["pid"]].add(record["seq"], lost)
            return
        self.stated += lost
        if stream in ("stdout", "stderr"):
            found = _LINE.fullmatch(record["message"])
            if found and found[1] == found[2]:
                self.lines[record["worker"]].add(int(found[1]))
            elif stream == "stdout":
                self.broken_lines[record["worker"]].append(record["message"])


def _parse(line: bytes) -> Iterator[dict[str, Any] | None]:
    """Yield the record of a line; None for what is none, and records that follow it."""
    text = line.decode("utf-8", "replace")
    at = 0
    while at >= 0:
        try:
            record = json.loads(text[at:])
            if not {"time", "component", "message"} <= record.keys():
                raise ValueError
        except (ValueError, AttributeError):
            if at == 0:
                yield None
            at = text.find(_RECORD, at + 1)
        else:
            yield record
            return
