"""The supervisor's side of Loki: a sink that queues entries for a sender process."""

from __future__ import annotations

import collections
import json
import signal
import socket
import sys
from pathlib import Path

from pyforkfd._process import Process
from pyforkfd._spawn import spawn
from pyforkfd.supervisor._shortage import child_limits
from pyforkfd.supervisor.spec._spec import Loki

from ._loki_push import item, to_json
from ._records import Entry

_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from pyforkfd.supervisor.logs._loki_sender import main; main()"
)
_ROOT = str(Path(__file__).parents[3])
_CHUNK = 1 << 16


_OF_A_GROUP = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


class LokiSink:
    """A sink that passes entries to a sender process, which it starts.

    ``add()`` and ``handle()`` never wait.  Entries that the sender has not taken are queued
    here, up to ``config.buffer`` bytes; beyond that the oldest are dropped and counted.
    Besides, the sender has its batch, and the socket between them its buffer.

    The sender ends when this end is closed, so also when the supervisor is killed; it
    tries for some seconds to send what it has.

    Args:
        config: the address of Loki, and the bound of the queue.

    Raises:
        SpawnError, OSError: the sender cannot be started.

    Attributes:
        name: for reports and metrics.
        process: the sender; wait for its pidfd as for any child's.
        down: whether the sender has died; :meth:`restart` makes another.
        sent: count of the entries that Loki has taken.
        dropped: count of the entries that are lost: the queue was full, Loki refused them,
            the tries were used up, or the sender died with them.
        retries: count of the failed tries that were followed by another.
        error: the reason of the last failed try.
    """

    name = "loki"

    def __init__(self, config: Loki) -> None:
        self._config = config
        self._queue: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._at = 0  # bytes of the first item that are written
        self._taken = 0  # items that the sender has, and has not reported on
        self._unparsed = b""  # of the reports: a line without its end
        self.sent = self.dropped = self.retries = 0
        self.error = ""
        self._finishing = False
        self._start()

    def _start(self) -> None:
        link, sender_end = socket.socketpair()
        with sender_end:
            try:
                link.setblocking(False)
                # The empty buffer of a new socket takes the whole configuration.
                link.sendall(to_json(self._config).encode() + b"\n")
                self.process: Process = spawn(
                    [sys.executable, "-P", "-c", _CODE, _ROOT],
                    fds={0: sender_end, 1: 2},
                    # Signals to a terminal's or a process group reach the sender too, but the
                    # last records of the workers must be sent: only the end of the link ends it.
                    ignore_signals=_OF_A_GROUP,
                    default_signals=range(1, signal.NSIG),
                    signal_mask=(),
                    rlimits=child_limits(),
                )
            except BaseException:
                link.close()
                raise
        self._link = link
        self.down = False

    def fileno(self) -> int:
        """Return our end: readable with reports; wait for EPOLLOUT while :attr:`wants_write`."""
        return self._link.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether the queue has something for the sender."""
        return bool(self._queue) and not self.down

    @property
    def trouble(self) -> str:
        """The reason of the last loss."""
        return self.error or "the sender is slow or has died"

    @property
    def waiting(self) -> int:
        """Count of the entries that are neither sent nor dropped."""
        return len(self._queue) + self._taken

    def add(self, entry: Entry) -> None:
        """Queue an entry."""
        if self._finishing:
            self.dropped += 1
            return
        one = item(entry, self._config)
        self._queue.append(one)
        self._bytes += len(one)
        while self._bytes > self._config.buffer and len(self._queue) > 1:
            at = 1 if self._at else 0  # the rest of one that is partly written must follow
            self._bytes -= len(self._queue[at])
            del self._queue[at]
            self.dropped += 1

    def handle(self) -> None:
        """Read reports and write as much of the queue as fits; call it when ready."""
        if not self.down:
            self._read()
        if not self.down:
            self._write()

    def restart(self) -> None:
        """Start another sender in place of one that has died; ``fileno()`` changes.

        Raises:
            ValueError: the sender has not died.
            SpawnError, OSError: the sender cannot be started; ``down`` stays.
        """
        if not self.down:
            raise ValueError("restart: the sender has not died")
        self._reap()
        self._start()

    def finish(self) -> None:
        """End the input: the sender sends what it has, and ends.

        What does not fit into the socket at once is dropped and counted; nothing is, if
        ``handle()`` was called until ``wants_write`` was false.  Wait for ``process``
        afterwards, and ``handle()`` its reports, before ``close()``.
        """
        self._finishing = True
        if not self.down:
            self.handle()
        self._drop_queue()
        if not self.down:
            self._link.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Kill the sender if it has not ended, reap it, and free everything."""
        self._finishing = True
        self._drop_queue()
        self._mark_down()
        self._reap()

    def _write(self) -> None:
        while self._queue:
            # Joined, as one send(2) for each entry would cost more than all the rest.
            part = bytearray()
            for one in self._queue:
                part += one
                if len(part) >= _CHUNK:
                    break
            try:
                written = self._link.send(memoryview(part)[self._at :])
            except BlockingIOError:
                return
            except ConnectionError:
                self._mark_down()
                return
            self._at += written
            while self._queue and self._at >= len(self._queue[0]):
                size = len(self._queue.popleft())
                self._at -= size
                self._bytes -= size
                self._taken += 1

    def _read(self) -> None:
        while True:
            try:
                data = self._link.recv(_CHUNK)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self._mark_down()
                return
            *reports, self._unparsed = (self._unparsed + data).split(b"\n")
            for text in reports:
                report = json.loads(text)
                sent, dropped = report.get("sent", 0), report.get("dropped", 0)
                self.sent += sent
                self.dropped += dropped
                self._taken -= sent + dropped
                self.retries += report.get("retries", 0)
                self.error = report.get("why", self.error)

    def _mark_down(self) -> None:
        if self.down:
            return
        self.down = True
        self._link.close()
        self._unparsed = b""
        self._at = 0  # the next sender gets the first item whole
        self.dropped += self._taken
        self._taken = 0

    def _reap(self) -> None:
        # The link is closed, so the sender is about to end if it has not.
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self.process.close()

    def _drop_queue(self) -> None:
        self.dropped += len(self._queue)
        self._queue.clear()
        self._bytes = self._at = 0
