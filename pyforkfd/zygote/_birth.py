"""A worker on its way, as the application sees it."""

from __future__ import annotations

import os
import select
import signal
from typing import Any, Protocol

from pyforkfd import _core
from pyforkfd._errors import SpawnError, ThreadsError
from pyforkfd._fd import Fd
from pyforkfd._process import Process

from ._errors import ZygoteError
from ._messages import Kind, Received, Report, receive, send
from ._request import Request

_PATIENCE = 10.0  # seconds for a birth that nobody waits for any more
_A_MOMENT = 1.0  # between a killed zygote's last descriptor and its end


class Gone(Exception):
    """Whoever was asked, the zygote or an idle worker, ended before it knew of the request."""


class Maker(Protocol):
    """The zygote that the worker is asked of."""

    process: Process

    def last_born(self, serial: int) -> int:
        """The pid that the kernel wrote for this request, or 0: of a zygote that has ended."""


class Birth:
    """What is known of the worker, from three sides.

    The zygote tells its pid, the worker that it has started.  Either may be killed before it
    has spoken: then their pidfds tell, and the page in which the kernel itself wrote the pid.
    A worker made ahead is one whose request comes later, over the connection of its answers.

    Args:
        maker: has been asked for the worker, or is about to be.
        request: None for an idle worker, which gets one by :meth:`give`.
        serial: of what the zygote is asked.
        answers: where all of them tell; taken.
    """

    def __init__(self, maker: Maker, request: Request | None, serial: int, answers: Fd) -> None:
        self._maker = maker
        self._request = request
        self._serial = serial
        self._answers = answers
        self._silent = False  # everybody who could answer has closed
        self._started = False
        self._error: Exception | None = None
        self._none = False  # no worker was made, nor will be
        self._pid = 0
        self._pidfd: Fd | None = None

    @property
    def born(self) -> bool:
        """The zygote has made it."""
        return self._pidfd is not None

    @property
    def failed(self) -> bool:
        """It is not born, nor will be."""
        return self._pidfd is None and (self._none or self._silent or self._error is not None)

    def look(self) -> None:
        """Hear of an idle worker's birth, if there is anything to hear; does not wait."""
        if not self.born and not self.failed:
            self._step(0)

    def give(self, request: Request) -> None:
        """Hand an idle worker its request.

        Raises:
            Gone: it has ended.
        """
        self._request = request
        try:
            send(self._answers, Kind.SPAWN, request.body, request.fds)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone from None

    def wait(self) -> None:
        """Wait until the worker has started.

        Raises:
            Gone, SpawnError, ThreadsError, ZygoteError: there is no worker, and why.
        """
        while self._pidfd is None or not self._started:
            self._step(None)
            if self._error is not None:
                raise self._error

    def take(self) -> tuple[int, int]:
        """The pid and pidfd of a worker that has started; the caller owns them."""
        assert self._pidfd is not None
        self._answers.close()
        return self._pid, self._pidfd.detach()

    def end(self) -> None:
        """Nobody wants it any more: what was born, or still is, is killed and reaped."""
        with self._answers:
            while self._pidfd is None and not self._none:
                if not self._step(_PATIENCE):
                    return  # a stopped zygote
        if self._pidfd is not None and not self._pidfd.closed:
            with self._pidfd as pidfd:
                try:
                    signal.pidfd_send_signal(pidfd.fileno(), signal.SIGKILL)
                except ProcessLookupError:
                    pass
                _reaped(pidfd.fileno())

    def abandon(self) -> None:
        """Close what we have of it: nothing was asked, or it is our parent's."""
        self._answers.close()
        if self._pidfd is not None:
            self._pidfd.close()

    def _step(self, timeout: float | None) -> bool:
        """Wait for the next event; False: none came."""
        poll = select.poll()
        alive = self._maker.process if self._pidfd is None else self._pidfd
        poll.register(alive, select.POLLIN)
        if not self._silent:
            poll.register(self._answers, select.POLLIN)
        elif self._pidfd is None:
            timeout = _A_MOMENT
        ready = dict(poll.poll(None if timeout is None else timeout * 1000))
        if not self._silent and self._answers.fileno() in ready:
            self._hear()
        elif ready:
            if self._pidfd is None:
                self._zygote_ended()
            elif not self._started:
                self._error = ZygoteError(
                    f"the worker {self._pid} ended while it was born: "
                    f"{_reaped(self._pidfd.fileno())}"
                )
                self._pidfd.close()
        elif self._silent and self._pidfd is None:
            self._none = True
            self._error = ZygoteError("the zygote could not receive the worker's descriptors")
        return bool(ready)

    def _hear(self) -> None:
        try:
            answer = receive(self._answers)
        except ConnectionResetError:  # unix(7): closed with a message of ours in it, unread
            self._error = Gone()
            return
        if answer is None:
            self._silent = True
        elif isinstance(answer, Received) and answer.kind is Kind.BORN:
            self._pid = answer.body
            (self._pidfd,) = answer.fds
        elif self._request is None:  # whoever asks next is told why
            self._none = True
        elif isinstance(answer, Report):
            stage, subject, text = _core.failed(
                self._request.plan(), self._request.sources, answer.stage, answer.index
            )
            self._error = SpawnError(self._request.name, stage, answer.errno, subject, text)
        elif answer.kind is Kind.STARTED:
            self._started = True
        else:
            self._none = answer.kind is Kind.REFUSED
            self._error = _error(self._request.name, *answer.body)

    def _zygote_ended(self) -> None:
        if (pid := self._maker.last_born(self._serial)) == 0:
            self._none = True
            self._error = Gone()
        else:  # ours, and nobody has reaped it: the number means it
            self._pid, self._pidfd = pid, Fd(os.pidfd_open(pid))


def _reaped(pidfd: int) -> str:
    _core.wait_pidfd(pidfd, None)
    found = _core.reap(pidfd)
    if found is None or not found[0]:
        return "its status is lost"
    _, code, status, _ = found
    return f"exit code {status}" if code == 1 else f"killed by signal {status}"


def _error(name: str, kind: str, detail: Any) -> Exception:
    if kind == "stage":
        stage, err, subject, text = detail
        return SpawnError(name, stage, err, subject, text)
    if kind == "threads":
        return ThreadsError(detail)
    return ZygoteError(*detail)
