"""The end of a test that hangs: its name, every thread's stack, and none of its processes left.

pytest-timeout has the limits: `timeout` in pyproject.toml, `@pytest.mark.timeout` for one test.
Its own timer would do, but for the signals of the test that its thread may take, and for the
processes that it leaves behind.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from dataclasses import dataclass

import pytest
import pytest_timeout
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


@dataclass
class HangGuard:
    """A plugin of pytest: the timer around a test."""

    stderr: int
    timer: threading.Timer | None = None

    def pytest_timeout_set_timer(
        self, item: pytest.Item, settings: pytest_timeout.Settings
    ) -> bool:
        limit = settings.timeout
        self.timer = threading.Timer(limit, _end, (item, limit))
        # A signal for the process goes to a thread that does not block it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.timer.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        faulthandler.dump_traceback_later(limit + GRACE_SECONDS, exit=True, file=self.stderr)
        return True

    def pytest_timeout_cancel_timer(self) -> bool:
        faulthandler.cancel_dump_traceback_later()
        if self.timer is not None:
            self.timer.cancel()
            self.timer.join()
            self.timer = None
        return True


def guard_against_hangs(config: pytest.Config) -> None:
    """Register the guard, with the stderr that pytest was started with."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        config.pluginmanager.register(HangGuard(os.dup(2)))
