"""The resources of a process, as maps, so that a leak is named and not only counted."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_PR_GET_DUMPABLE = 3
# Threads that live as long as the process: ours, and those of sanitizers.
_LASTING_THREADS = {"forkfd-spawner", "asan_bg", "tsan_bg"}
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Holdings:
    """All that a spawn could leave behind or change in its parent."""

    descriptors: dict[int, str]
    children: dict[int, str]
    threads: dict[int, str]
    blocked_signals: str
    ignored_and_handled: str
    dumpable: int
    directory: str
    umask: str

    @classmethod
    def now(cls) -> Holdings:
        status = Path("/proc/thread-self/status").read_text()
        return cls(
            descriptors=_descriptors(),
            children=_children(),
            threads=_threads(),
            blocked_signals=_field(status, "SigBlk"),
            ignored_and_handled=_field(status, "SigIgn") + " " + _field(status, "SigCgt"),
            dumpable=_libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0),
            directory=os.getcwd(),
            umask=_field(status, "Umask"),
        )

    def difference(self, later: Holdings) -> list[str]:
        """Return a sentence for each difference."""
        differences = []
        for what in ("descriptors", "children", "threads"):
            before: dict[int, str] = getattr(self, what)
            after: dict[int, str] = getattr(later, what)
            for key in sorted(before.keys() | after.keys()):
                if what == "threads" and key in before:
                    continue  # a thread that ended, such as pytest's watchdog, is no leak
                if before.get(key) != after.get(key):
                    differences.append(
                        f"{what}: {key} was {before.get(key, 'not there')}, "
                        f"is {after.get(key, 'not there')}"
                    )
        for what in ("blocked_signals", "ignored_and_handled", "dumpable", "directory", "umask"):
            if getattr(self, what) != getattr(later, what):
                differences.append(f"{what}: was {getattr(self, what)}, is {getattr(later, what)}")
        return differences

    def leaks(self, patience: float = 2.0) -> list[str]:
        """Return the present differences, once they last longer than some seconds.

        A joined thread stays in /proc a moment longer, and an object in a cycle holds its
        descriptor until it is collected.
        """
        deadline = time.monotonic() + patience
        found = self.difference(Holdings.now())
        if found:
            gc.collect()
        while found and time.monotonic() < deadline:
            os.sched_yield()
            found = self.difference(Holdings.now())
        return found


def gone(is_gone: Callable[[], bool], patience: float = 10.0) -> bool:
    """Poll until something has ended that sends no event, such as a task's entry in /proc."""
    deadline = time.monotonic() + patience
    while not is_gone():
        if time.monotonic() > deadline:
            return False
        os.sched_yield()
    return True


def steady(count: Callable[[], T], patience: float = 10.0) -> T:
    """Return a count of another process' resources once it stays the same for a moment.

    A count right after an event is too high: what the event has freed is closed a moment after
    it was reported, and so is the connection that a question came by.
    """
    deadline = time.monotonic() + patience
    found = count()
    while True:
        time.sleep(0.3)
        if (again := count()) == found or time.monotonic() > deadline:
            return again
        found = again


def _field(status: str, name: str) -> str:
    found = re.search(rf"^{name}:\s*(.*)$", status, re.MULTILINE)
    return found[1] if found else ""


def _descriptors() -> dict[int, str]:
    held = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            held[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the directory's own, closed by now
    return held


def _children() -> dict[int, str]:
    held = {}
    for task in os.listdir("/proc/self/task"):
        try:
            pids = Path(f"/proc/self/task/{task}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended
        for pid in pids:
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            state = "zombie" if _field(status, "State").startswith("Z") else "alive"
            held[int(pid)] = f"{_field(status, 'Name')}, {state}"
    return held


def _threads() -> dict[int, str]:
    """All of them: a listing may miss one while another ends, so two must agree."""
    found = _listed_threads()
    while (again := _listed_threads()) != found:
        found = again
    return found


def _listed_threads() -> dict[int, str]:
    held = {}
    for task in os.listdir("/proc/self/task"):
        try:
            name = Path(f"/proc/self/task/{task}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name not in _LASTING_THREADS:
            held[int(task)] = name
    return held
