"""The readiness of a program that does not report it: found from outside, in /proc."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Iterator

# System calls that wait for a connection: those that name the descriptor, and those that
# name many, of which the listener is one if the process has it.
_ACCEPT, _POLL = {
    "x86_64": ({43, 288}, {7, 23, 270, 271}),
    "aarch64": ({202, 242}, {72, 73}),
}.get(platform.machine(), (set(), set()))
_TARGET = re.compile(rb"^tfd:.*\bino:([0-9a-f]+)", re.MULTILINE)


def accepts(pid: int, listeners: frozenset[int]) -> bool:
    """Return whether a process, or one of its descendants, waits for connections.

    That is one with a listener in an epoll (proc_pid_fdinfo(5)), or with a thread in accept(2),
    or with a thread in poll(2) or select(2) while the process holds a listener.

    Args:
        pid: the worker's.
        listeners: inodes of the sockets.
    """
    return any(_waits(process, listeners) for process in _tree(pid))


def inodes(fds: Iterable[int]) -> frozenset[int]:
    """Return the inodes of sockets of this process, for :func:`accepts`."""
    return frozenset(os.fstat(fd).st_ino for fd in fds)


def _tree(pid: int) -> Iterator[int]:
    waiting = [pid]
    while waiting:
        process = waiting.pop()
        yield process
        for thread in _names(f"/proc/{process}/task"):
            text = _read(f"/proc/{process}/task/{thread}/children")
            waiting.extend(int(child) for child in text.split())


def _waits(pid: int, listeners: frozenset[int]) -> bool:
    held = set()
    for fd in _names(f"/proc/{pid}/fd"):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if link == "anon_inode:[eventpoll]":
            found = _TARGET.findall(_read(f"/proc/{pid}/fdinfo/{fd}"))
            if not listeners.isdisjoint(int(inode, 16) for inode in found):
                return True
        elif link.startswith("socket:[") and int(link[8:-1]) in listeners:
            held.add(int(fd))
    if not held:
        return False
    for thread in _names(f"/proc/{pid}/task"):
        words = _read(f"/proc/{pid}/task/{thread}/syscall").split()
        if not words or not words[0].isdigit():
            continue  # the thread runs
        call = int(words[0])
        if call in _POLL or (call in _ACCEPT and int(words[1], 16) in held):
            return True
    return False


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []  # the process has ended


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
