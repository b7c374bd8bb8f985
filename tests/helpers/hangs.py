"""The end of a test that hangs: its name, every thread's stack, and none of its processes left.

pytest-timeout has the limits: `timeout` in pyproject.toml, `@pytest.mark.timeout` for one test.
Its own timer would do, but for the signals of the test that its thread may take, and for the
processes that it leaves behind.
"""

from __future__ import annotations

import _thread
import faulthandler
import functools
import os
import signal
from dataclasses import dataclass
from queue import SimpleQueue

import pytest
import pytest_timeout
from leaks import gone
from processes import descendants, kill

# Beyond the limit, for what holds the GIL for ever: no timer of Python's runs then.
GRACE_SECONDS = 30.0


def _end(item: pytest.Item, limit: float) -> None:
    """Print all that is known, and end the run: nothing else ends a call in C."""
    if pytest_timeout.is_debugging():
        return
    try:
        terminal = item.config.get_terminal_writer()
        capture = item.config.pluginmanager.getplugin("capturemanager")
        capture.suspend_global_capture(item)
        printed = capture.read_global_capture()
        terminal.sep("+", f"{item.nodeid} hangs")
        terminal.line(f"It has not ended after {limit:g} s.")
        for name, text in zip(("stdout", "stderr"), printed, strict=True):
            if text:
                terminal.sep("~", f"Captured {name}")
                terminal.write(text)
        pytest_timeout.dump_stacks(terminal)
        left = {pid: _command(pid) for pid in descendants(os.getpid())}
        for pid in left:
            kill(pid)
        if left:
            terminal.sep("~", "Its processes, killed")
            terminal.line(", ".join(f"{pid} ({name})" for pid, name in left.items()))
        terminal.sep("+", f"{item.nodeid} hangs")
        terminal.flush()
    finally:
        os._exit(1)


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "ended"


class _Timer:
    """A thread that a test does not notice: none of threading's, and deaf to signals."""

    def __init__(self, item: pytest.Item, limit: float) -> None:
        self._enough = _thread.allocate_lock()
        self._enough.acquire()
        self._ids: SimpleQueue[int] = SimpleQueue()
        # A signal for the process goes to a thread that does not block it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            _thread.start_new_thread(self._run, (item, limit))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _run(self, item: pytest.Item, limit: float) -> None:
        self._ids.put(_thread.get_native_id())
        if not self._enough.acquire(timeout=limit):
            _end(item, limit)

    def cancel(self) -> None:
        """Return when the next test finds nothing of the thread, in /proc either."""
        self._enough.release()
        assert gone(functools.partial(_has_ended, self._ids.get()))


def _has_ended(thread: int) -> bool:
    return not os.path.exists(f"/proc/self/task/{thread}")


@dataclass
class HangGuard:
    """A plugin of pytest: the timer around a test."""

    stderr: int
    timer: _Timer | None = None

    def pytest_timeout_set_timer(
        self, item: pytest.Item, settings: pytest_timeout.Settings
    ) -> bool:
        self.timer = _Timer(item, settings.timeout)
        limit = settings.timeout + GRACE_SECONDS
        faulthandler.dump_traceback_later(limit, exit=True, file=self.stderr)
        return True

    def pytest_timeout_cancel_timer(self) -> bool:
        faulthandler.cancel_dump_traceback_later()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return True


def guard_against_hangs(config: pytest.Config) -> None:
    """Register the guard, with the stderr that pytest was started with."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        config.pluginmanager.register(HangGuard(os.dup(2)))
