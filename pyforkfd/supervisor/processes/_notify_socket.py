"""NOTIFY_SOCKET, the end that listens: what workers say of themselves, sd_notify(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pyforkfd as ff
from pyforkfd._closing import Closing
from pyforkfd._fd import Fd

_LONGEST = 4096
_MOST_FDS = 253
_MOST_ANCESTORS = 16


class NotifySocket(Closing):
    """A datagram socket that every worker may write to; the kernel says who wrote.

    Attributes:
        path: for NOTIFY_SOCKET.
    """

    def __init__(self, path: str, adopted: Fd | None = None) -> None:
        """Bind it.

        Args:
            path: in a directory that workers of any user may enter; removed by close().
            adopted: a predecessor's, bound to the path; taken.

        Raises:
            OSError: as bind(2) says.
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
        """The descriptor's number; it stays this object's."""
        return self._sock.fileno()

    def read(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Every message that waits: its sender's pid, and what it says.

        Descriptors that came with it are closed once it was dealt with, which is what
        sd_notify_barrier(3) waits for.
        """
        while True:
            try:
                message = ff.recv_fds(self._sock, _LONGEST, _MOST_FDS, timeout=0)
            except BlockingIOError:
                return
            except ff.PassingError:
                continue  # too long to be one of ours
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
    """Whose process it is: the worker's own, or a descendant, such as a shell's child.

    Args:
        pid: a process that lived when it wrote.
        workers: pid -> worker.
    """
    for _ in range(_MOST_ANCESTORS):
        if pid in workers:
            return workers[pid]
        if (parent := parent_of(pid)) is None or parent <= 1:
            return None
        pid = parent
    return None


def parent_of(pid: int) -> int | None:
    """From /proc/PID/stat, proc_pid_stat(5); None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat[stat.rindex(b")") + 2 :].split()[1])
