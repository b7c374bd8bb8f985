"""Spawning under a seccomp filter that refuses what we would rather use."""

from __future__ import annotations

import errno
import json
import platform
import sys

import pytest
from sandbox import CLOSE_RANGE, refuse

import pyforkfd as ff

CLONE3, PIDFD_OPEN = 435, 434
CLONE = {"x86_64": 56, "aarch64": 220}[platform.machine()]

# What the sandboxed interpreter does: one spawn, told as JSON.
PROBE = """
import json, os, sys
import pyforkfd as ff
from pyforkfd import _core
fd = os.open("/dev/null", os.O_RDONLY)
os.set_inheritable(fd, True)
try:
    with ff.spawn(["ls", "/proc/self/fd"], fds={1: ff.PIPE, 9: fd}) as child:
        open_in_child = sorted(map(int, child.stdout.read().split()))
    print(json.dumps({"fds": open_in_child, "code": child.status.code,
                      "backend": child.backend, "refusals": _core.refusals()}))
except ff.SpawnError as error:
    print(json.dumps({"stage": error.stage, "errno": error.errno, "text": str(error)}))
"""


def spawn_inside(numbers: list[int], err: int) -> dict[str, object]:
    with ff.spawn(
        [sys.executable, "-I", "-c", PROBE],
        fds={1: ff.PIPE},
        seccomp=refuse(numbers, err),
        no_new_privs=True,
    ) as sandboxed:
        assert sandboxed.stdout is not None
        answer = sandboxed.stdout.read()
    assert sandboxed.status is not None and sandboxed.status.success, sandboxed.status
    result = json.loads(answer)
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("err", [errno.ENOSYS, errno.EPERM])
def test_all_three_refused(err: int) -> None:
    got = spawn_inside([CLONE3, CLOSE_RANGE, PIDFD_OPEN], err)
    # 3 is ls's own descriptor of the directory it lists.
    assert got["fds"] == [0, 1, 2, 3, 9]
    assert (got["backend"], got["code"]) == ("clone", 0)
    refusals = got["refusals"]
    assert isinstance(refusals, dict)
    assert (refusals["clone3"], refusals["unshare"]) == (err, err)


@pytest.mark.parametrize("number", [CLONE3, CLOSE_RANGE, PIDFD_OPEN])
def test_each_refused_alone(number: int) -> None:
    got = spawn_inside([number], errno.EPERM)
    assert got["fds"] == [0, 1, 2, 3, 9]
    assert got["backend"] == ("clone" if number == CLONE3 else "clone3")


def test_no_clone_at_all_is_named() -> None:
    got = spawn_inside([CLONE3, CLONE], errno.EPERM)
    assert (got["stage"], got["errno"]) == ("clone", errno.EPERM)
    assert got["text"] == "spawn ls: clone: clone, clone3 being refused: Operation not permitted"
