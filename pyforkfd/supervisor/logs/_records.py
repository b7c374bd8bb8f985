"""A log record as one line of JSON: encoding, cutting to a bound, decoding.  Pure."""

from __future__ import annotations

import calendar
import functools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_LINE = 16384  # bytes with the newline; a bound keeps one record from filling a sink's memory
_MAX_NAME = 256  # characters of a logger's name or a level where the rest had to be cut
_MAX_LOST = 1 << 32  # that one record may report: a worker may write anything
_OWN = frozenset(
    "time seq level component worker generation pid logger message exception stream "
    "cut lost buffered claimed".split()
)
# Fields of a worker's own that its records have, in their order around those of the origin.
_BEFORE: dict[str, type] = {"time": str, "seq": int, "level": str}
_AFTER: dict[str, type] = {"pid": int, "logger": str, "buffered": bool, "lost": int, "cut": int}
# Made once: json.dumps() would make another for each record, which is half of its cost.
_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=repr
).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The worker that writes: the fields that all its records have.

    Attributes:
        component: the worker's component.
        worker: the worker's id, never used again.
        generation: the worker's generation.
    """

    component: str
    worker: int | None = None
    generation: int | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields as a record has them, without those that are not known."""
        known = {"worker": self.worker, "generation": self.generation}
        return {"component": self.component} | {k: v for k, v in known.items() if v is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A record on its way through the supervisor.

    Attributes:
        time: nanoseconds since 1970, UTC, taken where the record was written.
        origin: the worker that wrote it.
        stream: "log" for a record, "stdout" or "stderr" for a captured line.
        level: name of the level, empty for a captured line.
        line: the record as JSON in UTF-8, without its newline.
        lost: its field of this name: records that its writer lost before.
    """

    time: int
    origin: Origin
    stream: str
    level: str
    line: bytes
    lost: int = 0


def time_text(ns: int) -> str:
    """Return a time as UTC, RFC 3339, with all nine digits, so that text sorts as time.

    Args:
        ns: nanoseconds since 1970.
    """
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{_second_text(seconds)}.{rest:09}Z"


def time_ns(text: str) -> int:
    """Return the nanoseconds since 1970 of a text that :func:`time_text` made.

    Raises:
        ValueError: the text is not of that form.
    """
    if len(text) != 30 or text[19] != "." or text[29] != "Z" or not text[20:29].isdigit():
        raise ValueError(f"{text!r} is not a time such as 2026-11-25T20:54:23.123456789Z")
    return _seconds(text[:19]) * 1_000_000_000 + int(text[20:29])


@functools.lru_cache(maxsize=64)  # most records are of the second of the one before
def _second_text(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@functools.lru_cache(maxsize=64)
def _seconds(text: str) -> int:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def encode(
    head: Mapping[str, Any],
    message: str,
    *,
    exception: str = "",
    extra: Mapping[Any, Any] | None = None,
    limit: int = MAX_LINE,
) -> bytes:
    """Encode a record as one line, newline included, of at most ``limit`` bytes.

    A longer record loses its extra fields, then the end of its message and the beginning of
    its traceback, and ``"cut"`` has its full length.  It is never split: half a record is of
    no use, and two lines of one record could not be distinguished from two records.

    Args:
        head: time, seq, level and the fields of the origin; plain values.
        message: any text; newlines and lone surrogates are escaped as JSON has it.
        exception: a traceback.
        extra: fields of the application.  A value that JSON cannot hold is replaced by its
            repr(); a reserved name gets a ``_`` behind it.
        limit: bytes; at least 1024.
    """
    body: dict[str, Any] = {**head, "message": message}
    if exception:
        body["exception"] = exception
    if extra:
        body.update((_free_name(str(name)), value) for name, value in extra.items())
    line = _dump(body)
    if len(line) < limit:
        return line + b"\n"
    short = {k: v[:_MAX_NAME] if isinstance(v, str) else v for k, v in head.items()}
    short["cut"] = len(line) + 1
    space = limit - len(_dump(short)) - len(b',"message":"","exception":""\n')
    half = space // 2 if exception else 0
    short["message"] = _cut(message, space - half)
    if exception:
        # The last lines have the exception that was raised, and its place.
        short["exception"] = _cut(exception[::-1], half)[::-1]
    return _dump(short) + b"\n"


def decode(line: bytes) -> Entry | None:
    """Decode a line without its newline; None if it is not a record."""
    try:
        body = json.loads(line)
        origin = Origin(
            component=str(body["component"]),
            worker=body.get("worker"),
            generation=body.get("generation"),
        )
        return Entry(
            time=time_ns(body["time"]),
            origin=origin,
            stream=str(body.get("stream", "log")),
            level=str(body.get("level", "")),
            line=line,
            lost=_lost(body.get("lost")),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def attribute(line: bytes, origin: Origin) -> Entry | None:
    """Make an entry of a record that a worker has written, whatever the record claims.

    The origin is the worker's, and the record is encoded anew: a field that occurs twice, or is
    written in another way, cannot mean one thing here and another to another reader.  What it
    claims to be and is not is in the field ``claimed``.

    Args:
        line: without its newline.
        origin: of the worker.

    Returns:
        None if the line is not a record.
    """
    if (entry := decode(line)) is None:
        return None
    body: dict[str, Any] = json.loads(line)
    true = origin.fields()
    message, exception = str(body.pop("message", "")), str(body.pop("exception", ""))
    parts: list[dict[str, Any]] = []
    for fields in (_BEFORE, _AFTER):
        found = {name: body.pop(name) for name in fields if type(body.get(name)) is fields[name]}
        parts.append(found)
    claimed = {
        name: body.pop(name)
        for name in ("component", "worker", "generation", "stream", *_BEFORE, *_AFTER)
        if name in body and body[name] != true.get(name)
    }
    claimed.pop("stream" if claimed.get("stream") == "log" else "", None)
    head = {**parts[0], **true, **parts[1], **({"claimed": claimed} if claimed else {})}
    extra = {name: value for name, value in body.items() if name not in true}
    made = encode(head, message, exception=exception, extra=extra)[:-1]
    return Entry(
        time=entry.time, origin=origin, stream="log", level=entry.level, line=made, lost=entry.lost
    )


def captured(origin: Origin, stream: str, ns: int, text: bytes, *, cut: int = 0) -> Entry:
    r"""Make an entry of a captured line.

    Args:
        origin: the worker.
        stream: "stdout" or "stderr".
        ns: the time at which the line was read.
        text: the line; bytes that are not UTF-8 become ``\xNN``.
        cut: length of the whole line in bytes, if it had more than these.
    """
    head = {"time": time_text(ns), **origin.fields(), "stream": stream}
    if cut:
        head["cut"] = cut
    head["message"] = text.decode("utf-8", "backslashreplace")
    return Entry(time=ns, origin=origin, stream=stream, level="", line=_dump(head))


def _lost(value: object) -> int:
    return min(max(value, 0), _MAX_LOST) if isinstance(value, int) else 0


def _free_name(name: str) -> str:
    return name + "_" if name in _OWN else name


def _dump(body: Mapping[Any, Any]) -> bytes:
    try:
        text = _encode(body)
    except (ValueError, TypeError, RecursionError):  # NaN, a loop, a key that is a tuple
        text = _encode({k: v if _is_plain(v) else repr(v) for k, v in body.items()})
    # Only a lone surrogate has no UTF-8, and its backslash form is JSON's own.
    return text.encode("utf-8", "backslashreplace")


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int)


def _cut(text: str, space: int) -> str:
    """Return the longest beginning, or nearly, that takes at most ``space`` bytes in JSON."""
    head = text[: max(space, 0)]
    while head and (size := len(_dump({"": head})) - len(b'{"":""}')) > space:
        head = head[: min(len(head) - 1, len(head) * space // size)]
    return head
