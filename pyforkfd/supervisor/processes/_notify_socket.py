"""The sockets that workers report their state to, sd_notify(3)."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pyforkfd as ff
from pyforkfd._closing import Closing
from pyforkfd._fd import Fd
from pyforkfd._untrusted_peers import discard, drain
from pyforkfd.supervisor._shortage import is_shortage

_LONGEST = 4096
_MOST_FDS = 253
_UCRED = struct.Struct("3i")  # pid, uid, gid: SCM_CREDENTIALS, unix(7)
_ROOM = socket.CMSG_SPACE(_UCRED.size)  # for the sender alone, and no descriptor
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_MOST_ANCESTORS = 16
_MOST_AT_ONCE = 16  # messages read by one call: a flood is the loop's for no longer


class NotifySocket(Closing):
    """The datagram socket of a worker; the kernel names the sender.

    A worker's user alone may write to it: another could fill its queue, net.unix.max_dgram_qlen,
    so that a message of the worker has to wait.  A worker of root's may have processes of any
    user, so anybody may write to its socket.

    Attributes:
        path: for NOTIFY_SOCKET.
    """

    def __init__(self, path: str, adopted: Fd | None = None, *, user: int | None = None) -> None:
        """Bind it.

        Args:
            path: in a directory that workers of any user may enter; removed by close().
            adopted: a predecessor's, bound to the path; taken.
            user: uid of the worker; None: not known.

        Raises:
            OSError: it cannot be bound, bind(2).
        """
        self.path = path
        self._sock = (
            _bind(path, user) if adopted is None else socket.socket(fileno=adopted.detach())
        )
        ff.pass_credentials(self._sock)

    def fileno(self) -> int:
        """Return the number of the descriptor; borrowed."""
        return self._sock.fileno()

    def read(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the messages that wait, up to 16: their sender's pid, and their variables.

        A message is peeked at, and removed after the caller has acted on it: where this process
        is killed between the two, its successor reads it again, and no READY=1 is lost.
        Descriptors that came with it are closed then: sd_notify_barrier(3) waits for that.  A
        socket among them does not linger.
        """
        for _ in range(_MOST_AT_ONCE):
            try:
                data, control, flags, _ = self._sock.recvmsg(_LONGEST, _ROOM, _PEEK)
            except BlockingIOError:
                return
            except OSError as error:
                if is_shortage(error):  # ENOMEM: it is still there
                    return
                raise
            try:
                pid = _sender(control)
                if pid is not None and not flags & socket.MSG_TRUNC:  # else too long for it
                    yield pid, _parse(data)
            finally:
                self._remove()

    def _remove(self) -> None:
        """Remove the first message, and close its descriptors."""
        try:
            discard(ff.recv_fds(self._sock, _LONGEST, _MOST_FDS, timeout=0))
        except (BlockingIOError, ff.PassingError):
            pass  # one that is too long is removed, too

    def close(self) -> None:
        """Close it and remove its path; messages that wait are lost."""
        if self._sock.fileno() >= 0:
            drain(self._sock)
        self._sock.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass


def _bind(path: str, user: int | None) -> socket.socket:
    made = ff.bind(f"unixgram:{path}", mode=0o600)
    try:
        if not user:
            os.chmod(path, 0o666)
        elif user != os.geteuid():
            try:
                os.chown(path, user, -1)
            except PermissionError:  # setuid(2) is permitted here, but not CAP_CHOWN
                os.chmod(path, 0o666)
    except BaseException:
        made.close()
        os.unlink(path)
        raise
    return made


def _sender(control: list[tuple[int, int, bytes]]) -> int | None:
    """Return the pid in a control message; None: the kernel names none."""
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid: int = _UCRED.unpack_from(data)[0]
            return pid or None
    return None


def _parse(data: bytes) -> dict[str, str]:
    lines = data.decode(errors="replace").splitlines()
    return {name: value for name, sign, value in (line.partition("=") for line in lines) if sign}


def worker_of(pid: int, workers: dict[int, int]) -> int | None:
    """Find the worker that a process belongs to: its own, or a descendant of that.

    Args:
        pid: of a process that lived when it wrote.
        workers: pid -> worker's id.

    Returns:
        The worker's id; None: it belongs to none.
    """
    for _ in range(_MOST_ANCESTORS):
        if pid in workers:
            return workers[pid]
        if (parent := parent_of(pid)) is None or parent <= 1:
            return None
        pid = parent
    return None


def parent_of(pid: int) -> int | None:
    """Return the parent of a process, proc_pid_stat(5); None: the process has ended.

    Also None where no descriptor is free to read it.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError as error:
        if isinstance(error, FileNotFoundError | ProcessLookupError) or is_shortage(error):
            return None
        raise
    return int(stat[stat.rindex(b")") + 2 :].split()[1])
