"""Every step of a spawn fails in its turn: it is named, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import Children, Options

import pyforkfd as ff
from pyforkfd import _core

ERR = errno.EDQUOT  # nothing here fails with it by itself
ONLY_7: dict[int, ff.FdSource] = {0: ff.CLOSED, 1: ff.CLOSED, 2: ff.CLOSED, 7: 0}
UID, GID = os.geteuid(), os.getegid()
MAPPED: Options = {"namespaces": ["user"], "uid_map": [(0, UID, 1)]}
ALLOW = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)

# Stage -> options that enter it, and what the message says of it.
STEPS: dict[str, tuple[Options, str]] = {
    "descriptor_source": ({"fds": {7: 0}}, "find descriptor to pass: 0 -> child's 7"),
    "open_null": ({"fds": {7: ff.DEVNULL}}, "open /dev/null: /dev/null"),
    "make_pipe": ({"fds": {7: ff.PIPE}}, "make pipe: for child's 7"),
    "open_resource": (
        {"new_session": True, "controlling_terminal": "/dev/null"},
        "open: /dev/null",
    ),
    "child_stack": ({}, "map child stack: 64 KiB"),
    "helper_thread": (MAPPED, "start helper thread: writer of uid_map and gid_map"),
    "clone": ({}, r"clone: clone3"),
    "pidfd": ({}, r"open pidfd: of child \d+"),
    "parent_alive": (
        {"parent_death_signal": signal.SIGTERM},
        "check that the parent lives: signal 15",
    ),
    "cgroup": ({}, r"enter cgroup: /.*/pyforkfd-test-\d+"),
    "id_maps": (MAPPED, "write user namespace maps: uid_map, gid_map"),
    "session": ({"new_session": True}, "start session"),
    "process_group": ({"process_group": 0}, "set process group: 0"),
    "controlling_terminal": (
        {"new_session": True, "controlling_terminal": 0},
        "set controlling terminal: descriptor 0",
    ),
    "foreground": ({"foreground": 0}, "set foreground process group: descriptor 0"),
    "unshare_descriptors": ({}, "unshare descriptor table"),
    "keep_descriptor": ({"cwd": 0}, "keep descriptor for later: descriptor 0"),
    "map_descriptor": ({"fds": ONLY_7}, "map descriptor: 0 -> child's 7"),
    "close_others": ({}, "close other descriptors"),
    "open_file": ({"fds": {7: ff.Open("/dev/null")}}, "open file: /dev/null -> child's 7"),
    "umask": ({"umask": 0o22}, "set umask"),
    "resource_limit": (
        {"rlimits": {resource.RLIMIT_CORE: (0, 0)}},
        "set resource limit: RLIMIT_CORE",
    ),
    "nice": ({"nice": 3}, "set nice value: 3"),
    "affinity": ({"cpu_affinity": [0]}, "set CPU affinity"),
    "scheduler": ({"scheduler": ff.Scheduler(os.SCHED_BATCH)}, "set scheduler: policy 3"),
    "chroot": ({"chroot": "/"}, "change root directory: /"),
    "bounding_set": (
        {"capabilities": ff.Capabilities(bounding=[])},
        "limit capability bounding set: CAP_CHOWN",
    ),
    "keep_capabilities": (
        {"user": UID, "group": GID, "capabilities": ff.Capabilities(permitted=[])},
        "keep capabilities across the change of user",
    ),
    "groups": ({"extra_groups": []}, "set supplementary groups: 0 groups"),
    "group": ({"group": GID}, f"set group: {GID}"),
    "user": ({"user": UID, "group": ff.KEEP, "extra_groups": ff.KEEP}, f"set user: {UID}"),
    "capabilities": ({"capabilities": ff.Capabilities(permitted=[])}, "set capabilities"),
    "ambient_set": (
        {"capabilities": ff.Capabilities(ambient=[])},
        "set ambient capabilities: clear",
    ),
    "working_directory": ({"cwd": "/"}, "change directory: /"),
    "no_new_privs": ({"no_new_privs": True}, "set no_new_privs"),
    "parent_death_signal": (
        {"parent_death_signal": signal.SIGTERM},
        "set parent death signal: signal 15",
    ),
    "default_signals": ({}, r"reset signal to default: signal \d+"),
    "ignore_signals": ({"ignore_signals": [signal.SIGUSR1]}, "ignore signal: signal 10"),
    "environment": ({"listen": {"name": 0}}, "write LISTEN_PID and LISTEN_PIDFDID"),
    "signal_mask": ({}, "set signal mask"),
    "seccomp": (
        {"seccomp": ALLOW, "no_new_privs": True},
        "install seccomp filter: 1 instructions",
    ),
    "exec": ({}, "execute"),
}


@pytest.fixture
def fault() -> Iterator[Callable[[str], None]]:
    yield lambda stage: _core.inject_fault(stage, ERR)
    _core.clear_fault()


def refused(children: Children, options: Options) -> ff.SpawnError:
    """The error of a spawn in a new thread, which has no stack for children yet."""
    errors: list[ff.SpawnError] = []

    def start() -> None:
        try:
            ff.Command([children.program, "1"], **options).spawn().kill()
        except ff.SpawnError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert errors, "the child was started all the same"
    return errors[0]


def test_the_table_is_complete() -> None:
    assert tuple(STEPS) == ff.STAGES


@pytest.mark.parametrize("stage", ff.STAGES)
def test_a_step_that_fails(
    children: Children,
    stage: str,
    fault: Callable[[str], None],
    request: pytest.FixtureRequest,
) -> None:
    options, said = STEPS[stage]
    if stage == "cgroup":
        options = {"cgroup": request.getfixturevalue("cgroup")}
    fault(stage)
    if stage == "cgroup" and children.backend != "clone":
        # clone3 itself puts the child there: the step is not taken.
        assert "pyforkfd-test-" in children.look(**options)["cgroup"]
        return
    error = refused(children, options)
    assert (error.stage, error.errno) == (stage, ERR)
    assert re.fullmatch(f"spawn {children.program}: {said}: {os.strerror(ERR)}", str(error))
    _core.clear_fault()
    assert children.look(**options if stage == "umask" else {})["ppid"] == os.getpid()


def test_a_fault_names_a_known_step() -> None:
    with pytest.raises(ValueError, match="no spawn stage is named 'tea'"):
        _core.inject_fault("tea", ERR)


def test_pipes_of_a_failed_spawn_are_closed(
    children: Children, fault: Callable[[str], None], tmp_path: Path
) -> None:
    """Ours and the child's, at the last step of all."""
    fault("exec")
    with socket.socket() as ours:
        error = refused(children, {"fds": {0: ff.PIPE, 1: ff.PIPE, 2: ff.PIPE, 5: ours}})
    assert error.stage == "exec"
