"""Reception at both ends of a worker's channel: messages, the end, refusals."""

from __future__ import annotations

import array
import errno
import fcntl
import select
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyforkfd._errors import PassingError

from ._protocol import ProtocolError

if TYPE_CHECKING:
    from pyforkfd._channel import FdChannel
    from pyforkfd._passing import Received

_FOR_NOW = (errno.ENOMEM, errno.ENOBUFS)
_BURST = 5  # refusals that are reported one by one in a window
_WINDOW = 10.0  # seconds


def receive(channel: FdChannel, timeout: float | None) -> Received | None:
    """Receive the next message.

    Args:
        channel: an end of the channel.
        timeout: seconds to wait; None: without end.

    Returns:
        None at the end of the connection: the other end is closed, and nothing that it sent
        is left.

    Raises:
        TimeoutError: no message came in time, or there is no memory to receive it now.
        ProtocolError: a message was empty, too long, or lost descriptors.  It is gone, its
            descriptors are closed, and the next call has the next message.
        OSError: recvmsg(2) failed.
    """
    reset = False
    while True:
        try:
            return channel.recv(timeout=timeout)
        except PassingError as error:
            raise ProtocolError(f"{error}: {error.data[:80]!r}") from error
        except ConnectionResetError:
            # The other end was closed with unread messages; those that it sent are still queued.
            if reset:
                return None
            reset = True
        except TimeoutError:
            raise
        except OSError as error:
            if error.errno in _FOR_NOW:
                raise TimeoutError(str(error)) from error
            raise
        except EOFError:
            if _has_ended(channel):
                return None
            raise ProtocolError("an empty message") from None


def _has_ended(channel: FdChannel) -> bool:
    """Whether a packet of no bytes was the end of the connection, not an empty message."""
    poll = select.poll()
    poll.register(channel, select.POLLRDHUP)
    if not poll.poll(0):
        return False
    queued = array.array("i", [0])
    fcntl.ioctl(channel.fileno(), termios.FIONREAD, queued)
    return queued[0] == 0  # bytes of all messages: unix(7)


class Refusals:
    """Reports of refused messages, limited in rate.

    The first five in ten seconds are reported one by one, the rest by their number.
    """

    __slots__ = ("_held", "_last", "_report", "_reported", "_until")

    def __init__(self, report: Callable[[str], None]) -> None:
        """Set where reports go.

        Args:
            report: writes one line to the log.
        """
        self._report = report
        self._reported = self._held = 0
        self._until = 0.0  # when the window ends
        self._last = ""

    def add(self, why: str, now: float) -> None:
        """Count a refused message, and report it where the window allows that.

        Args:
            why: the reason.
            now: seconds on a clock that does not go back.
        """
        self.flush(now)
        if now >= self._until:
            self._until = now + _WINDOW
            self._reported = 0
        if self._reported < _BURST:
            self._reported += 1
            self._report(why)
        else:
            self._held += 1
            self._last = why

    def flush(self, now: float, *, end: bool = False) -> None:
        """Report the number of those that were only counted, once their window is over.

        Args:
            now: as for :meth:`add`.
            end: report it before that: nothing follows.
        """
        if self._held and (end or now >= self._until):
            self._report(f"{self._held} more within {_WINDOW:g} s; the last: {self._last}")
            self._held = 0
