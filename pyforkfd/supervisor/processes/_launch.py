"""The start of one worker: prepared with all that it needs, then performed."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import pyforkfd as ff
from pyforkfd._closing import Closing
from pyforkfd._options import WorkerOptions
from pyforkfd._untrusted_peers import drain, refuse_descriptors
from pyforkfd.supervisor._shortage import child_limits
from pyforkfd.supervisor.cgroups._leaf import Leaf
from pyforkfd.supervisor.health._pages import SLOT
from pyforkfd.supervisor.logs._output import Output
from pyforkfd.supervisor.logs._records import Origin
from pyforkfd.supervisor.spec._privileges import environment, spawn_options, user_of
from pyforkfd.supervisor.spec._spec import Component, Service, Stream
from pyforkfd.supervisor.state._model import Worker
from pyforkfd.supervisor.worker._identity import VARIABLE, Identity
from pyforkfd.supervisor.worker._messages import Listeners, OrderMessage
from pyforkfd.supervisor.worker._protocol import encode_order
from pyforkfd.zygote import Zygote

from ._notify_socket import NotifySocket
from ._resources import Resources, leaf_name, notify_path

log = logging.getLogger("pyforkfd.supervisor")

FIRST = 3  # SD_LISTEN_FDS_START


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch(Closing):
    """A start of a worker, with everything that it needs.

    It owns what was made for this worker: a failure of the start, or close(), frees all of it.

    Attributes:
        spec: the worker's component.
        listeners: name -> socket; borrowed.
        zygote: that makes the worker, for a component that is a function; borrowed.
        options: of the spawn: descriptors, environment, cgroup, privileges and so on.
        channel: our end of the worker's channel; the caller's after the start.
        notify: the worker's NOTIFY_SOCKET; the caller's after the start.
        leaf: the worker's cgroup; the caller's after the start.
        worker_ends: closes what only the worker needs: its end of the channel, of its output.
        on_failure: frees what becomes the caller's by the start.
    """

    spec: Component
    listeners: Mapping[str, socket.socket]
    zygote: Zygote | None
    options: WorkerOptions
    channel: ff.FdChannel
    notify: NotifySocket
    leaf: Leaf | None
    worker_ends: ExitStack
    on_failure: ExitStack

    def start(self) -> tuple[ff.Process, ff.FdChannel]:
        """Start the worker.  May be called once.

        Returns:
            The process and our end of its channel; the caller owns both, the notify socket and
            the leaf.

        Raises:
            SpawnError, ZygoteError, OSError, ValueError: it could not be started; everything
                is closed.
        """
        with self:
            process = self._spawn()
            if self.spec.give == "channel" and not self._send_listeners():
                process.kill()
                process.wait()
                process.close()
                drain(self.channel)
                raise OSError(errno.EAGAIN, "its listeners were not sent")
            self.on_failure.pop_all()
        return process, self.channel

    def _spawn(self) -> ff.Process:
        spec = self.spec
        if spec.command is not None:
            # This thread is its parent: the only one that is left after an execve(2) in place.
            return ff.spawn(spec.command, parent_death_scope="thread", **self.options)
        assert self.zygote is not None and spec.function is not None, "a function needs a zygote"
        return self.zygote.spawn(
            spec.function, args=spec.args, kwargs=dict(spec.kwargs), **self.options
        )

    def _send_listeners(self) -> bool:
        # The queue is empty: it is the first message.
        return send_order(self.channel, Listeners(), self.listeners)

    def close(self) -> None:
        """Free what was made for the worker and is still owned here."""
        with self.on_failure, self.worker_ends:
            pass


def prepare(
    worker: Worker, service: Service, resources: Resources, zygote: Zygote | None
) -> Launch:
    """Make everything that the start of a worker needs: cgroup, pipes, channel, options.

    Args:
        worker: as the state has it.
        service: the specification of its generation.
        resources: borrowed.
        zygote: for a component that is a function; borrowed.

    Returns:
        The start, to be performed or closed.

    Raises:
        OSError, ValueError, LookupError: something cannot be made, or a user or group is not
            known; nothing is left.
    """
    spec, output = worker.spec, resources.output
    with ExitStack() as on_failure, ExitStack() as worker_ends:
        leaf = _leaf(worker, resources, on_failure)
        ours, theirs = ff.FdChannel.pair()
        on_failure.enter_context(ours)
        refuse_descriptors(ours)  # no event has one
        worker_ends.enter_context(theirs)
        path = notify_path(resources.succession, worker.id)
        user = user_of(spec.privileges)
        notify = on_failure.enter_context(NotifySocket(path, user=user))
        listeners = resources.sockets.of(service, spec, worker.position)
        private: dict[str, ff.HasFileno] = {"channel": theirs}
        if (page := resources.watch.page_of(worker.id)) is not None:
            private["page"] = page
        on_failure.callback(lambda: output.worker_gone(worker.id, time.monotonic()))
        trusted = user == os.geteuid()
        lent = output.lend(_origin(worker), trusted=trusted, worker_ends=worker_ends)
        if lent is not None:
            private["log"] = lent
        fds: dict[int, ff.FdSource] = {
            0: ff.DEVNULL,
            1: _stream(worker, "stdout", spec.stdout, output, worker_ends),
            2: _stream(worker, "stderr", spec.stderr, output, worker_ends),
        }
        numbers = _map_descriptors(spec, listeners, private, fds)
        own = spawn_options(spec)
        options: WorkerOptions = {
            **own,
            "rlimits": {**child_limits(), **(own.get("rlimits") or {})},
            "fds": fds,
            "env": _environment(worker, notify.path, listeners, numbers),
            # A group of its own: Ctrl-C is for the supervisor, which ends workers in order.
            "process_group": 0,
            "signal_mask": (),
        }
        if options.get("user") is not None and _has_terminal():
            # Another user's process must not put words into root's terminal: TIOCSTI, ioctl_tty(2).
            del options["process_group"]
            options["new_session"] = True  # with a group of its own
        if spec.command is not None:  # the zygote of a function was started so itself
            options["default_signals"] = range(1, signal.NSIG)
        if spec.give == "listen_fds" and listeners:
            options["listen"] = listeners
        if leaf is not None:
            options["cgroup"] = leaf.fileno()
        if resources.succession.keeper is None:
            # The kernel kills it when this thread ends, prctl(2) PR_SET_PDEATHSIG.
            options["parent_death_signal"] = signal.SIGKILL
        return Launch(
            spec=spec,
            listeners=listeners,
            zygote=zygote,
            options=options,
            channel=ours,
            notify=notify,
            leaf=leaf,
            worker_ends=worker_ends.pop_all(),
            on_failure=on_failure.pop_all(),
        )


def _has_terminal() -> bool:
    """Return whether the supervisor has a controlling terminal, tty(4)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _leaf(worker: Worker, resources: Resources, on_failure: ExitStack) -> Leaf | None:
    """Make a worker's cgroup; None: it has none."""
    if resources.cgroups is None or worker.spec.cgroup == "off":
        return None
    leaf = resources.cgroups.leaf(leaf_name(worker), worker.spec.limits)
    on_failure.callback(resources.emptying.append, leaf)
    for problem in leaf.missing:
        log.warning("%s: worker %d: %s", worker.component, worker.id, problem)
    return leaf


