"""The log file that all workers write to: opened, lent and rotated by the supervisor."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyforkfd._fd import Fd
from pyforkfd._types import StrPath

from ._log_reader import Reader


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


class LogFile:
    """One description with O_APPEND and O_CLOEXEC, which the workers share.

    **Rotation.**  A description keeps its file when that is renamed, so a worker writes to
    the old file until it has put the new one behind its descriptor (dup3(2), at once for all
    its threads) and has confirmed it.  Until all have confirmed, the old file stays open
    here, :meth:`read` reads it, and no other rotation begins.  So no file that is written to
    is ever removed, and the records of one worker are read in their order.  A worker that
    does not confirm within ``patience`` seconds no longer delays the next rotation; what it
    writes afterwards is in the old file as long as that exists, and is not read.

    The path names a file at every moment but the one between two renames; a supervisor that
    dies there leaves the old file under ``PATH.1``, and loses nothing.

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
        turn: how often the description was replaced.
        lost: count of the records that :meth:`write` could not write.
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
        self.turn = self.lost = 0
        self._torn = False  # the last write was cut short
        self._mode, self._max, self._keep, self._patience = mode, max_bytes, keep, patience
        self._flags = os.O_APPEND | os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        self._flags |= os.O_DSYNC if o_dsync else 0
        self._turns: dict[int, int] = {}  # worker id -> the turn whose description it has
        self._began = 0.0  # when the last turn began
        self._fd, self._new = self._open(self.path, 0)
        self._old: Reader | None = None  # of the turn before, until that is over
        self._new.skip_to_end()  # a supervisor before us has published that

    def fileno(self) -> int:
        """Return the descriptor of the present turn; borrowed."""
        return self._fd.fileno()

    def write(self, line: bytes) -> bool:
        """Write a record of the supervisor by one writev(2).  Never raises.

        Args:
            line: the record without its newline.

        Returns:
            Whether all of it was written; ``lost`` counts those that were not.
        """
        parts = [b"\n", line, b"\n"] if self._torn else [line, b"\n"]
        try:
            self._torn = os.writev(self.fileno(), parts) < sum(map(len, parts))
        except OSError:  # ENOSPC and kin
            self.lost += 1
            return False
        self.lost += self._torn
        return not self._torn

    def give(self, worker_id: int) -> int:
        """Register a worker that is started with the present description.

        Returns:
            :meth:`fileno`, for the spawn.
        """
        self._turns[worker_id] = self.turn
        return self.fileno()

    def adopt(self, worker_id: int, now: float) -> None:
        """Register a worker of a supervisor before us, whose description is unknown.

        The worker is behind until it has confirmed; :meth:`pending_switch` includes it.
        """
        self._turns[worker_id] = self.turn - 1
        self._began = now

    def forget(self, worker_id: int) -> None:
        """Drop a worker that has ended; an unknown one is no error."""
        self._turns.pop(worker_id, None)

    def confirm(self, worker_id: int, turn: object) -> None:
        """Take a worker's confirmation of a turn.

        Args:
            worker_id: the worker.
            turn: the turn that it confirms, this or an older one.  The worker may be any
                program: a value that is no such turn confirms nothing.
        """
        if not isinstance(turn, int):
            return
        if worker_id in self._turns and self._turns[worker_id] < turn <= self.turn:
            self._turns[worker_id] = turn

    def behind(self) -> tuple[int, ...]:
        """Return the ids of the workers that still have an older description."""
        return tuple(worker_id for worker_id, turn in self._turns.items() if turn < self.turn)

    def due(self, now: float) -> bool:
        """Return whether to :meth:`rotate`: the file is too big and the last turn is over.

        Args:
            now: seconds of a clock that does not jump.

        Raises:
            OSError: fstat(2) failed.
        """
        return (
            self._max is not None
            and os.fstat(self.fileno()).st_size >= self._max
            and self.settled(now)
        )

    def settled(self, now: float) -> bool:
        """Return whether the last turn is over.

        That is: every worker has confirmed or has used up its time, and the old file is read
        to its end.
        """
        return self._over(now) and (self._old is None or not self._old.pending())

    def rotate(self, now: float) -> Switch:
        """Rename PATH to PATH.1, that to PATH.2, ..., and go on in a new file.

        Args:
            now: as for :meth:`due`.

        Returns:
            The order to send to the workers.

        Raises:
            BlockingIOError: the last turn is not over.
            OSError: the new file cannot be made or renamed; the old one is still in use.
        """
        self._demand_settled(now, "rotate")
        coming = Path(f"{self.path}.next")
        with suppress(FileNotFoundError):  # left by a supervisor that died
            coming.unlink()
        # Made before anything is renamed: a full or read-only disk shows here.
        with _closed_on_error(self._open(coming, os.O_EXCL)) as (fd, reader):
            for number in range(self._keep - 1, 0, -1):
                with suppress(FileNotFoundError):
                    os.rename(f"{self.path}.{number}", f"{self.path}.{number + 1}")
            with suppress(FileNotFoundError):  # moved away by another program
                os.rename(self.path, f"{self.path}.1")
            os.rename(coming, self.path)
            return self._take_turn(fd, reader, now)

    def reopen(self, now: float) -> Switch | None:
        """Go on in the file that PATH means now, after logrotate(8) has moved ours.

        Returns:
            The order to send to the workers; None if PATH is still our file.

        Raises:
            BlockingIOError: the last turn is not over.
            OSError: the file cannot be opened or made; ours is still in use.
        """
        self._demand_settled(now, "reopen")
        with _closed_on_error(self._open(self.path, 0)) as (fd, reader):
            if os.path.sameopenfile(fd.fileno(), self.fileno()):
                fd.close()
                reader.close()
                return None
            reader.skip_to_end()
            return self._take_turn(fd, reader, now)

    def pending_switch(self) -> Switch:
        """Return the order of the present turn for the workers that are behind."""
        return self._switch(self.behind())

    def read(self, budget: int, now: float) -> list[bytes]:
        """Read the whole lines written since the last call, without their newlines.

        Call it at intervals: a watch by inotify(7) would wake the loop for each write of each
        worker.

        Args:
            budget: about how many bytes at most; the rest is for the next call.
            now: as for :meth:`due`.

        Raises:
            OSError: pread(2) or fstat(2) failed.
        """
        if self._old is None:
            return self._new.lines(self._new.size(), budget)
        # The end of the new file is taken first: what a worker wrote to the old file before
        # it changed over is in there by the time its first new record is seen.
        over, end = self._over(now), self._new.size()
        before = self._old.at
        lines = self._old.lines(self._old.size(), budget)
        if self._old.pending():
            return lines
        budget -= self._old.at - before
        if over:
            # No worker has it any more: a rest without a newline is a torn record.
            self._old.close()
            self._old = None
        return lines + self._new.lines(end, budget)

    def close(self) -> None:
        """Close all descriptors.  Workers that have the description write on."""
        self._fd.close()
        self._new.close()
        if self._old is not None:
            self._old.close()
            self._old = None

    def _open(self, path: Path, flags: int) -> tuple[Fd, Reader]:
        """Open a file for writing and, on a description of our own, for reading."""
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO's open would wait
                raise OSError(errno.EINVAL, "not a regular file, as a log must be", str(path))
        while True:
            fd = Fd(os.open(path, self._flags | flags, self._mode))
            try:
                reader = Reader(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except BaseException:
                fd.close()
                raise
            if os.path.sameopenfile(fd.fileno(), reader.fileno()):
                return fd, reader
            fd.close()  # moved by another program between the two
            reader.close()

    def _demand_settled(self, now: float, operation: str) -> None:
        if not self.settled(now):
            raise BlockingIOError(
                f"{operation} {self.path}: the turn before is not over: workers "
                f"{self.behind()} write to the old file, or it is not read to its end"
            )

    def _take_turn(self, fd: Fd, reader: Reader, now: float) -> Switch:
        if self._old is not None:
            self._old.close()
        self._old, self._new = self._new, reader
        self._fd.close()
        self._fd = fd
        self._torn = False
        self.turn += 1
        self._began = now
        return self._switch(tuple(self._turns))

    def _switch(self, workers: tuple[int, ...]) -> Switch:
        return Switch(turn=self.turn, fd=self.fileno(), workers=workers)

    def _over(self, now: float) -> bool:
        return not self.behind() or now - self._began >= self._patience


@contextmanager
def _closed_on_error(opened: tuple[Fd, Reader]) -> Iterator[tuple[Fd, Reader]]:
    try:
        yield opened
    except BaseException:
        for one in opened:
            one.close()
        raise
