"""The socket that workers report their state to, sd_notify(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pyforkfd as ff
from pyforkfd._closing import Closing
from pyforkfd._fd import Fd
from pyforkfd.supervisor._shortage import is_shortage

_LONGEST = 4096
_MOST_FDS = 253
_MOST_ANCESTORS = 16


class NotifySocket(Closing):
    """A datagram socket that every worker may write to; the kernel names the sender.

    Attributes:
        path: for NOTIFY_SOCKET.
    """

    def __init__(self, path: str, adopted: Fd | None = None) -> None:
        """Bind it.

        Args:
            path: in a directory that workers of any user may enter; removed by close().
            adopted: a predecessor's, bound to the path; taken.

        Raises:
            OSError: it cannot be bound, bind(2).
        """
        self.path = path
        # Any user may write: a message counts only if its sender is a worker.
        self._sock = (
            ff.bind(f"unixgram:{path}", mode=0o666)
            if adopted is None
            else socket.socket(fileno=adopted.detach())
        )
        ff.pass_credentials(self._sock)

    def fileno(self) -> int:
        """Return the number of the descriptor; borrowed."""
        return self._sock.fileno()

    def read(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield every message that waits: its sender's pid, and its variables.

        Descriptors that came with a message are closed when the next is read, after the
        caller has acted on it: sd_notify_barrier(3) waits for that.
        """
        while True:
            try:
                message = ff.recv_fds(self._sock, _LONGEST, _MOST_FDS, timeout=0)
            except BlockingIOError:
                return
            except ff.PassingError:
                continue  # too long for a message of sd_notify(3)
            except OSError as error:
                if is_shortage(error):  # ENOMEM: it is still there
                    return
                raise
            with message:
                if message.credentials is not None:
                    yield message.credentials.pid, _parse(message.data)

    def close(self) -> None:
        """Close it and remove its path."""
        self._sock.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass


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
