"""The doctor asked by a program: the kernel's features, a process, one descriptor."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import needs_root
from test_sandbox import CLONE3, CLOSE_RANGE, PIDFD_OPEN, refuse

import pyforkfd as ff
from pyforkfd import _core, doctor

SANDBOXED = """
import json
from pyforkfd import doctor
print(json.dumps({f.name: [f.present, f.errno, f.seen] for f in doctor.features()}))
"""


@contextlib.contextmanager
def child(*args: str | Path, **fds: int) -> Iterator[ff.Process]:
    """A program that runs until the block ends; fds: number by name, as f7=3."""
    mapped: dict[int, ff.FdSource] = {int(name[1:]): fd for name, fd in fds.items()}
    started = ff.spawn([*args], fds={**mapped, 0: ff.PIPE})
    try:
        yield started
    finally:
        started.close()
        # Its 0 is at its end, so cat and sh end.
        os.waitpid(started.pid, 0)


def problems(examination: doctor.Examination) -> dict[int | None, set[str]]:
    found: dict[int | None, set[str]] = {}
    for problem in examination.problems:
        assert problem.text and problem.remedy
        found.setdefault(problem.number, set()).add(problem.name)
    return found


# Features


def test_features_are_those_that_a_spawn_uses() -> None:
    features = {feature.name: feature for feature in doctor.features()}
    with ff.spawn(["true"]) as started:
        assert started.wait().success
    refusals = _core.refusals()
    for name, key in (
        ("clone3(2)", "clone3"),
        ("CLONE_CLEAR_SIGHAND", "clear_sighand"),
        ("CLONE_PIDFD", "clone_pidfd"),
        ("CLOSE_RANGE_UNSHARE", "unshare"),
        ("memory shared by CLONE_VM", "shared_memory"),
    ):
        assert features[name].present == (refusals[key] == 0), name
    assert features["pidfs: inodes of pidfds"].present == (_core.own_pidfd_inode() is not None)
    for feature in features.values():
        assert feature.present == (feature.errno is None and feature.seen[:4] != "none") or (
            not feature.present
        )
        assert feature.seen and feature.used_for and feature.without


def test_what_a_sandbox_refuses_is_missing_by_its_errno() -> None:
    with ff.spawn(
        [sys.executable, "-I", "-c", SANDBOXED],
        fds={1: ff.PIPE},
        seccomp=refuse([CLONE3, CLOSE_RANGE, PIDFD_OPEN], errno.EPERM),
        no_new_privs=True,
    ) as sandboxed:
        assert sandboxed.stdout is not None
        seen = json.loads(sandboxed.stdout.read())
    for name in ("clone3(2)", "CLONE_CLEAR_SIGHAND", "close_range(2)", "pidfd_open(2)"):
        assert seen[name] == [False, errno.EPERM, "EPERM: Operation not permitted"], name
    for name in ("CLOSE_RANGE_UNSHARE", "CLOSE_RANGE_CLOEXEC", "pidfd_send_signal(2)"):
        assert seen[name][:2] == [False, errno.EPERM], name
    assert seen["CLONE_PIDFD"][0] is True, "clone(2) was not refused"


def test_each_call_alone() -> None:
    kcmp, seccomp = 312, 317
    if os.uname().machine == "aarch64":
        kcmp, seccomp = 272, 277
    with ff.spawn(
        [sys.executable, "-I", "-c", SANDBOXED],
        fds={1: ff.PIPE},
        seccomp=refuse([kcmp, seccomp], errno.ENOSYS),
        no_new_privs=True,
    ) as sandboxed:
        assert sandboxed.stdout is not None
        seen = json.loads(sandboxed.stdout.read())
    here = {feature.name: feature.present for feature in doctor.features()}
    different = {name for name, (present, _, _) in seen.items() if present != here[name]}
    assert different - {"bpf(2)", "cgroup v2, delegated to us"} == {
        name for name in ("kcmp(2)", "seccomp(2) filters") if here[name]
    }


def test_settings_are_what_proc_says() -> None:
    settings = {setting.name: setting for setting in doctor.settings()}
    largest = Path("/proc/sys/kernel/pid_max").read_text().strip()
    assert settings["kernel.pid_max"].value == largest
    assert settings["RLIMIT_NOFILE"].value
    assert all(setting.meaning for setting in settings.values())


# A process


def test_a_process_without_problems() -> None:
    with child("cat", f1=os.open(os.devnull, os.O_WRONLY)) as started:
        pass