def _stream(
    worker: Worker, name: str, wanted: Stream, output: Output, worker_ends: ExitStack
) -> ff.FdSource:
    """Return the source of one output stream of a worker."""
    if wanted == "null":
        return ff.DEVNULL
    if wanted != "capture":
        return ff.INHERIT
    return worker_ends.enter_context(output.capture(_origin(worker), name).writer)


def _origin(worker: Worker) -> Origin:
    return Origin(component=worker.component, worker=worker.id, generation=worker.generation)


def _map_descriptors(
    spec: Component,
    listeners: Mapping[str, socket.socket],
    private: Mapping[str, ff.HasFileno],
    fds: dict[int, ff.FdSource],
) -> dict[str, int]:
    """Choose a worker's numbers for its descriptors, above the standard ones.

    Args:
        spec: its component, whose ``give`` is the way that listeners go.
        listeners: name -> socket.
        private: name -> descriptor of which FORKFD_WORKER has the number.
        fds: the worker's number -> source; the choice is added, but for LISTEN_FDS.

    Returns:
        Name -> number, of the private ones.
    """
    used = FIRST
    if spec.give == "listen_fds":
        used += len(listeners)
    elif spec.give == "numbers":
        wanted = spec.numbers or {}
        fds.update({wanted[name]: found for name, found in listeners.items()})
        used = max([FIRST - 1, *wanted.values()]) + 1
    numbers = {name: used + i for i, name in enumerate(private)}
    fds.update({numbers[name]: source for name, source in private.items()})
    return numbers


def _environment(
    worker: Worker,
    notify_path: str,
    listeners: Mapping[str, socket.socket],
    numbers: Mapping[str, int],
) -> dict[str, str]:
    spec = worker.spec
    env = environment(spec, os.environ)
    # So that dump_signal shows the stack of a Python program that knows nothing of us.
    env.setdefault("PYTHONFAULTHANDLER", "1")
    env["WATCHDOG_USEC"] = str(int(spec.heartbeat.stale_after * 1_000_000))
    env["NOTIFY_SOCKET"] = notify_path
    own_numbers = spec.numbers or {}
    env[VARIABLE] = Identity(
        component=spec.name,
        worker_id=worker.id,
        position=worker.position,
        generation=worker.generation,
        channel=numbers.get("channel"),
        page=numbers.get("page"),
        slot=SLOT if "page" in numbers else None,
        log=numbers.get("log"),
        listen={name: own_numbers[name] for name in listeners} if spec.give == "numbers" else {},
        by_channel=spec.give == "channel",
    ).encode()
    return env


def send_order(
    channel: ff.FdChannel, order: OrderMessage, fds: Mapping[str, ff.HasFileno] = {}
) -> bool:
    """Send an order to a worker; never wait.

    Args:
        channel: to the worker.
        order: the order.
        fds: name -> descriptor that goes with it; borrowed.

    Returns:
        False if it was not sent: the channel is full, or its other end is closed.

    Raises:
        ValueError: the order is no JSON or too long.
    """
    try:
        channel.send(encode_order(order, tuple(fds)), list(fds.values()), timeout=0)
    except OSError:  # TimeoutError is one
        return False
    return True
