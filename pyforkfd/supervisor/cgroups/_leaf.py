"""The cgroup of one worker: what it uses, what it died of, and its end as a whole."""

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

    No call blocks.  Its files are reached through its descriptor, so one that is made anew
    under the same name is not mistaken for it: a removed one says ENODEV or ENOENT.

    Attributes:
        name: the directory's.
        path: the directory.
        missing: limits that could not be set, a sentence each.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.path = path
        self.missing: tuple[str, ...] = ()
        self._fd = open_directory(path)

    def fileno(self) -> int:
        """The directory's descriptor, as spawn's ``cgroup`` wants it; it stays this object's."""
        return self._fd.fileno()

    def procs(self) -> list[int]:
        """Pids of all that is in it and in cgroups below, which a worker may have made."""
        return sorted({pid for path in self._tree() for pid in _procs(path)})

    def populated(self) -> bool:
        """Whether a process that is not a zombie is in it or below: cgroup.events."""
        return flat_keyed(self._read("cgroup.events"))["populated"] == 1

    def watch(self) -> Fd:
        """A descriptor that has POLLPRI when :meth:`populated` may have changed.

        Reading it to the end, from offset 0, arms it again.

        Returns:
            The caller owns it.
        """
        path = self.path / "cgroup.events"
        try:
            fd = Fd(os.open(path.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fileno()))
        except OSError as error:
            raise CgroupError(error.errno or 0, "open", path) from None
        os.read(fd.fileno(), 4096)  # what is changed is counted from here
        return fd

    def kill(self) -> None:
        """SIGKILL to every process of the worker, daemons and other sessions too.

        By cgroup.kill (Linux 5.14).  Before, they are frozen and killed one by one through
        pidfds; call it again while :meth:`populated`.  They end a moment after it returns.

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
        """Remove it and those below, and close its descriptor.

        Returns:
            False where something is still in it: nothing is closed then, so try again.

        Raises:
            CgroupError: what else rmdir(2) says.
        """
        for path in reversed(list(self._tree())):
            try:
                path.rmdir()
            except FileNotFoundError:
                pass  # somebody was faster
            except OSError as error:
                if error.errno == errno.EBUSY:
                    return False
                raise CgroupError(error.errno or 0, "remove the cgroup", path) from None
        self.close()
        return True

    def close(self) -> None:
        """Close the descriptor; the cgroup and what is in it stay."""
        self._fd.close()

    def memory_current(self) -> int:
        """Bytes charged to it, memory.current, the page cache of files it used included.

        Raises:
            CgroupError: ENOENT, it has no memory controller.
        """
        return int(self._read("memory.current"))

    def working_set(self) -> int:
        """Bytes that it could not do without: memory.current less inactive_file.

        What it has read from files stays charged until somebody wants the memory, and so
        says nothing of a worker that grows.

        Raises:
            CgroupError: ENOENT, it has no memory controller.
        """
        idle = flat_keyed(self._read("memory.stat"))["inactive_file"]
        return max(0, self.memory_current() - idle)

    def events(self) -> Mapping[str, int]:
        """How often limits were hit: low, high, max, oom, oom_kill, ..., and pids_max.

        From memory.events.local (Linux 5.2; memory.events before) and pids.events.  Without a
        controller its counts are not there.
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
        """How many of its processes the kernel killed for want of memory.

        The leaf is fresh for each worker, so a worker that died of SIGKILL while this grew
        died of it, or together with it.  A group that is killed as one (``oom_group``) counts
        one of its processes twice.  None: there is no memory controller, so nobody knows.
        """
        return self.events().get("oom_kill")

    def pressure_trigger(
        self, resource: Resource, stall_us: int, window_us: int, *, full: bool = False
    ) -> Fd:
        """A descriptor with POLLPRI when its tasks waited for too long; the caller owns it.

        Args, errors and kernel versions: those of :func:`._pressure.trigger`.
        """
        return trigger(self.path, resource, stall_us, window_us, full=full, dir_fd=self.fileno())

    def __repr__(self) -> str:
        return f"<Leaf {self.path}>"

    def _read(self, name: str) -> str:
        return read(self.path / name, dir_fd=self.fileno())

    def _tree(self) -> Iterator[Path]:
        """It and the cgroups below, parents first, as they are at this moment."""
        for directory, _, _ in os.walk(self.path):
            yield Path(directory)

    def _kill_each(self) -> None:
        write(self.path / "cgroup.freeze", "1", dir_fd=self.fileno())
        try:
            killed: set[int] = set()
            # Freezing takes a moment, in which they may fork; what is killed is gone from the
            # list or in the set, so this ends when no new one has come.
            while fresh := set(self.procs()) - killed:
                _kill(fresh, self)
                killed |= fresh
        finally:
            write(self.path / "cgroup.freeze", "0", dir_fd=self.fileno())


def _kill(pids: Iterable[int], leaf: Leaf) -> None:
    pidfds: dict[int, int] = {}
    try:
        for pid in pids:
            try:
                pidfds[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                pass
        there = set(leaf.procs())  # a pid that was given anew meanwhile is not
        for pid, pidfd in pidfds.items():
            if pid in there:
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
        # Removed since it was listed; or threaded, then they are in the list of a parent.
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return []
        raise
