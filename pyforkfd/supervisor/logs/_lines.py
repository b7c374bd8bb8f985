"""Captured lines that were read at once: their records, passed on together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ._records import Entry, Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Captured lines of one stream that were read at once, at least one.

    Attributes:
        time: nanoseconds since 1970, UTC, at which they were read.
        origin: the worker that wrote them.
        stream: "stdout" or "stderr".
        head: the beginning of every record, up to its message.
        data: the records as JSON in UTF-8, each with its newline.
        count: of the records.
        is_plain: whether every message is printable ASCII without escapes, and none was cut.
    """

    time: int
    origin: Origin
    stream: str
    head: bytes
    data: bytes
    count: int
    is_plain: bool

    @property
    def line(self) -> bytes:
        """The records with newlines between them: several where an entry has one."""
        return self.data[:-1]

    def entries(self) -> Iterator[Entry]:
        """Yield the records one by one."""
        for line in self.line.split(b"\n"):
            yield Entry(time=self.time, origin=self.origin, stream=self.stream, level="", line=line)

    def split(self, size: int) -> tuple[Lines, Lines | None]:
        """Split behind the record in which a size is reached.

        Args:
            size: bytes, of which the first part has at least as many; at least one record.

        Returns:
            Both parts; None in place of the second: nothing is left for it.
        """
        end = self.data.find(b"\n", max(size - 1, 0)) + 1
        if end in (0, len(self.data)):
            return self, None
        count = self.data.count(b"\n", 0, end)
        first = replace(self, data=self.data[:end], count=count)
        return first, replace(self, data=self.data[end:], count=self.count - count)

    def last(self, count: int, size: int) -> Lines:
        """Return the last records within two bounds, and always the very last.

        Args:
            count: of records.
            size: bytes of records, their newlines not counted.
        """
        if self.count <= count and len(self.data) - self.count <= size:
            return self
        begin, left = len(self.data), 0
        while left < count and begin > 0:
            previous = self.data.rfind(b"\n", 0, begin - 1) + 1
            size -= begin - 1 - previous
            if size < 0 and left:
                break
            begin, left = previous, left + 1
        return replace(self, data=self.data[begin:], count=left)
