"""One worker, from what is wanted to a process: its descriptors, environment and options."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyforkfd as ff
from pyforkfd._options import WorkerOptions
from pyforkfd.supervisor.spec._privileges import environment, spawn_options
from pyforkfd.supervisor.spec._spec import Component, Service, ZygoteSpec
from pyforkfd.supervisor.state._model import Worker
from pyforkfd.zygote import Zygote

FIRST = 3  # SD_LISTEN_FDS_START
VARIABLE = "FORKFD_WORKER"


@dataclass(slots=True)
class Given:
    """What a worker gets besides its own options; every descriptor is borrowed.

    Attributes:
        listeners: name -> socket.
        notify_path: for NOTIFY_SOCKET.
        die_with_us: the kernel kills it when this thread ends, prctl(2) PR_SET_PDEATHSIG.
        stdout: None: ours.
        stderr: None: ours.
        cgroup: the directory it is born in.
        extras: what FORKFD_WORKER tells the number of: page, log.
        slot: its slot of the page.
    """

    listeners: Mapping[str, socket.socket]
    notify_path: str
    die_with_us: bool = False
    stdout: ff.FdSource | None = None
    stderr: ff.FdSource | None = None
    cgroup: int | None = None
    extras: Mapping[str, ff.HasFileno] = field(default_factory=dict)
    slot: int | None = None


def launch(worker: Worker, given: Given, zygote: Zygote | None) -> tuple[ff.Process, ff.FdChannel]:
    """Start a worker.

    Args:
        worker: as the state has it.
        given: see there.
        zygote: for a component that is a function.

    Returns:
        The process and our end of its channel; the caller owns both.

    Raises:
        SpawnError, ZygoteError, OSError, ValueError: it could not be started; nothing is left.
    """
    spec = worker.spec
    ours, theirs = ff.FdChannel.pair()
    try:
        with theirs:
            extras: dict[str, ff.HasFileno] = {"channel": theirs, **given.extras}
            listen, fds, numbers = _descriptors(spec, given, extras)
            env = _environment(worker, given, numbers)
            options: WorkerOptions = {
                **spawn_options(spec),
                "fds": fds,
                "listen": listen,
                "env": env,
                # A group of its own: Ctrl-C is for us, who tell the workers in our own way.
                "process_group": 0,
                "signal_mask": (),
            }
            if given.cgroup is not None:
                options["cgroup"] = given.cgroup
            if given.die_with_us:
                options["parent_death_signal"] = signal.SIGKILL
            process = _start(spec, options, zygote)
        if spec.give == "channel":
            tell(ours, "listeners", given.listeners)  # there is room: it is the first
    except BaseException:
        ours.close()
        raise
    return process, ours


def _start(spec: Component, options: WorkerOptions, zygote: Zygote | None) -> ff.Process:
    if spec.command is not None:
        # This thread is its parent: the only one that is left after an execve(2) in place.
        return ff.spawn(spec.command, parent_death_scope="thread", **options)
    assert zygote is not None and spec.function is not None, "a function needs a zygote"
    return zygote.spawn(spec.function, args=spec.args, kwargs=dict(spec.kwargs), **options)


def _descriptors(
    spec: Component, given: Given, extras: Mapping[str, ff.HasFileno]
) -> tuple[dict[str, socket.socket] | None, dict[int, ff.FdSource], dict[str, int]]:
    """LISTEN_FDS' names, the map of the rest, and the numbers of the extras."""
    fds: dict[int, ff.FdSource] = {
        0: ff.DEVNULL,
        1: ff.INHERIT if given.stdout is None else given.stdout,
        2: ff.INHERIT if given.stderr is None else given.stderr,
    }
    listen: dict[str, socket.socket] | None = None
    used = FIRST
    if spec.give == "listen_fds" and given.listeners:
        listen = dict(given.listeners)
        used += len(listen)
    elif spec.give == "numbers":
        wanted = spec.numbers or {}
        fds.update({wanted[name]: found for name, found in given.listeners.items()})
        used = max([FIRST - 1, *wanted.values()]) + 1
    numbers = {name: used + i for i, name in enumerate(extras)}
    fds.update({numbers[name]: source for name, source in extras.items()})
    return listen, fds, numbers


def _environment(worker: Worker, given: Given, numbers: Mapping[str, int]) -> dict[str, str]:
    spec = worker.spec
    env = environment(spec, os.environ)
    # So that dump_signal shows the stack of a Python program that knows nothing of us.
    env.setdefault("PYTHONFAULTHANDLER", "1")
    env["WATCHDOG_USEC"] = str(int(spec.heartbeat.stale_after * 1_000_000))
    env["NOTIFY_SOCKET"] = given.notify_path
    about: dict[str, object] = {
        "component": spec.name,
        "worker": worker.id,
        "position": worker.position,
        "generation": worker.generation,
        **numbers,
    }
    if spec.give == "channel":
        about["listen"] = "channel"
    elif spec.give == "numbers" and spec.numbers:
        about["listen"] = ",".join(f"{name}:{spec.numbers[name]}" for name in given.listeners)
    if given.slot is not None:
        about["slot"] = given.slot
    env[VARIABLE] = " ".join(f"{name}={value}" for name, value in about.items())
    return env


def zygote_for(service: Service, spec: Component) -> ZygoteSpec:
    """The zygote that makes a component's workers; its own where it names none.

    It has imported the modules of its components' functions: a worker that had to would keep
    the loop waiting meanwhile, as a spawn is over when the function was found.
    """
    if spec.zygote is None:
        return ZygoteSpec(name=f"of {spec.name}", preload=_modules([spec]))
    zygote = service.zygotes[spec.zygote]
    made = [other for other in service.components.values() if other.zygote == zygote.name]
    preload = dict.fromkeys([*zygote.preload, *_modules(made)])  # in this order, each once
    return replace(zygote, preload=tuple(preload))


def _modules(components: Iterable[Component]) -> tuple[str, ...]:
    return tuple(c.function.partition(":")[0] for c in components if c.function is not None)


def tell(
    channel: ff.FdChannel,
    order: str,
    fds: Mapping[str, ff.HasFileno] = {},
    about: Mapping[str, Any] = {},
) -> bool:
    """Send an order; never waits.

    Args:
        channel: to the worker.
        order: its name.
        fds: name -> descriptor that goes with it; borrowed.
        about: what else the order says.

    Returns:
        False if it cannot be delivered: the worker does not read, or has closed its end.
    """
    body = {**about, "order": order, **({"fds": list(fds)} if fds else {})}
    try:
        channel.send(json.dumps(body).encode(), list(fds.values()), timeout=0)
    except (TimeoutError, OSError):
        return False
    return True
