"""A look at the program that is to be executed in our place: it must show that it could."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

import pyforkfd as ff
from pyforkfd._fd import Fd

from ._durable_text import Record
from ._keeper import own_arguments
from ._succession import VARIABLE, variable

PATIENCE = 30.0  # seconds; imports and a look at the configuration
_LAST_WORDS = 2000  # bytes of its output that are worth the log


class Preflight:
    """The program, started beside us with all that it would find.

    It imports, reads and checks its configuration and the handover, and changes nothing.
    """

    def __init__(self, fds: Mapping[str, int], text: bytes) -> None:
        """Start it.

        Args:
            fds: name -> what it would inherit; borrowed.
            text: of the record: a copy, since we go on writing ours while it reads.

        Raises:
            SpawnError: it could not be started.
        """
        copy = Record()
        self.deadline = time.monotonic() + PATIENCE
        self._late = False
        self._proof = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._output = Fd(os.memfd_create("forkfd-preflight"))
        given = {**fds, "record": copy.fileno(), "preflight": self._proof.fileno()}
        try:
            copy.write(text)
            self._process = ff.spawn(
                own_arguments(),
                fds={
                    0: ff.DEVNULL,
                    1: self._output.fileno(),
                    2: self._output.fileno(),
                    **{number: number for number in given.values()},
                },
                env={**os.environ, VARIABLE: variable(given)},
                signal_mask=(),
                process_group=0,
                parent_death_signal=signal.SIGKILL,
                parent_death_scope="thread",
            )
        except BaseException:
            self._proof.close()
            self._output.close()
            raise
        finally:
            copy.close()

    def fileno(self) -> int:
        """Readable when it has ended; borrowed."""
        return self._process.fileno()

    def look(self) -> None:
        """End it if it takes too long."""
        if time.monotonic() >= self.deadline and not self._late:
            self._late = True
            self._process.kill()

    def why_not(self) -> str:
        """Of one that has ended: why it cannot take our place; empty if it can."""
        status = self._process.wait()
        if self._late:
            return f"the new program has not shown within {PATIENCE:g} s that it can take over"
        if status.success and self._proven():
            return ""
        size = os.fstat(self._output.fileno()).st_size
        words = os.pread(self._output.fileno(), _LAST_WORDS, max(0, size - _LAST_WORDS))
        said = words.decode(errors="replace").strip() or "it has said nothing"
        what = "has ended without a look at the handover" if status.success else str(status)
        return f"the new program cannot take over: {what}\n{said}"

    def _proven(self) -> bool:
        try:
            return os.eventfd_read(self._proof.fileno()) == 1
        except BlockingIOError:
            return False

    def close(self) -> None:
        """End it, and forget it."""
        self._process.kill()
        self._process.wait()
        self._process.close()
        self._proof.close()
        self._output.close()
