"""The supervisor's side of Loki: entries go to a process of their own, and never wait."""

from __future__ import annotations

import collections
import json
import signal
import socket
import sys
from pathlib import Path

from pyforkfd._process import Process
from pyforkfd._spawn import spawn
from pyforkfd.supervisor.spec._spec import Loki

from ._loki_push import item, to_json
from ._records import Entry

_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from pyforkfd.supervisor.logs._loki_sender import main; main()"
)
_ROOT = str(Path(__file__).parents[3])
_CHUNK = 1 << 16


class LokiSink:
    """Gives entries to a sender process, which is started here and talks to Loki.

    ``add()`` and ``handle()`` never wait.  What the sender has not taken waits here, up to
    ``config.buffer`` bytes; beyond that the oldest are dropped and counted.  Beside it there is the
    batch of the sender and what its socket holds.

    The sender ends when this end is closed, so also when the supervisor is killed; it
    tries for some seconds to send what it has.

    Args:
        config: where Loki is, and the bound of what waits here.

    Raises:
        SpawnError, OSError: the sender cannot be started.

    Attributes:
        process: the sender; its pidfd is to be waited for as any child's.
        down: the sender has died; :meth:`restart` makes another.
        sent: entries that Loki has taken.
        dropped: entries that are lost: no room here, refused by Loki or tried too often,
            or with a sender that died.
        retries: failed tries that were followed by another.
        error: what the last one that failed said.
    """

    def __init__(self, config: Loki) -> None:
        self._config = config
        self._queue: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._at = 0  # how much of the first item is written
        self._taken = 0  # items that the sender has, and has not reported on
        self._heard = b""
        self.sent = self.dropped = self.retries = 0
        self.error = ""
        self._finishing = False
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                ours.setblocking(False)
                # An empty buffer has room for the configuration.
                ours.sendall(to_json(self._config).encode() + b"\n")
                self.process: Process = spawn(
                    [sys.executable, "-P", "-c", _CODE, _ROOT],
                    fds={0: theirs, 1: 2},
                    # Those of a terminal or a group reach it too, but what the workers say
                    # while they end is to be sent: the end of the link is what ends it.
                    ignore_signals=(signal.SIGINT, signal.SIGTERM),
                    signal_mask=(),
                )
            except BaseException:
                ours.close()
                raise
        self._link = ours
        self.down = False

    def fileno(self) -> int:
        """Our end: readable with reports, and to be waited for EPOLLOUT if wants_write."""
        return self._link.fileno()

    @property
    def wants_write(self) -> bool:
        """Entries wait for the sender to have room."""
        return bool(self._queue) and not self.down

    @property
    def waiting(self) -> int:
        """Entries that are neither sent nor dropped."""
        return len(self._queue) + self._taken

    def add(self, entry: Entry) -> None:
        """Send an entry, some time."""
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
        """Write what there is room for, read reports; to be called when the loop says so."""
        if not self.down:
            self._read()
        if not self.down:
            self._write()

    def restart(self) -> None:
        """Start another sender in place of one that has died; ``fileno()`` is another then.

        Raises:
            SpawnError, OSError: it cannot be started; ``down`` stays.
        """
        if not self.down:
            raise ValueError("restart: the sender has not died")
        self._bury()
        self._start()

    def finish(self) -> None:
        """No more entries: the sender is to send what it has, and end.

        What does not fit into the socket at once is dropped and counted; ``handle()`` until
        ``wants_write`` is false leaves nothing.  Wait for ``process`` afterwards, and
        ``handle()`` what it reports, before ``close()``.
        """
        self._finishing = True
        if not self.down:
            self.handle()
        self._drop_queue()
        if not self.down:
            self._link.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the sender, now if it has not ended, and free everything."""
        self._finishing = True
        self._drop_queue()
        self._mark_down()
        self._bury()

    def _write(self) -> None:
        while self._queue:
            # Joined, as one send for each entry would cost more than all the rest.
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
            *reports, self._heard = (self._heard + data).split(b"\n")
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
        self._heard = b""
        self._at = 0  # the next sender gets the first item whole
        self.dropped += self._taken
        self._taken = 0

    def _bury(self) -> None:
        # It has closed its end, so that it is about to end if it has not.
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self.process.close()

    def _drop_queue(self) -> None:
        self.dropped += len(self._queue)
        self._queue.clear()
        self._bytes = self._at = 0
