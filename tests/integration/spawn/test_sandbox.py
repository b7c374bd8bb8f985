"""Spawning under a seccomp filter that refuses what we would rather use."""

from __future__ import annotations

import errno
import json
import os
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


# One thread meets a shortage at its first spawn; then another thread spawns without one.
SHORTAGE = """
import ctypes, json, sys, threading
import pyforkfd as ff
from pyforkfd import _core
SET_NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2
code = bytes.fromhex(sys.argv[1])

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

def spawn_in_shortage():  # prctl(2): both are of the calling thread
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    program = Program(len(code) // 8, code)
    assert prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert prctl(SET_SECCOMP, FILTER, ctypes.byref(program), 0, 0) == 0
    try:
        ff.spawn(["true"]).wait()
        report["started"] = True
    except ff.SpawnError as error:
        report["stage"], report["errno"] = error.stage, error.errno

report = {}
thread = threading.Thread(target=spawn_in_shortage)
thread.start()
thread.join()
with ff.spawn(["true"]) as child:
    child.wait()
report["backend"], report["refusals"] = child.backend, _core.refusals()
print(json.dumps(report))
"""


def after_shortage(numbers: list[int], err: int) -> dict[str, object]:
    command = [sys.executable, "-I", "-c", SHORTAGE, refuse(numbers, err).hex()]
    with ff.spawn(command, fds={1: ff.PIPE, 2: 2}) as interpreter:
        assert interpreter.stdout is not None
        answer = interpreter.stdout.read()
    assert interpreter.status is not None and interpreter.status.success, interpreter.status
    result = json.loads(answer)
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("err", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_a_shortage_is_not_remembered(err: int) -> None:
    """Later children are started as if nothing had been."""
    usual = after_shortage([], err)
    assert usual.pop("started")
    failing = {(CLONE3, CLONE): "clone", (CLOSE_RANGE,): "unshare_descriptors", (CLONE,): None}
    for numbers, stage in failing.items():
        got = after_shortage(list(numbers), err)
        if stage is None:  # the probe of shared memory alone has failed
            assert got.pop("started")
        else:
            assert (got.pop("stage"), got.pop("errno")) == (stage, err)
        assert got == usual, f"{os.strerror(err)} of {numbers} is remembered"
