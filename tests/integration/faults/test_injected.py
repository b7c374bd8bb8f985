"""Every system call of a spawn fails in its turn, errno by errno, by strace's injection.

Unlike ``test_faults.py``, which lets our own code fail, this fails whatever the kernel is asked.
PYFORKFD_STRESS=1 or more tries every errno on every call; otherwise each call gets a few.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from children import build
from injected import CGROUP, ROUNDS, SHAPES, Victim, calls_of, victim
from places import ROOT
from tools import tool

# What may pass by itself, and so must not be remembered.
TRANSIENT = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR, errno.ENOSPC)
LASTING = (errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.EACCES, errno.EIO)
# With no error to handle: they cannot fail, or what they return is no success or failure; strace
# keeps the kernel from doing them at all, so that an injected close() leaks by itself.
HARMLESS = {
    *("close", "munmap", "exit", "exit_group", "getpid", "getppid", "gettid", "rseq"),
    *("set_robust_list", "rt_sigreturn", "rt_sigtimedwait", "restart_syscall", "madvise"),
    *("rt_sigprocmask", "futex", "brk", "kill"),
}
WAITS = {"wait4", "waitid"}  # for a child that is there, these can only be interrupted
EVERYTHING = "PYFORKFD_STRESS" in os.environ


@pytest.fixture(scope="module")
def nothing(programs: Path) -> Path:
    """A program that makes no system call but exit."""
    build(ROOT / "benchmarks/nothing.c", programs / "nothing", "-nostdlib")
    return programs / "nothing"


def transient(call: str, few: int) -> tuple[int, ...]:
    if call in WAITS:
        return (errno.EINTR,)
    return TRANSIENT if EVERYTHING else TRANSIENT[:few]


def fail(held: Victim, call: str, err: int, when: str, log: Path) -> dict[str, Any]:
    """Let one system call fail, and check how the victim takes it; the victim's answer."""
    name = errno.errorcode[err]
    options = ["-e", f"trace={call}", "-e", f"inject={call}:error={name}:when={when}"]
    answer = held.spawn_under(*options, log=log)
    where = f"{call} {name} when={when}"
    assert answer["leaks"] == [], where
    assert len(answer["results"]) == ROUNDS, where
    for result in answer["results"]:
        if result["error"]:
            assert result["stage"] is not None, (where, result)
            assert os.strerror(result["error"]) in result["text"], (where, result)
        else:
            assert result["status"] == "exit code 0", (where, result)
    assert answer["after"]["error"] == 0, (where, answer["after"])
    if err in TRANSIENT and answer["first"] is not None:
        assert answer["after"] == answer["first"], f"{where} is remembered"
    return answer


@pytest.mark.parametrize("shape", SHAPES)
def test_every_call_fails(
    shape: str, nothing: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tool("strace", "strace")
    if os.geteuid() != 0:
        pytest.skip("credentials, namespaces and cgroups want root")
    cgroup = str(request.getfixturevalue("cgroup")) if shape == CGROUP else ""
    log = tmp_path / "log"
    with victim(nothing, shape, cgroup) as held:
        answer = held.spawn_under(log=log)
        assert {r["error"] for r in answer["results"]} == {0}, answer
        calls = {c: n for c, n in calls_of(log).items() if c not in HARMLESS}
        assert calls.keys() >= {"clone3", "execve", "fcntl"}
        for call in calls:
            for err in transient(call, 2):
                for when in ("1+3", "2+3", "3+3") if EVERYTHING else ("1+2",):
                    fail(held, call, err, when, log)
    for err in LASTING if EVERYTHING else LASTING[:2]:
        with victim(nothing, shape, cgroup) as held:
            for call in calls.keys() - WAITS:
                fail(held, call, err, "1+3", log)


@pytest.mark.parametrize("shape", ["plain", "namespaces"])
def test_a_moment_at_the_first_spawn_is_not_remembered(
    shape: str, nothing: Path, tmp_path: Path
) -> None:
    """What is probed, is probed at the first spawn of a process."""
    tool("strace", "strace")
    log = tmp_path / "log"
    with victim(nothing, shape) as held:
        wanted = held.spawn_under(log=log)["first"]
    with victim(nothing, shape, warm=False) as held:
        held.spawn_under(log=log)
    calls = calls_of(log).keys() - HARMLESS
    assert "clone3" in calls
    for call in sorted(calls):
        for err in transient(call, 1):
            for when in ("1", "2"):
                with victim(nothing, shape, warm=False) as held:
                    answer = fail(held, call, err, when, log)
                assert answer["after"] == wanted, (call, errno.errorcode[err], when)
