"""Children that report their state, started by one back end."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, Unpack, cast

import pytest

import pyforkfd as ff
from pyforkfd._types import Keep

BACKENDS: tuple[ff.Backend, ...] = ("clone3", "clone", "fork-like")
REPORT = 99  # the descriptor on which the child of look() reports

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# With any of these options the child must not share the parent's memory.
CREDENTIALS = {"user", "group", "extra_groups", "capabilities", "namespaces"}


class Options(TypedDict, total=False):
    """The keyword arguments of Command."""

    executable: ff.StrPath | int | ff.HasFileno | None
    argv0: ff.StrPath | None
    env: Mapping[str, str] | Mapping[bytes, bytes] | None
    cwd: ff.StrPath | int | ff.HasFileno | None
    fds: Mapping[int, ff.FdSource] | None
    close_others: bool
    listen: Mapping[str, int | ff.HasFileno] | None
    new_session: bool
    process_group: int | None
    controlling_terminal: ff.StrPath | int | ff.HasFileno | None
    foreground: bool | int | ff.HasFileno
    umask: int | None
    rlimits: Mapping[int, tuple[int, int]] | None
    nice: int | None
    cpu_affinity: Iterable[int] | None
    scheduler: ff.Scheduler | None
    user: str | int | None
    group: str | int | Keep | None
    extra_groups: Iterable[str | int] | Keep | None
    capabilities: ff.Capabilities | None
    no_new_privs: bool
    parent_death_signal: int | None
    parent_death_scope: Literal["process", "thread"]
    chroot: ff.StrPath | None
    namespaces: Iterable[Literal["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]]
    uid_map: Sequence[tuple[int, int, int]]
    gid_map: Sequence[tuple[int, int, int]]
    seccomp: bytes | None
    cgroup: ff.StrPath | int | ff.HasFileno | None
    signal_mask: Iterable[int] | None
    default_signals: Iterable[int]
    ignore_signals: Iterable[int]


class Seen(TypedDict):
    """The report of tests/helpers/look.c."""

    fds: dict[str, list[int]]  # device, inode, access mode, close-on-exec
    argv: list[str]
    env: list[str]
    pid: int
    ppid: int
    sid: int
    pgid: int
    terminal: bool
    foreground: int
    pidfd_inode: int
    death_signal: int
    no_new_privs: int
    seccomp: int
    blocked: int
    ignored: int
    handled: int
    capabilities: dict[str, int]
    uid: list[int]
    gid: list[int]
    groups: list[int]
    umask: int
    nice: int
    scheduler: list[int]
    cpus: list[int]
    limits: dict[str, list[int]]
    cwd: str
    namespaces: dict[str, str]
    cgroup: str


def build(source: Path, program: Path, *options: str) -> None:
    """Compile a program; statically, since some tests run it in an empty root directory."""
    command: list[str | Path] = [
        "cc",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-O1",
        "-static",
        *options,
        "-o",
        program,
        source,
    ]
    subprocess.run(command, check=True)


def raw(text: str) -> bytes:
    """Return a string of the report as the bytes that it was."""
    return text.encode("latin-1")


def environment(seen: Seen) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in seen["env"])


def descriptors(seen: Seen) -> dict[int, tuple[int, int]]:
    """Return the child's number -> (device, inode)."""
    return {int(fd): (dev, ino) for fd, (dev, ino, _, _) in seen["fds"].items()}


def identity(fd: int) -> tuple[int, int]:
    """Return (device, inode) of a descriptor of ours."""
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def bits(signals: Iterable[int]) -> int:
    return sum(1 << (sig - 1) for sig in signals)


@dataclass(frozen=True)
class Children:
    """Children started by one back end; each asserts that this back end was used."""

    backend: ff.Backend
    program: Path

    def expected(self, options: Options) -> ff.Backend:
        return "fork-like" if CREDENTIALS & options.keys() else self.backend

    def start(self, args: Sequence[ff.StrPath], **options: Unpack[Options]) -> ff.Process:
        child = ff.Command(args, **options).spawn()
        assert child.backend == self.expected(options)
        return child

    def output(self, args: Sequence[ff.StrPath], **options: Unpack[Options]) -> bytes:
        """Run a child that must succeed, and return what it writes to its 1."""
        options["fds"] = {1: ff.PIPE, **(options.get("fds") or {})}
        with self.start(args, **options) as child:
            assert child.stdout is not None
            written = child.stdout.read()
        assert child.status is not None and child.status.success, child.status
        return written

    def look(self, *more: str, **options: Unpack[Options]) -> Seen:
        """Run a child that must succeed with these options, and return its report."""
        return self.look_as([self.program, str(REPORT), *more], **options)

    def look_as(self, args: Sequence[ff.StrPath], **options: Unpack[Options]) -> Seen:
        options["fds"] = {**(options.get("fds") or {}), REPORT: ff.PIPE_FROM_CHILD}
        with self.start(args, **options) as child:
            seen = read_report(child)
        assert child.status is not None and child.status.success, child.status
        return seen


def read_report(child: ff.Process) -> Seen:
    """Read the report of a child started with {REPORT: PIPE_FROM_CHILD}."""
    seen = json.loads(child.pipes[REPORT].read())
    assert seen["fds"].pop(str(REPORT)), "the report's own descriptor is open"
    return cast(Seen, seen)
