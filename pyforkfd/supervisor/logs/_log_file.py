"""The log file that all workers write to: opened, lent and rotated by the supervisor."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyforkfd._fd import Fd
from pyforkfd._trusted_paths import Directory, walk
from pyforkfd._types import StrPath

from ._log_reader import Reader
from ._log_turns import Turns
from ._torn_line import end_torn_line

_TRIES = 16  # to open a file twice that another program moves meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """An order to workers: write to another description from now on.

    Attributes:
        turn: how often the description was replaced; the worker confirms it.
        fd: descriptor to pass with it; borrowed from the LogFile, valid until its next turn.
        workers: ids of the workers to send it to.
    """

    turn: int
    fd: int
    workers: tuple[int, ...]


@dataclass(slots=True)
class _Old:
    """The file of an earlier turn, as long as it may have something to read."""

    turn: int
    reader: Reader
    until: float  # the end of the wait for workers that have not confirmed
    caught_up: bool = False  # it was read to its end: what is new is of a late worker


class LogFile:
    """One description with O_APPEND and O_CLOEXEC, which trusted workers share.

    A worker that has it may truncate the file, and change the flags for all: those that are not
    trusted write to a pipe instead.  The supervisor writes by a description of its own, and
    knows what it has written by its place in the file.

    **Rotation.**  A description keeps its file when that is renamed, so a worker writes to
    the old file until it has put the new one behind its descriptor (dup3(2), at once for all
    its threads) and has confirmed it.  A rotation waits for no worker: ``max_bytes`` and
    ``keep`` bound the disk whatever workers do.  Files of earlier turns stay open here, and
    :meth:`read` reads them in order, until no worker can have their description.  A record
    that is written to a file without a name, since it was removed by a rotation or by hand, is
    written again to the present file, so that none is lost.  After ``patience`` seconds a
    worker that has not confirmed is no longer waited for; what it writes afterwards is in its
    file, as long as that exists, and is not read.

    The path names a file at every moment but the one between two renames; a supervisor that
    dies there leaves the old file under ``PATH.1``, and loses nothing.

    **Trust.**  The file is opened, made and renamed below a directory that was walked to,
    :mod:`pyforkfd._trusted_paths`: what another user has put in its place is refused.

    No call waits for anything but the disk.  The clock is the caller's.

    Args:
        path: the file; made with its mode where it does not exist, else appended to.
        mode: permissions of a new file, less the umask.
        o_dsync: each write returns once its data is on the disk: O_DSYNC, open(2).
        max_bytes: :meth:`due` from this size on; None: never.
        keep: number of old files to retain: PATH.1 is the newest.
        patience: seconds that a worker may take to confirm.

    Raises:
        ValueError: a bound is out of its range.
        OSError: the file cannot be opened; the error names the path.

    Attributes:
        lost: count of the records that :meth:`write` could not write.
        error: the reason of the last one.
        unread: count of the workers' lines that :meth:`read` did not return, since their file
            was rotated away before it was read to its end.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        mode: int = 0o640,
        o_dsync: bool = False,
        max_bytes: int | None = None,
        keep: int = 5,
        patience: float = 30.0,
    ) -> None:
        if keep < 1 or patience < 0 or (max_bytes is not None and max_bytes < 1):
            raise ValueError(
                f"LogFile: max_bytes={max_bytes}, keep={keep}, patience={patience}: max_bytes "
                "and keep are at least 1, patience is not negative"
            )
        self.path = Path(os.fsdecode(path)).absolute()  # the directory may change
        self.lost = self.unread = 0
        self.error = ""
        self._torn = False  # the last write was cut short, and its line is not ended
        self._mode, self._max, self._keep, self._patience = mode, max_bytes, keep, patience
        self._flags = os.O_APPEND | os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        self._flags |= os.O_DSYNC if o_dsync else 0
        self._turns = Turns(patience)
        self._space = 0  # bytes until max_bytes, as far as we know without a system call
        with self._directory() as directory:
            self._fd, self._new = self._open(directory, self.path.name, 0)
        self._shared_flags = fcntl.fcntl(self._fd.fileno(), fcntl.F_GETFL)
        self._olds: list[_Old] = []  # oldest first
        self._new.skip_to_end()  # a supervisor before us has published that

    @property
    def turn(self) -> int:
        """How often the description was replaced."""
        return self._turns.current

    def fileno(self) -> int:
        """Return the workers' descriptor of the present turn; borrowed."""
        return self._fd.fileno()

    def write(self, line: bytes, *, counted: bool = True, own: bool = True) -> bool:
        """Write a record of the supervisor by one writev(2).  Never raises.

        Args:
            line: the record without its newline.
            counted: count it in ``lost`` if it cannot be written.
            own: :meth:`read` does not return it.

        Returns:
            Whether all of it was written.
        """
        parts = [b"\n", line, b"\n"] if self._torn else [line, b"\n"]
        size = sum(map(len, parts))
        fd = self._new.fileno()
        try:
            written = os.writev(fd, parts)
            if own:
                end = os.lseek(fd, 0, os.SEEK_CUR)  # where O_APPEND has put it
                self._new.skip(end - written, end)
        except OSError as error:  # ENOSPC and kin
            self.error = error.strerror or str(error)
        else:
            self._space -= written
            self._torn = False
            if written == size:
                return True
            self._torn = not end_torn_line(fd, b"".join(parts)[:written])
            self.error = f"write cut short at {written} of {size} bytes: disk full, or a limit"
        self.lost += counted
        return False

    def give(self, worker_id: int) -> int:
        """Register a worker that is started with the present description.

        Returns:
            :meth:`fileno`, for the spawn.
        """
        self._turns.add(worker_id)
        return self.fileno()

    def adopt(self, worker_id: int, now: float) -> None:
        """Register a worker of a supervisor before us, whose description is unknown.

        The worker is behind until it has confirmed; :meth:`next_switch` includes it.
        """
        self._turns.adopt(worker_id, now)

    def forget(self, worker_id: int) -> None:
        """Drop a worker that has ended; an unknown one is no error."""
        self._turns.forget(worker_id)

    def confirm(self, worker_id: int, turn: object) -> None:
        """Take a worker's confirmation of a turn.

        Args:
            worker_id: the worker.
            turn: the turn that it confirms, this or an older one.  The worker may be any
                program: a value that is no such turn confirms nothing.
        """
        self._turns.confirm(worker_id, turn)

    def behind(self) -> tuple[int, ...]:
        """Return the ids of the workers that still have an older description."""
        return self._turns.behind()

    def next_switch(self, now: float) -> Switch | None:
        """Return the order for workers that are behind, once for each of them and turn.

        A worker gets the next order when it has confirmed the last one or used up its time.

        Args:
            now: seconds of a clock that does not jump.

        Returns:
            The order; None if there is no worker to send it to.
        """
        if not (workers := self._turns.order(now)):
            return None
        return Switch(turn=self.turn, fd=self.fileno(), workers=workers)

    @property
    def is_full(self) -> bool:
        """Whether :meth:`due` is worth its system call, by what was written here."""
        return self._max is not None and self._space <= 0

    def due(self) -> bool:
        """Return whether to :meth:`rotate`: the file has ``max_bytes``.

        Raises:
            OSError: fstat(2) failed.
        """
        if self._max is None:
            return False
        self._space = self._max - os.fstat(self.fileno()).st_size
        return self._space <= 0

    def settled(self, now: float) -> bool:
        """Return whether the last turn is over.

        That is: every worker has confirmed or has used up its time, and the old files are read
        to their end.
        """
        return self._turns.settled(now) and not any(old.reader.pending() for old in self._olds)

    def rotate(self, now: float) -> None:
        """Rename PATH to PATH.1, that to PATH.2, ..., and go on in a new file.

        Args:
            now: as for :meth:`next_switch`.

        Raises:
            OSError: the new file cannot be made or renamed; the old one is still in use.
        """
        with self._directory() as directory:
            self._rotate(directory, now)

    def _rotate(self, directory: Directory, now: float) -> None:
        name = self.path.name
        coming = f"{name}.next"
        directory.unlink(coming)  # left by a supervisor that died
        # Made before anything is renamed: a full or read-only disk shows here.
        with _closed_on_error(self._open(directory, coming, os.O_EXCL)) as (fd, reader):
            behind = [o.reader for o in self._olds if not o.caught_up and o.reader.linked()]
            for number in range(self._keep - 1, 0, -1):
                with suppress(FileNotFoundError):
                    _rename(directory, f"{name}.{number}", f"{name}.{number + 1}")
            with suppress(FileNotFoundError):  # moved away by another program
                _rename(directory, name, f"{name}.1")
            _rename(directory, coming, name)
            # Records come faster than they are read: kept until then, files without a name
            # would fill the disk.
            removed = [reader for reader in behind if not reader.linked()]
            self.unread += sum(reader.drop() for reader in removed)
            self._take_turn(fd, reader, now)

    def removed(self) -> bool:
        """Return whether the present file has no name any more.

        Raises:
            OSError: fstat(2) failed.
        """
        return not self._new.linked()

    def reopen(self, now: float) -> bool:
        """Go on in the file that PATH means now, after ours was moved or removed.

        Args:
            now: as for :meth:`next_switch`.

        Returns:
            False if PATH is still our file.

        Raises:
            OSError: the file cannot be opened or made; ours is still in use.
        """
        with (
            self._directory() as directory,
            _closed_on_error(self._open(directory, self.path.name, 0)) as (fd, reader),
        ):
            if os.path.sameopenfile(fd.fileno(), self.fileno()):
                fd.close()
                reader.close()
                return False
            reader.skip_to_end()
            self._take_turn(fd, reader, now)
            return True

    def read(self, budget: int, now: float) -> list[bytes]:
        """Read the whole lines that workers wrote since the last call, without their newlines.

        Call it at intervals: a watch by inotify(7) would wake the loop for each write of each
        worker.  Lines of a file without a name are written to the present one, and returned
        when they are read from there.

        Args:
            budget: about how many bytes at most; the rest is for the next call.
            now: as for :meth:`next_switch`.

        Raises:
            OSError: pread(2) or fstat(2) failed.
        """
        # Ends are taken from the newest file to the oldest: what a worker wrote to a file
        # before it changed over is in there by the time its first record in the next is seen.
        in_use = self._turns.in_use()
        end = self._new.size()
        ends = [old.reader.size() for old in reversed(self._olds)][::-1]
        lines: list[bytes] = []
        for old, old_end in zip(list(self._olds), ends, strict=True):
            before = old.reader.at
            linked = old.reader.linked()
            for line in [] if linked else old.reader.own_lines():
                self.write(line)
            found = old.reader.lines(old_end, budget)
            if linked:
                lines += found
            else:
                for line in found:
                    self.write(line, own=False)
            if old.reader.pending():
                return lines
            old.caught_up = True
            budget -= old.reader.at - before
            if old.turn not in in_use or now >= old.until:
                # No worker has it any more: a rest without a newline is a torn record.
                old.reader.close()
                self._olds.remove(old)
        if not self._new.linked():  # nor is there another: what we wrote is lost
            self.lost += len(self._new.own_lines())
        return lines + self._new.lines(end, budget)

    def restore_flags(self) -> bool:
        """Restore O_APPEND and other flags that a worker has changed for all, fcntl(2).

        Returns:
            False if no worker had changed them.

        Raises:
            OSError: fcntl(2) failed.
        """
        if fcntl.fcntl(self.fileno(), fcntl.F_GETFL) == self._shared_flags:
            return False
        fcntl.fcntl(self.fileno(), fcntl.F_SETFL, self._shared_flags)
        return True

    def close(self) -> None:
        """Close all descriptors.  Workers that have the description write on."""
        self._fd.close()
        self._new.close()
        for old in self._olds:
            old.reader.close()
        self._olds.clear()

    def _directory(self) -> Directory:
        """Walk to the directory of the file, which others may have replaced meanwhile."""
        directory = walk(str(self.path.parent))
        try:
            directory.demand_lasting_names("the log")
        except BaseException:
            directory.fd.close()
            raise
        return directory

    def _open(self, directory: Directory, name: str, flags: int) -> tuple[Fd, Reader]:
        """Open a file for writing and, on a description of our own, for reading."""
        for _ in range(_TRIES):
            fd = Fd(directory.open_file(name, self._flags | flags, self._mode))
            try:
                flags_to_read = self._flags & ~(os.O_WRONLY | os.O_CREAT) | os.O_RDWR
                reader = Reader(directory.open_file(name, flags_to_read))
            except BaseException:
                fd.close()
                raise
            if os.path.sameopenfile(fd.fileno(), reader.fileno()):
                return fd, reader
            fd.close()  # moved by another program between the two
            reader.close()
        raise OSError(errno.EAGAIN, "is replaced all the time", str(self.path))

    def _take_turn(self, fd: Fd, reader: Reader, now: float) -> None:
        self._olds.append(_Old(self.turn, self._new, now + self._patience))
        self._new = reader
        self._fd.close()
        self._fd = fd
        self._torn = False
        self._space = 0
        self._turns.advance(now)


@contextmanager
def _closed_on_error(opened: tuple[Fd, Reader]) -> Iterator[tuple[Fd, Reader]]:
    try:
        yield opened
    except BaseException:
        for one in opened:
            one.close()
        raise


def _rename(directory: Directory, name: str, to: str) -> None:
    """Rename a file; a directory in its way, which no file replaces, is renamed before."""
    if directory.has_directory(to):
        directory.rename(to, f"{to}.{time.time_ns()}")
    directory.rename(name, to)
