"""The cgroup of one worker: its memory, its OOM kills, and the kill of all its processes."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pyforkfd._closing import Closing
from pyforkfd._fd import Fd
from pyforkfd.supervisor.spec._limits import Resource

from ._file import CgroupError, flat_keyed, open_directory, read, write
from ._pressure import trigger


class Leaf(Closing):
    """The cgroup of one worker and all its descendants.  Made by a ``Tree``.

    No call blocks.  The files are opened relative to the directory's descriptor, so that a new
    cgroup of the same name is never mistaken for this one: after its removal calls fail with
    ENODEV or ENOENT.

    Attributes:
        name: of the directory.
        path: of the directory.
        missing: limits that could not be set, a sentence each.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.path = path
        self.missing: tuple[str, ...] = ()
        self._fd = open_directory(path)

    def fileno(self) -> int:
        """Return the directory's descriptor, for spawn's ``cgroup``; borrowed."""
        return self._fd.fileno()

    def procs(self) -> list[int]:
        """Return the pids of the cgroup and of those below, which a worker may have made."""
        return sorted({pid for path in self._tree() for pid in _procs(path)})

    def populated(self) -> bool:
        """Return whether the cgroup or one below has a process that is not a zombie."""
        return flat_keyed(self._read("cgroup.events"))["populated"] == 1

    def watch(self) -> Fd:
        """Open a descriptor that has POLLPRI when :meth:`populated` may have changed.

        Reading it to the end, from offset 0, arms it again.

        Returns:
            The descriptor; the caller owns it.

        Raises:
            CgroupError: the cgroup was removed.
        """
        path = self.path / "cgroup.events"
        try:
            fd = Fd(os.open(path.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fileno()))
        except OSError as error:
            raise CgroupError(error.errno or 0, "open", path) from None
        os.read(fd.fileno(), 4096)  # arms it: changes count from here
        return fd

    def kill(self) -> None:
        """Kill every process of the worker, daemons and other sessions too.

        By cgroup.kill (Linux 5.14).  On older kernels the processes are frozen, and killed one
        by one through pidfds; call it again while :meth:`populated`.  They end a moment after
        the return.

        Raises:
            CgroupError: the cgroup was removed, or a process of another user was not killed.
        """
        try:
            write(self.path / "cgroup.kill", "1", dir_fd=self.fileno())
        except CgroupError as error:
            if error.errno != errno.ENOENT:
                raise
            self._kill_each()

    def remove(self) -> bool:
        """Remove the cgroup and those below, and close the descriptor.

        Returns:
            False if a process is still there: nothing is closed then, so try again.

        Raises:
            CgroupError: rmdir(2) failed for another reason.
        """
        # First without looking below, which takes a descriptor: there may be none to spare.
        if not _rmdir(self.path):
            below = [path for path in self._tree() if path != self.path]
            if not all(map(_rmdir, reversed(below))) or not _rmdir(self.path):
                return False
        self.close()
        return True

    def close(self) -> None:
        """Close the descriptor; the cgroup and its processes stay."""
        self._fd.close()

    def memory_current(self) -> int:
        """Return the bytes charged to the cgroup, memory.current, page cache included.

        Raises:
            CgroupError: ENOENT, the cgroup has no memory controller.
        """
        return int(self._read("memory.current"))

    def working_set(self) -> int:
        """Return the bytes in use: memory.current less inactive_file.

        The page cache of files stays charged until the memory is needed elsewhere, so it is
        no sign of a worker that grows.

        Raises:
            CgroupError: ENOENT, the cgroup has no memory controller.
        """
        inactive = flat_keyed(self._read("memory.stat"))["inactive_file"]
        return max(0, self.memory_current() - inactive)

    def events(self) -> Mapping[str, int]:
        """Return how often limits were hit: low, high, max, oom, oom_kill, ..., and pids_max.

        From memory.events.local (Linux 5.2; memory.events before) and pids.events.  The counts
        of a missing controller are missing.
        """
        found: dict[str, int] = {}
        for name in ("memory.events.local", "memory.events"):
            try:
                found.update(flat_keyed(self._read(name)))
                break
            except CgroupError as error:
                if error.errno != errno.ENOENT:
                    raise
        try:
            found["pids_max"] = flat_keyed(self._read("pids.events"))["max"]
        except CgroupError as error:
            if error.errno != errno.ENOENT:
                raise
        return found

    def oom_kills(self) -> int | None:
        """Return how many processes of the cgroup the OOM killer has killed.

        The leaf is fresh for each worker, so a worker that died of SIGKILL while this count
        grew was killed for a shortage of memory, or together with one that was.  A group that
        is killed as one (``oom_group``) counts one of its processes twice.

        Returns:
            The count; None: unknown, as there is no memory controller.
        """
        return self.events().get("oom_kill")

    def pressure_trigger(
        self, resource: Resource, stall_us: int, window_us: int, *, full: bool = False
    ) -> Fd:
        """Make a trigger for waits of the cgroup's tasks that are longer than a bound.

        Args, result, errors and kernel versions: those of :func:`._pressure.trigger`.
        """
        return trigger(self.path, resource, stall_us, window_us, full=full, dir_fd=self.fileno())

    def __repr__(self) -> str:
        return f"<Leaf {self.path}>"

    def _read(self, name: str) -> str:
        return read(self.path / name, dir_fd=self.fileno())

    def _tree(self) -> Iterator[Path]:
        """Return the cgroup and those below, parents first, as they are at this moment."""
        for directory, _, _ in os.walk(self.path):
            yield Path(directory)

    def _kill_each(self) -> None:
        write(self.path / "cgroup.freeze", "1", dir_fd=self.fileno())
        try:
            killed: set[int] = set()
            # Freezing takes a moment, in which they may fork.  A killed process leaves the list
            # or is in the set, so this ends when no new one has come.
            while fresh := set(self.procs()) - killed:
                _kill(fresh, self)
                killed |= fresh
        finally:
            write(self.path / "cgroup.freeze", "0", dir_fd=self.fileno())


def _rmdir(path: Path) -> bool:
    """Remove one cgroup; return False if something is in it."""
    try:
        path.rmdir()
    except FileNotFoundError:
        pass  # removed by the worker meanwhile
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise CgroupError(error.errno or 0, "remove the cgroup", path) from None
    return True


def _kill(pids: Iterable[int], leaf: Leaf) -> None:
    pidfds: dict[int, int] = {}
    try:
        for pid in pids:
            try:
                pidfds[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                pass
        current = set(leaf.procs())  # without a pid that was reused meanwhile
        for pid, pidfd in pidfds.items():
            if pid in current:
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    pass
    except OSError as error:
        raise CgroupError(error.errno or 0, "kill the processes of", leaf.path) from None
    finally:
        for pidfd in pidfds.values():
            os.close(pidfd)


def _procs(path: Path) -> list[int]:
    try:
        return [int(pid) for pid in read(path / "cgroup.procs").split()]
    except CgroupError as error:
        # Removed since it was listed; or threaded, then a parent's list has the processes.
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return []
        raise
