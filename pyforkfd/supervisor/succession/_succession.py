"""Descriptors and record that a supervisor takes over and leaves to its successor.

A successor is started by the keeper after its predecessor was killed, or executed by the
predecessor in its own place.  Either way it inherits descriptors, and FORKFD_HANDOVER="NAME=NUMBER
..." with their names.  The descriptor ``record`` has everything else.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pyforkfd as ff
from pyforkfd._closing import Closing
from pyforkfd._fd import Fd
from pyforkfd._process import Process
from pyforkfd._standard_streams import flush_streams
from pyforkfd.supervisor._shortage import environment
from pyforkfd.supervisor.spec._spec import Service

from ._directory import short_directory
from ._durable_text import Record
from ._handover import Handover, HandoverError
from ._journal import Journal, load
from ._keeper import Adopted, Keeper, own_arguments
from ._pids import children_of, pid_of

log = logging.getLogger("pyforkfd.supervisor")

VARIABLE = "FORKFD_HANDOVER"
_RECORD, _KEEPER, _PREFLIGHT = "record", "keeper", "preflight"
_CRASHED = 70  # EX_SOFTWARE, sysexits.h
Key = tuple[str, bool, int]


class Succession(Closing):
    """Descriptors by name, and the record.  A context manager.

    Attributes:
        past: the predecessor's record; None: there was no predecessor.
        done: number of actions of its ``todo`` that it had performed.
        keeper: the connection to the keeper; None: there is none.
        rehearsal: set for a program that is only to prove that it could take over.
        directory: for sockets with a path; removed at the end, but not by a crash.
        resources: part of the supervisor -> its own record for the successor, plain values;
            changed at will.
    """

    def __init__(self) -> None:
        """Take the descriptors and the record that the environment names.

        Raises:
            HandoverError: they cannot be taken over.
        """
        inherited = _inherited_fds(os.environ.pop(VARIABLE, ""))
        self._fds: dict[str, int] = {}  # borrowed from the resources
        self._sockets: dict[str, tuple[Key, socket.socket]] = {}
        self._put_last: Mapping[Key, socket.socket] | None = None
        self._names: dict[str, Key] = {}  # of the sockets that were put last
        self._unclaimed = {name: _owned(name, fd) for name, fd in inherited.items()}
        self._directory: str | None = None
        self.rehearsal = self.take(_PREFLIGHT)
        keeper = self.take(_KEEPER)
        record = self.take(_RECORD)
        self.keeper = None if keeper is None else Keeper(keeper)
        self._record = Journal(record)
        self.past: Handover | None = None
        self.done = 0
        self.resources: dict[str, Any] = {}
        if record is None:
            return
        text, self.done = self._record.read()
        self._fds[_RECORD] = self._record.fileno()
        self._fds.update({name: fd.fileno() for name, fd in self._unclaimed.items()})
        self.past = load(text)
        self._directory = self.past.directory
        self.resources = dict(self.past.resources)

    @property
    def directory(self) -> str:
        """Path of a directory for sockets; removed at the end, but not by a crash."""
        if self._directory is None:
            self._directory = tempfile.mkdtemp(prefix="pyforkfd-", dir=short_directory())
            os.chmod(self._directory, 0o711)  # nobody can list it, any worker use its names
        return self._directory

    def take(self, name: str) -> Fd | None:
        """Return a descriptor of the predecessor; the caller owns it.  None: there was none."""
        return self._unclaimed.pop(name, None)

    def notify_socket(self, worker_id: int) -> Fd | None:
        """Return the notify socket of a predecessor's worker; the caller owns it."""
        return self.take(f"n{worker_id}")

    def sockets(self) -> dict[Key, socket.socket]:
        """Return the predecessor's listening sockets; the caller owns them."""
        found = {}
        for name, key in ({} if self.past is None else self.past.sockets).items():
            if (fd := self.take(name)) is not None:
                found[key] = socket.socket(fileno=fd.detach())
                self._sockets[name] = key, found[key]
        return found

    def has_worker(self, worker_id: int) -> bool:
        """Return whether there is a predecessor's worker for :meth:`worker` to return."""
        return f"p{worker_id}" in self._unclaimed

    def worker(self, worker_id: int, pid: int | None) -> tuple[Process, ff.FdChannel] | None:
        """Return the process and channel of a predecessor's worker; the caller owns them.

        Args:
            worker_id: the worker.
            pid: the pid in the record, if any.

        Returns:
            None: there is no pidfd of its process.  A channel that was closed is closed.
        """
        pidfd, channel = self.take(f"p{worker_id}"), self.take(f"c{worker_id}")
        if pidfd is None:
            if channel is not None:
                channel.close()
            return None
        alive = pid_of(pidfd)
        process = self._process(pid if alive is None else alive, pidfd)
        if channel is not None:
            return process, ff.FdChannel(channel.detach())
        closed, other = ff.FdChannel.pair()
        closed.close()
        other.close()
        return process, closed

    def _process(self, pid: int | None, pidfd: Fd) -> Process:
        pid = 0 if pid is None else pid
        try:
            os.waitid(os.P_PIDFD, pidfd.fileno(), os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            if self.keeper is not None:
                return Adopted(pid, pidfd.detach(), self.keeper)
        return Process((), pid, pidfd.detach(), "clone3", {}, frozenset())

    def finish(self) -> None:
        """Close the descriptors that were not taken, and kill orphans.

        An orphan is a worker without a name, started in the moment its supervisor was killed:
        it is a child of the keeper now, in the session of this process, and leads its group.
        """
        while self._unclaimed:
            name, fd = self._unclaimed.popitem()
            fd.close()
            self.drop(name)
        if self.keeper is not None:
            known = {pid for fd in self._fds.values() if (pid := pid_of(fd)) is not None}
            for pid in children_of(os.getppid()) - known - {os.getpid()}:
                with suppress(ProcessLookupError):
                    if os.getpgid(pid) == pid and os.getsid(pid) == os.getsid(0):
                        log.warning("killing process %d, an orphan: no record has it", pid)
                        os.killpg(pid, signal.SIGKILL)

    def put(self, name: str, fd: ff.HasFileno | int) -> None:
        """Leave a descriptor to the successor; borrowed until :meth:`drop`.

        Args:
            name: at most 19 of ``A-Z a-z 0-9 _ - .``; replaces another of that name.
            fd: must stay open until then.
        """
        number = fd if isinstance(fd, int) else fd.fileno()
        self._fds[name] = number
        if self.keeper is not None:
            with self._logged_errors(name):
                self.keeper.hold(name, number)

    def drop(self, name: str) -> None:
        """Withdraw a descriptor; do nothing where there is none of that name."""
        if self._fds.pop(name, None) is not None and self.keeper is not None:
            with self._logged_errors(name):
                self.keeper.release(name)

    @contextmanager
    def _logged_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BrokenPipeError, ConnectionResetError):
            pass  # the keeper has died, which the loop reports once, not for each descriptor
        except OSError as error:
            log.error("keeper: %s: not sent: %s", what, error)

    def put_worker(
        self, worker_id: int, process: Process, channel: ff.FdChannel, notify: ff.HasFileno
    ) -> None:
        """Leave a worker to the successor; call this before anything else is done to it.

        Args:
            worker_id: the worker.
            process: of the worker.
            channel: our end of its channel.
            notify: its notify socket.
        """
        self.put(f"p{worker_id}", process)
        self.put(f"c{worker_id}", channel)
        self.put(f"n{worker_id}", notify)

    def drop_channel(self, worker_id: int) -> None:
        """Withdraw a worker's channel, before it is closed."""
        self.drop(f"c{worker_id}")

    def drop_worker(self, worker_id: int) -> None:
        """Withdraw a worker that has ended."""
        for kind in "pcn":
            self.drop(f"{kind}{worker_id}")

    def put_sockets(self, sockets: Mapping[Key, socket.socket]) -> dict[str, Key]:
        """Leave these listening sockets to the successor, and no others.

        Args:
            sockets: not changed any more; the same again costs nothing.

        Returns:
            Their names, for the handover.
        """
        if sockets is self._put_last:
            return self._names
        for name, (key, sock) in list(self._sockets.items()):
            if sockets.get(key) is not sock:
                del self._sockets[name]
                self.drop(name)
        here = {key for key, _ in self._sockets.values()}
        free = (n for n in map("s{}".format, range(len(sockets))) if n not in self._sockets)
        for key, sock in sockets.items():
            if key not in here:
                name = next(free)
                self._sockets[name] = key, sock
                self.put(name, sock)
        self._put_last = sockets
        self._names = {name: key for name, (key, _) in self._sockets.items()}
        return self._names

    def save(self, handover: Handover) -> None:
        """Write the whole record.

        Raises:
            OSError: as :meth:`Journal.write`.
        """
        self._record.write(handover)
        self._put_record()

    def save_step(
        self, handover: Handover, workers: Collection[int], resources: Mapping[str, Any]
    ) -> None:
        """Write what a step has changed, before any action of its ``todo`` is performed.

        The arguments are those of :meth:`Journal.add`.
        """
        self._record.add(handover, workers, resources)
        self._put_record()

    @property
    def wants_whole(self) -> bool:
        """Whether :meth:`save_step` writes the whole record, ``resources`` included."""
        return self._record.wants_whole

    def _put_record(self) -> None:
        if _RECORD not in self._fds and not self._record.stale:
            self.put(_RECORD, self._record)

    def serving(self) -> None:
        """Report to the keeper that this supervisor serves: its end is no failure to start."""
        if self.keeper is not None:
            with self._logged_errors("that the supervisor serves"):
                self.keeper.serving()

    def advance(self) -> None:
        """Count one more action of ``todo`` as performed."""
        self._record.advance()

    def fds(self) -> dict[str, int]:
        """Return the names and numbers of all descriptors, without the keeper's."""
        return dict(self._fds)

    def text(self) -> bytes:
        """Return the record as it was saved last."""
        return self._record.read()[0]

    def execute(self) -> None:
        """Execute the successor in place of this process: same pid, same children.

        Must be called in the main thread: children that other threads have started get their
        parent-death signal, those of the main thread do not.

        Raises:
            OSError: the error of execve(2); nothing has changed.
        """
        fds = self.fds()
        if self.keeper is not None:
            fds[_KEEPER] = self.keeper.fileno()
        arguments = own_arguments()
        env = {**os.environ, **environment(), VARIABLE: variable(fds)}
        flush_streams()
        for fd in fds.values():
            os.set_inheritable(fd, True)
        try:
            os.execve(arguments[0], arguments, env)
        finally:
            for fd in fds.values():
                os.set_inheritable(fd, False)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """End this process on an exception, without cleanup, where the keeper holds descriptors.

        That leaves the same as SIGKILL would: the next supervisor takes over.
        """
        try:
            yield
        except BaseException:
            if self.keeper is None or not self._fds:
                raise
            traceback.print_exc()
            log.critical("the supervisor has failed; the keeper starts it again")
            logging.shutdown()
            flush_streams()
            os._exit(_CRASHED)

    def prove(self) -> int:
        """Report that this program could take over; return its exit code.

        Raises:
            HandoverError: a descriptor of the record was not inherited.
        """
        assert self.rehearsal is not None and self.past is not None
        workers = (w.id for w in self.past.state.workers.values() if w.pid is not None)
        wanted = {*self.past.sockets, *(f"p{worker_id}" for worker_id in workers)}
        if missing := wanted - self._unclaimed.keys():
            raise HandoverError(f"handover: not inherited: {', '.join(sorted(missing))}")
        os.eventfd_write(self.rehearsal.fileno(), 1)
        return 0

    def close(self) -> None:
        """Withdraw and close everything: nothing is left to take over."""
        if self.rehearsal is None:
            if self.keeper is not None:
                with self._logged_errors("that the service has ended"):
                    self.keeper.release()
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
        else:
            self.rehearsal.close()
        self._fds.clear()
        while self._unclaimed:
            self._unclaimed.popitem()[1].close()
        if self.keeper is not None:
            self.keeper.close()
        self._record.close()


def inherited_service() -> Service | None:
    """Return a predecessor's service, of which the file may be broken now.

    None: there is no predecessor, or this program is only tried and has to prove that it can
    read the file.
    """
    inherited = _inherited_fds(os.environ.get(VARIABLE, ""))
    if _RECORD not in inherited or _PREFLIGHT in inherited:
        return None
    record = Record(Fd(os.dup(inherited[_RECORD])))
    try:
        return load(record.read()[0]).service
    finally:
        record.close()


def variable(fds: Mapping[str, int]) -> str:
    """Return the value of FORKFD_HANDOVER."""
    return " ".join(f"{name}={number}" for name, number in fds.items())


def _inherited_fds(text: str) -> dict[str, int]:
    found = {}
    for word in text.split():
        if not (match := re.fullmatch("([A-Za-z0-9_.-]{1,19})=([0-9]{1,9})", word)):
            raise HandoverError(f"{VARIABLE}: {word!r} is not NAME=NUMBER")
        found[match[1]] = int(match[2])
    return found


def _owned(name: str, fd: int) -> Fd:
    try:
        os.set_inheritable(fd, False)
    except OSError as error:
        raise HandoverError(f"{VARIABLE}: {name}={fd}: {error.strerror}") from None
    return Fd(fd)
