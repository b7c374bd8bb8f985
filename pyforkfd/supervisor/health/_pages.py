"""The pages of workers: one for each, which no other worker can write to."""

from __future__ import annotations

import logging

from pyforkfd._closing import Closing
from pyforkfd._errors import PageError
from pyforkfd._fd import Fd
from pyforkfd._page import SharedPage, Slot
from pyforkfd.supervisor.succession._succession import Succession

log = logging.getLogger("pyforkfd.supervisor")

SLOT = 0
"""The slot of a worker in its page, which has no other."""
_SHARED = "page"  # of all workers together, as supervisors before us had it


class Pages(Closing):
    """The page of each worker.  A context manager.

    A worker can write to the whole page that it has, so no two workers have the same one.
    Workers of an older predecessor share a page, which is held until the last of them ends.

    Attributes:
        damaged: ids of adopted workers whose page is no page any more.
    """

    def __init__(self, succession: Succession) -> None:
        """Begin with the pages that a predecessor has left.

        Args:
            succession: has these, and gets ours; borrowed.
        """
        self._succession = succession
        self._pages: dict[int, SharedPage] = {}  # by worker id
        self.damaged: set[int] = set()
        self._generation = 0
        self._shared: SharedPage | None = None
        self._sharing: set[int] = set()  # ids of the workers that have the shared page
        self._shared_slots: dict[int, int] = {}  # worker id -> slot
        if (fd := succession.take(_SHARED)) is not None:
            try:
                self._shared = _adopt(fd)
            except PageError as error:
                log.error("the workers of the predecessor have no page: %s", error)
                succession.drop(_SHARED)
            else:
                succession.put(_SHARED, self._shared)
                found = enumerate(self._shared.snapshots())
                self._shared_slots = {snapshot.worker: slot for slot, snapshot in found}

    def make(self, worker_id: int) -> Slot | None:
        """Make the page of a worker that is about to be started.

        Returns:
            Its slot; None: there is no memory or descriptor for a page, and the worker is
            started without one.
        """
        try:
            page = SharedPage.create(SLOT + 1)
        except OSError as error:
            log.warning("worker %d: started without a page: %s", worker_id, error)
            return None
        page.generation = self._generation
        self._pages[worker_id] = page
        self._succession.put(_name(worker_id), page)
        return page.slot(SLOT)

    def adopt(self, worker_id: int) -> Slot | None:
        """Take over the page of a worker that a predecessor has started.

        Returns:
            Its slot; None: it has none, or its page is damaged.
        """
        if (fd := self._succession.take(_name(worker_id))) is not None:
            try:
                page = self._pages[worker_id] = _adopt(fd)
            except PageError as error:
                log.error("worker %d: %s", worker_id, error)
                self.damaged.add(worker_id)
                self._succession.drop(_name(worker_id))
                return None
            return page.slot(SLOT)
        if self._shared is None or (slot := self._shared_slots.get(worker_id)) is None:
            return None
        self._sharing.add(worker_id)
        return self._shared.slot(slot)

    def adopted_all(self) -> None:
        """Close the shared page, if no adopted worker has it."""
        if self._shared is not None and not self._sharing:
            self._succession.drop(_SHARED)
            self._shared.close()
            self._shared = None

    def is_shared(self, worker_id: int) -> bool:
        """Whether other workers can write to a worker's slot."""
        return worker_id in self._sharing

    def get(self, worker_id: int) -> SharedPage | None:
        """Return a worker's page; borrowed.  None: it has none of its own."""
        return self._pages.get(worker_id)

    def set_generation(self, generation: int) -> None:
        """Write the service's current generation, which workers read, to all pages."""
        if generation != self._generation:
            self._generation = generation
            for page in self._pages.values():
                page.generation = generation

    def forget(self, worker_id: int) -> None:
        """Close the page of a worker that has ended; its slot is still readable."""
        if (page := self._pages.pop(worker_id, None)) is not None:
            self._succession.drop(_name(worker_id))
            page.close()
        self.damaged.discard(worker_id)
        if worker_id in self._sharing:
            self._sharing.remove(worker_id)
            self.adopted_all()

    def close(self) -> None:
        """Close all pages."""
        for page in self._pages.values():
            page.close()
        self._pages.clear()
        if self._shared is not None:
            self._shared.close()


def _adopt(fd: Fd) -> SharedPage:
    """Adopt a predecessor's descriptor of a page; close it if it is none.

    Raises:
        PageError: it is none, such as after a worker has written to its header.
    """
    with fd:
        page = SharedPage(fd.fileno())
        fd.detach()
    return page


def _name(worker_id: int) -> str:
    return f"m{worker_id}"  # a memfd
