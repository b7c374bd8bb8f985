"""A worker from request to start, as the application observes it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import Any, Protocol

from pyforkfd import _core
from pyforkfd._errors import PassingError, SpawnError, ThreadsError
from pyforkfd._fd import Fd
from pyforkfd._passing import pass_credentials
from pyforkfd._process import TRACER_PAUSE, Process, exit_status
from pyforkfd._types import ExitStatus

from ._errors import ZygoteError
from ._messages import Kind, ProtocolError, Received, Report, receive, send
from ._request import Request

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.2  # seconds until a worker is continued again
_DISCARD_TIMEOUT = 10.0  # seconds for a birth that is not waited for any more
_END_TIMEOUT = 1.0  # seconds between a killed zygote's last descriptor and its end


class RequestLost(Exception):
    """The zygote, or an idle worker, ended before it received the request."""


class Maker(Protocol):
    """The zygote that makes the worker."""

    process: Process

    def last_born(self, serial: int) -> int:
        """Return the pid that the kernel wrote for this request, or 0.

        To be called for a zygote that has ended.
        """


class Birth:
    """The state of a worker's birth, from three sources.

    The zygote sends the pid; the worker reports that it has started.  Either may be killed
    before it has sent anything: then their pidfds become readable, and the pid is in the page
    in which the kernel itself wrote it.  A worker made ahead receives its request later, over
    the connection of its answers.

    Args:
        maker: the zygote that the request is sent to.
        request: None for an idle worker, which gets one by :meth:`assign`.
        serial: number of the request to the zygote.
        answers: connection on which zygote and worker answer; taken.
    """

    def __init__(self, maker: Maker, request: Request | None, serial: int, answers: Fd) -> None:
        self._maker = maker
        self._request = request
        self._serial = serial
        self._answers = answers
        pass_credentials(answers)
        self._closed = False  # all other ends of the connection are
        self._started = False
        self._error: Exception | None = None
        self._refused = False  # no worker was made, nor will be
        self._pid = 0
        self._pidfd: Fd | None = None

    @property
    def born(self) -> bool:
        """Whether the zygote has made the worker."""
        return self._pidfd is not None

    @property
    def failed(self) -> bool:
        """Whether the worker is not born, nor will be."""
        return self._pidfd is None and (self._refused or self._closed or self._error is not None)

    def poll(self) -> None:
        """Receive the news of an idle worker's birth, if there is any; do not wait."""
        if not self.born and not self.failed:
            self._step(0)

    def assign(self, request: Request) -> None:
        """Send an idle worker its request.

        Raises:
            RequestLost: the worker has ended.
        """
        self._request = request
        try:
            send(self._answers, Kind.SPAWN, request.body, request.fds)
        except (BrokenPipeError, ConnectionResetError):
            raise RequestLost from None

    def wait(self, patience: float | None = None) -> None:
        """Wait until the worker has started.

        A worker with its new user may be stopped by any process of that user, and is continued
        as often as it is.

        Args:
            patience: seconds that it may take; None: without end.

        Raises:
            RequestLost, SpawnError, ThreadsError, ZygoteError: there is no worker, and why.
        """
        deadline = None if patience is None else time.monotonic() + patience
        pause = _SHORTEST_PAUSE
        while self._pidfd is None or not self._started:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise ZygoteError(f"the worker has not started within {patience:g} s")
            if self._request is not None and self._request.changes_user:
                left = pause if left is None else min(left, pause)
            if not self._step(left):
                self._continue()
                pause = min(2 * pause, _LONGEST_PAUSE)
            if self._error is not None:
                raise self._error

    def _continue(self) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd.fileno(), signal.SIGCONT)

    def take(self) -> tuple[int, int]:
        """Return pid and pidfd of a worker that has started; the caller owns them."""
        assert self._pidfd is not None
        self._answers.close()
        return self._pid, self._pidfd.detach()

    def discard(self) -> None:
        """Kill and reap the worker, if it is born or still will be."""
        end = time.monotonic() + _DISCARD_TIMEOUT
        with self._answers:
            while self._pidfd is None and not self._refused:
                if not self._step(max(0.0, end - time.monotonic())):
                    return  # a stopped zygote, or a worker that never ends sending
        if self._pidfd is not None and not self._pidfd.closed:
            with self._pidfd as pidfd:
                try:
                    signal.pidfd_send_signal(pidfd.fileno(), signal.SIGKILL)
                except ProcessLookupError:
                    pass
                _reap(pidfd.fileno())

    def abandon(self) -> None:
        """Close our descriptors of a worker that was never requested, or is our parent's."""
        self._answers.close()
        if self._pidfd is not None:
            self._pidfd.close()

    def _step(self, timeout: float | None) -> bool:
        """Wait for the next event and handle it; return False if none came."""
        poll = select.poll()
        alive = self._maker.process if self._pidfd is None else self._pidfd
        poll.register(alive, select.POLLIN)
        if not self._closed:
            poll.register(self._answers, select.POLLIN)
        elif self._pidfd is None:
            timeout = _END_TIMEOUT
        ready = dict(poll.poll(None if timeout is None else timeout * 1000))
        if not self._closed and self._answers.fileno() in ready:
            self._receive()
        elif ready:
            if self._pidfd is None:
                self._zygote_ended()
            elif not self._started:
                status = _reap(self._pidfd.fileno())
                self._error = ZygoteError(
                    f"the worker {self._pid} ended while it was born: {status}"
                )
                self._pidfd.close()
        elif self._closed and self._pidfd is None:
            self._refused = True
            self._error = ZygoteError("the zygote could not receive the worker's descriptors")
        return bool(ready)

    def _receive(self) -> None:
        try:
            answer = receive(self._answers, upward=True)
            self._accept(answer)
        except ConnectionResetError:  # unix(7): closed with a message of ours in it, unread
            self._error = RequestLost()
        except PassingError as error:  # no descriptor is free here for the pidfd
            self._lose(error, self._maker.last_born(self._serial))
        except (ProtocolError, TypeError, ValueError, IndexError) as error:
            self._error = ZygoteError(f"an answer that no worker of ours sends: {error}")

    def _accept(self, answer: Received | Report | None) -> None:
        if answer is None:
            self._closed = True
        elif isinstance(answer, Received) and answer.kind is Kind.BORN:
            # Zygote and worker share this end, and the worker may be another user's.
            if answer.sender != self._maker.process.pid:
                raise ProtocolError("a worker's pid from another than its zygote")
            self._pid = answer.body
            (self._pidfd,) = answer.fds
        elif self._request is None:  # the reason is raised by the next request
            self._refused = True
        elif isinstance(answer, Report):
            stage, subject, text = _core.failed(
                self._request.plan(), self._request.sources, answer.stage, answer.index
            )
            self._error = SpawnError(self._request.name, stage, answer.errno, subject, text)
        elif answer.kind is Kind.STARTED:
            self._started = True
        else:
            self._refused = answer.kind is Kind.REFUSED
            self._error = _error(self._request.name, *answer.body)

    def _zygote_ended(self) -> None:
        if (pid := self._maker.last_born(self._serial)) == 0:
            self._refused = True
            self._error = RequestLost()
            return
        try:  # our child, not yet reaped: the number cannot mean another
            self._pid, self._pidfd = pid, Fd(os.pidfd_open(pid))
        except OSError as error:
            self._lose(error, pid)

    def _lose(self, error: OSError, pid: int) -> None:
        """End a worker without a pidfd, which nobody could wait for; 0: there is none."""
        self._refused, self._error = True, error
        if pid != 0:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)  # our child, not yet reaped
                os.waitpid(pid, 0)


def _reap(pidfd: int) -> ExitStatus:
    _core.wait_pidfd(pidfd, None)
    while (reaped := _core.reap(pidfd)) is None:
        time.sleep(TRACER_PAUSE)  # its tracer reaps it first
    return exit_status(reaped)


def _error(name: str, kind: str, detail: Any) -> Exception:
    if kind == "stage":
        stage, err, subject, text = detail
        return SpawnError(name, stage, err, subject, text)
    if kind == "threads":
        threads, remedy = detail
        return ThreadsError({int(thread): text for thread, text in threads.items()}, remedy)
    return ZygoteError(*detail)
