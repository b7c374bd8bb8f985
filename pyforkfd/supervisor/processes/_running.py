"""The processes of workers, by worker id."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pyforkfd as ff
from pyforkfd.supervisor._shortage import is_shortage
from pyforkfd.supervisor.cgroups._file import CgroupError
from pyforkfd.supervisor.cgroups._leaf import Leaf
from pyforkfd.supervisor.health._resident_memory import resident_memory
from pyforkfd.supervisor.spec._spec import Listener
from pyforkfd.supervisor.state._model import Worker
from pyforkfd.supervisor.worker._receiving import Refusals

from ._notify_socket import NotifySocket
from ._sockets import Key

log = logging.getLogger("pyforkfd.supervisor")


@dataclass(slots=True)
class Running:
    """A worker's process and what belongs to it.

    Attributes:
        worker: as the state had it when the process was started.
        process: owned.
        channel: our end; owned.
        notify: its NOTIFY_SOCKET; None: that of all workers of a predecessor; owned.
        listeners: inodes of its listening sockets.
        sockets: the keys of these, and what they were specified as; of lent shards too.
        leaf: its cgroup; owned.
        leaving: whether it was ordered or signalled to leave.
        status: the last status line that it reported.
        refusals: messages of its channel that were refused, counted and logged.
    """

    worker: Worker
    process: ff.Process
    channel: ff.FdChannel
    notify: NotifySocket | None
    listeners: frozenset[int]
    sockets: dict[Key, Listener]
    leaf: Leaf | None = None
    leaving: bool = False
    status: str = ""
    refusals: Refusals = field(init=False)

    def __post_init__(self) -> None:
        self.refusals = Refusals(self._report_refusal)

    def _report_refusal(self, text: str) -> None:
        component, worker_id = self.worker.component, self.worker.id
        log.warning("%s: worker %d: message refused: %s", component, worker_id, text)


class RunningWorkers(dict[int, Running]):
    """All workers that have a process: id -> process."""

    def memory(self, worker_id: int) -> int | None:
        """Measure the memory of a worker.

        Returns:
            Bytes: of its cgroup, else of its main process.  None: it has no process, or no
            descriptor is free to read it.
        """
        running = self.get(worker_id)
        if running is None:
            return None
        if running.leaf is not None:
            try:
                return running.leaf.working_set()
            except CgroupError:
                pass  # without the memory controller
        try:
            return resident_memory(running.process.pid)
        except OSError as error:
            if is_shortage(error):
                return None
            raise
