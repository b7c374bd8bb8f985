"""The on_crash hooks of components: each runs in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyforkfd as ff
from pyforkfd._closing import Closing
from pyforkfd._process import TRACER_PAUSE
from pyforkfd._trusted_files import demand_trusted_program
from pyforkfd.supervisor._reactor import Reactor
from pyforkfd.supervisor._shortage import child_limits, reserved
from pyforkfd.supervisor.state._events import Crashed

from ._zygotes import path_with

log = logging.getLogger("pyforkfd.supervisor")

_PATIENCE = 30.0  # seconds
_MOST_AT_ONCE = 16  # a component in a crash loop is not to fill the machine with them
_ROOT = str(Path(__file__).parents[3])
# What is ours is imported before the supervisor's path is set: nothing there can stand in for it.
_CODE = """
import sys
sys.path.insert(0, sys.argv[2])
import json, os
from pyforkfd._entry_points import resolve
sys.path[:] = json.loads(sys.argv[3])
keys = ("component", "worker", "cause", "detail")
resolve(sys.argv[1])({key: os.environ["FORKFD_CRASH_" + key.upper()] for key in keys})
"""


class Hooks(Closing):
    """Runs on_crash hooks, and ends those that take too long.  A context manager."""

    def __init__(self, reactor: Reactor) -> None:
        """Begin without a hook; the reactor is borrowed."""
        self._reactor = reactor
        self._running: dict[int, tuple[ff.Process, str, float]] = {}  # by pidfd

    def run(
        self,
        hooks: Sequence[str | tuple[str, ...]],
        crash: Crashed,
        *,
        app_dir: str | None = None,
    ) -> None:
        """Start all hooks of a crash, and wait for none.

        Args:
            hooks: each a command, or ``"package.module:function"``, which is called with one
                dictionary; both find FORKFD_CRASH_COMPONENT, _WORKER, _CAUSE and _DETAIL.
            crash: the source of these variables.
            app_dir: directory that functions are imported from before any other; None: no
                further one.
        """
        about = {
            "COMPONENT": crash.component,
            "WORKER": str(crash.worker_id),
            "CAUSE": crash.cause,
            "DETAIL": crash.detail,
        }
        env = {**os.environ, **{f"FORKFD_CRASH_{name}": text for name, text in about.items()}}
        env.pop("NOTIFY_SOCKET", None)
        for hook in hooks:
            name = hook if isinstance(hook, str) else hook[0]
            if len(self._running) >= _MOST_AT_ONCE:
                log.error("on_crash: %s: not run: %d hooks run already", name, _MOST_AT_ONCE)
                continue
            self._start(hook, name, env, app_dir)

    def _start(
        self,
        hook: str | tuple[str, ...],
        name: str,
        env: dict[str, str],
        app_dir: str | None,
    ) -> None:
        command = hook
        if isinstance(command, str):  # it imports from where zygotes do
            found = json.dumps(
                path_with([app_dir] if app_dir else [], [path for path in sys.path if path])
            )
            command = (sys.executable, "-P", "-c", _CODE, command, _ROOT, found)
        try:
            if not isinstance(hook, str):
                demand_trusted_program(hook[0], env.get("PATH"))
            with reserved(0.5):
                process = ff.spawn(
                    command,
                    env=env,
                    fds={0: ff.DEVNULL, 1: ff.INHERIT, 2: ff.INHERIT},
                    process_group=0,
                    signal_mask=(),
                    default_signals=range(1, signal.NSIG),
                    rlimits=child_limits(),
                    # Nobody else would end a hook that takes too long.
                    parent_death_signal=signal.SIGKILL,
                    parent_death_scope="thread",  # the one that an execve(2) in place leaves
                )
        except (OSError, ValueError) as error:
            log.error("on_crash: %s: not run: %s", name, error)
            return
        fd = process.fileno()
        try:
            self._reactor.add(fd, lambda _: self._on_end(fd))
        except OSError as error:  # no memory, or no watch of epoll(7), for its end
            log.error("on_crash: %s: killed: %s", name, error)
            process.kill()
            process.wait()
            process.close()
            return
        self._running[fd] = (process, name, time.monotonic() + _PATIENCE)

    def _on_end(self, fd: int) -> None:
        process, name, _ = self._running[fd]
        status = process.poll()
        if status is None:  # its tracer reaps it first
            self._reactor.rest(fd, TRACER_PAUSE)
            return
        if not status.success:
            log.error("on_crash: %s: %s", name, status)
        del self._running[fd]
        self._reactor.remove(fd)
        process.close()

    def end_late(self, now: float) -> None:
        """Kill the hooks that take too long.

        Args:
            now: on the clock of time.monotonic().
        """
        for process, name, until in self._running.values():
            if now >= until and process.poll() is None:
                log.error("on_crash: %s: takes more than %g s: killing it", name, _PATIENCE)
                process.kill()

    def close(self) -> None:
        """Wait for the hooks for a second, then kill those that are left."""
        until = time.monotonic() + 1.0
        for fd, (process, _, _) in list(self._running.items()):
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except TimeoutError:
                process.kill()
                process.wait()
            self._on_end(fd)
