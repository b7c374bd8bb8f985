"""The trial of the program that is to take over: it has to prove that it can."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack

import pyforkfd as ff
from pyforkfd._fd import Fd
from pyforkfd.supervisor._shortage import environment

from ._durable_text import Record
from ._keeper import own_arguments
from ._succession import VARIABLE, variable

PATIENCE = 30.0  # seconds; for imports and the configuration
_LONGEST_OUTPUT = 2000  # bytes of the end of its output that are logged


class Preflight:
    """The new program, started beside this one with everything that it would inherit.

    It imports, reads and checks its configuration and the handover, and changes nothing.
    """

    def __init__(self, fds: Mapping[str, int], text: bytes) -> None:
        """Start the program.

        Args:
            fds: name -> descriptor that it would inherit; borrowed.
            text: the record's, which is copied: this program goes on writing its own.

        Raises:
            SpawnError: the program cannot be started.
        """
        self.deadline = time.monotonic() + PATIENCE
        self._late = False
        with ExitStack() as on_failure, Record() as copy:
            self._proof = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            on_failure.enter_context(self._proof)
            self._output = Fd(os.memfd_create("forkfd-preflight"))
            on_failure.enter_context(self._output)
            inherited = {**fds, "record": copy.fileno(), "preflight": self._proof.fileno()}
            copy.write(text)
            self._process = ff.spawn(
                own_arguments(),
                fds={
                    0: ff.DEVNULL,
                    1: self._output.fileno(),
                    2: self._output.fileno(),
                    **{fd: fd for fd in inherited.values()},
                },
                env={**os.environ, **environment(), VARIABLE: variable(inherited)},
                signal_mask=(),
                process_group=0,
                parent_death_signal=signal.SIGKILL,
                parent_death_scope="thread",
            )
            on_failure.pop_all()

    def fileno(self) -> int:
        """Return a descriptor that is readable when the program has ended; borrowed."""
        return self._process.fileno()

    def look(self) -> None:
        """Kill the program if its time is over."""
        if time.monotonic() >= self.deadline and not self._late:
            self._late = True
            self._process.kill()

    def why_not(self) -> str:
        """Return why the program, which has ended, cannot take over; empty: it can."""
        status = self._process.wait()
        if self._late:
            return f"the new program has not proved within {PATIENCE:g} s that it can take over"
        if status.success and self._proven():
            return ""
        size = os.fstat(self._output.fileno()).st_size
        output = os.pread(self._output.fileno(), _LONGEST_OUTPUT, max(0, size - _LONGEST_OUTPUT))
        written = output.decode(errors="replace").strip() or "(no output)"
        what = "has ended without reading the handover" if status.success else str(status)
        return f"the new program cannot take over: {what}\n{written}"

    def _proven(self) -> bool:
        try:
            return os.eventfd_read(self._proof.fileno()) == 1
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Kill the program, reap it, and close its descriptors."""
        self._process.kill()
        self._process.wait()
        self._process.close()
        self._proof.close()
        self._output.close()
