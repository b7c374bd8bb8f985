"""A worker's side of logging: stdlib handler, structlog processor, orders for the log."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn

from pyforkfd._types import HasFileno
from pyforkfd.supervisor.logs._record_writer import RecordWriter
from pyforkfd.supervisor.logs._records import Origin

from ._identity import VARIABLE, identify
from ._messages import BufferLogs, FlushLogs, LogSwitched, SwitchLog
from ._protocol import event_body, is_order, order_of

# Attributes of every record; the rest are fields of ``extra``.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def log_writer(environment: Mapping[str, str] | None = None) -> RecordWriter | None:
    """Return the writer of this worker, from FORKFD_WORKER; None if it was given no log.

    From os.environ it is the same one each time: the numbers of its records are those of
    the process.

    Args:
        environment: None: os.environ.

    Raises:
        ValueError: FORKFD_WORKER is malformed, or the supervisor has another version of the
            protocol.
        OSError: the descriptor that it names is not open.
    """
    if environment is None:
        return _own_writer(os.environ.get(VARIABLE, ""))
    return _make_writer(environment.get(VARIABLE, ""))


def _make_writer(text: str) -> RecordWriter | None:
    if not text:
        return None
    identity = identify(text)
    if identity.log is None:
        return None
    origin = Origin(
        component=identity.component, worker=identity.worker_id, generation=identity.generation
    )
    try:
        return RecordWriter(identity.log, origin)
    except OSError as error:
        reason = f"{VARIABLE}: log={identity.log}: {error.strerror}"
        raise OSError(error.errno, reason) from None


# By its text, as a zygote may have called this before it became a worker.
_own_writer = functools.lru_cache(maxsize=1)(_make_writer)


class ForkfdHandler(logging.Handler):
    """A handler that writes records of :mod:`logging` to the supervisor's log.

    The time in a record is that of its write, nanoseconds after that of LogRecord: before
    Python 3.13 the latter has no more than microseconds.  Fields given as ``extra`` are
    fields of the record.  ``flush()`` does not write buffered records, as
    other handlers call it often; ``close()``, and so logging.shutdown(), does.

    Args:
        writer: shared with other handlers of this process.
        level: as logging.Handler has it.
    """

    def __init__(self, writer: RecordWriter, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self.writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; an error is handled as logging.raiseExceptions demands."""
        try:
            extra = {k: v for k, v in vars(record).items() if k not in _USUAL}
            self.writer.write(
                record.levelname,
                record.getMessage(),
                number=record.levelno,
                logger=record.name,
                exception=_exception_of(record),
                extra=extra,
            )
        except Exception:  # as logging's own handlers: a log must not end the application
            self.handleError(record)

    def close(self) -> None:
        """Write the buffered records.  The descriptor is borrowed and stays open."""
        try:
            self.writer.flush()
        except OSError:  # closed already; logging.shutdown() could report it nowhere
            pass
        super().close()


class StructlogProcessor:
    """A structlog processor, the last of its chain, that writes to the supervisor's log.

    ``event`` becomes the message, ``exc_info`` a traceback, everything else a field.
    The event ends here, so the logger behind the chain writes nothing.  Needs structlog.

    Args:
        writer: shared with other handlers of this process.

    Raises:
        ImportError: structlog is not installed.
    """

    def __init__(self, writer: RecordWriter) -> None:
        from structlog import DropEvent

        self.writer = writer
        self._end = DropEvent

    def __call__(self, logger: Any, method_name: str, event_dict: Mapping[str, Any]) -> NoReturn:
        """Write an event, then raise DropEvent, which ends a structlog chain.

        An error is handled by logging.raiseExceptions: its traceback goes to stderr, or
        nowhere.
        """
        fields = dict(event_dict)
        try:
            level = str(fields.pop("level", method_name)).upper()
            level = {"WARN": "WARNING", "EXCEPTION": "ERROR", "FATAL": "CRITICAL"}.get(level, level)
            number = logging.getLevelName(level)
            exception = fields.pop("exception", "") or _traceback(fields.pop("exc_info", None))
            self.writer.write(
                level,
                str(fields.pop("event", "")),
                number=number if isinstance(number, int) else logging.INFO,
                logger=str(fields.pop("logger", "")),
                exception=str(exception),
                extra=fields,
            )
        except Exception:  # as ForkfdHandler.emit
            if logging.raiseExceptions and sys.stderr is not None:
                traceback.print_exc()
        raise self._end


def log_uncaught(writer: RecordWriter) -> None:
    """Log exceptions that end the process or a thread, after the buffered records.

    The hooks precede those in sys.excepthook and threading.excepthook, which are called too.
    """
    before, before_thread = sys.excepthook, threading.excepthook

    @functools.wraps(before)
    def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        try:
            if not issubclass(kind, KeyboardInterrupt):
                _write_uncaught(writer, "uncaught exception", value)
        finally:
            before(kind, value, trace)

    @functools.wraps(before_thread)
    def thread_hook(args: threading.ExceptHookArgs) -> None:
        try:
            if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
                name = args.thread.name if args.thread is not None else "?"
                _write_uncaught(writer, f"uncaught exception in thread {name}", args.exc_value)
        finally:
            before_thread(args)

    sys.excepthook, threading.excepthook = hook, thread_hook


def obey(
    writer: RecordWriter, order: Mapping[str, Any], fds: Sequence[int | HasFileno] = ()
) -> dict[str, Any] | None:
    """Follow an order of the supervisor's that concerns the log.

    Args:
        writer: this process's.
        order: a message of the channel, parsed.
        fds: the descriptors that came with it, borrowed; "log" needs one.

    Returns:
        The event to send back for "log", ``{"event": "log", "turn": N}``; None otherwise, also
        for an order that does not concern the log.

    Raises:
        ValueError: the order is malformed, or "log" came with another number of descriptors
            than one.
    """
    if not is_order(order):
        return None
    match order_of(order):
        case BufferLogs():
            writer.buffer()
        case FlushLogs():
            writer.buffer(False)
        case SwitchLog(turn):
            if len(fds) != 1:
                raise ValueError(f"order log: {len(fds)} descriptors: it has one")
            fd = fds[0]
            writer.replace(fd if isinstance(fd, int) else fd.fileno())
            return event_body(LogSwitched(turn))
    return None


def _write_uncaught(writer: RecordWriter, message: str, value: BaseException) -> None:
    text = "".join(traceback.format_exception(value))
    writer.write("CRITICAL", message, number=logging.CRITICAL, exception=text)


def _exception_of(record: logging.LogRecord) -> str:
    text = record.exc_text or (_traceback(record.exc_info) if record.exc_info else "")
    return f"{text}\n{record.stack_info}".strip() if record.stack_info else text


def _traceback(info: Any) -> str:
    """Return the text of an exc_info: True, an exception, or sys.exc_info()."""
    if isinstance(info, BaseException):
        return "".join(traceback.format_exception(info)).rstrip()
    if info is True:
        info = sys.exc_info()
    if isinstance(info, tuple) and len(info) == 3 and info[0] is not None:
        return "".join(traceback.format_exception(*info)).rstrip()
    return ""
