"""The functions and modules of a service, imported by another process, to find those that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pyforkfd as ff
from pyforkfd._entry_points import is_entry_point
from pyforkfd.supervisor.processes._zygotes import import_directories, path_with, zygote_for
from pyforkfd.supervisor.spec._problems import Problem
from pyforkfd.supervisor.spec._spec import Component, Service

_MOST_SECONDS = 60.0
_REPORTS = 3  # the child's descriptor
# -P: nothing is imported from the directory in which the check is started.
_CODE = """
import json, sys
path, later, targets = json.load(sys.stdin)
sys.path[:] = path
from pyforkfd.supervisor.commands._importing import main
sys.path[:] = later
main(targets, 3)
"""
Targets = dict[str, tuple[str | int, ...]]
"""``package.module`` or ``package.module:function`` -> its place in the specification."""


def unimportable(service: Service) -> Iterator[Problem]:
    """Find the modules and functions that zygotes and workers cannot import.

    Each zygote's are imported in a process of their own, in its order and with its environment,
    for no longer than a worker may take to boot.

    Args:
        service: values of it may be wrong: those are left out.
    """
    users: dict[str, list[Component]] = {}
    for component in service.components.values():
        known = component.zygote is None or component.zygote in service.zygotes
        if is_entry_point(component.function) and known:
            users.setdefault(component.zygote or f"of {component.name}", []).append(component)
    for components in users.values():
        zygote = zygote_for(service, components[0])
        targets: Targets = {}
        for index, module in enumerate(zygote.preload):
            targets.setdefault(module, ("zygotes", zygote.name, "preload", index))
        if is_entry_point(zygote.setup):
            targets[str(zygote.setup)] = ("zygotes", zygote.name, "setup")
        for component in components:
            place = ("components", component.name, "function")
            module = str(component.function).partition(":")[0]
            spec = service.zygotes.get(zygote.name)
            if spec is None or module not in spec.preload:
                targets[module] = place
            targets[str(component.function)] = place
        env = None if zygote.env is None else {**os.environ, **zygote.env}
        seconds = min([_MOST_SECONDS, *(component.boot_timeout for component in components)])
        directories, refused = import_directories(service, components[0])
        for problem in _failures(targets, env, seconds, directories):
            yield replace(problem, text="; ".join([problem.text, *refused]))


def hooks(service: Service) -> Iterator[Problem]:
    """Find the functions of ``on_crash`` that cannot be imported: a service starts without them."""
    targets: Targets = {}
    for name, component in service.components.items():
        for index, hook in enumerate(component.on_crash):
            if isinstance(hook, str) and is_entry_point(hook):
                targets.setdefault(hook, ("components", name, "on_crash", index))
    first = [] if service.app_dir is None else [service.app_dir]
    yield from _failures(targets, None, _MOST_SECONDS, first)


def _failures(
    targets: Targets,
    env: Mapping[str, str] | None,
    seconds: float,
    directories: Sequence[str],
) -> Iterator[Problem]:
    if not targets:
        return
    names, seen = list(targets), set[str]()
    for index, error in _import(names, env, max(0.0, seconds), directories):
        module = names[index].partition(":")[0]
        if module not in seen:  # a function of a module that failed is no further problem
            yield Problem(place=targets[names[index]], text=f'"{names[index]}": {error}')
        if ":" not in names[index]:
            seen.add(module)


def _import(
    targets: Sequence[str],
    env: Mapping[str, str] | None,
    seconds: float,
    directories: Sequence[str],
) -> list[tuple[int, str]]:
    """Import the targets in another process; return the index and the error of each that failed."""
    body = [sys.path, path_with(directories, sys.path), list(targets)]
    flags: Sequence[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    with (
        ff.Fd(os.memfd_create("check", os.MFD_CLOEXEC)) as request,
        ff.Fd(os.memfd_create("reports", os.MFD_CLOEXEC)) as reports,
    ):
        os.pwrite(request.fileno(), json.dumps(body).encode(), 0)
        with ff.spawn(
            [sys.executable, *flags, "-P", "-c", _CODE],
            env=env,
            fds={0: request, 1: ff.DEVNULL, 2: ff.DEVNULL, _REPORTS: reports},
            process_group=0,
            parent_death_signal=signal.SIGKILL,
        ) as process:
            try:
                end = f"its import has ended the process: {process.wait(seconds)}"
            except TimeoutError:
                end = f"not imported within {seconds:g} s"
            try:
                os.killpg(process.pid, signal.SIGKILL)  # and what the code has started
            except ProcessLookupError:
                pass
            process.wait()
        return _read(os.pread(reports.fileno(), 1 << 24, 0), end)


def _read(reports: bytes, end: str) -> list[tuple[int, str]]:
    """Return the failures that a process has reported, and that at which it ended."""
    failed: list[tuple[int, str]] = []
    at: int | None = 0
    for line in reports.splitlines():
        at, error = json.loads(line)
        if at is not None and error is not None:
            failed.append((at, error))
    if at is not None and not any(index == at for index, _ in failed):
        failed.append((at, end))
    return failed
