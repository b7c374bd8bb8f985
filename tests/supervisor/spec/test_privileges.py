"""Privileges of workers, seen by real ones in /proc/self/status."""

from __future__ import annotations

import inspect
import os
import resource
import struct
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from children import needs_root

import pyforkfd as ff
from pyforkfd.supervisor.spec._privileges import (
    CAPABILITIES,
    Holder,
    capabilities_for,
    environment,
    spawn_options,
)
from pyforkfd.supervisor.spec._spec import Component, Privileges
from pyforkfd.zygote import Zygote

BIND = 1 << CAPABILITIES["NET_BIND_SERVICE"]
NOBODY = 65534
# Other tests may have started the thread that watches parents; what we run here takes no lock.
forking = pytest.mark.filterwarnings("ignore::pyforkfd.ForkWarning")
ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def component(**changes: Any) -> Component:
    listening = {"name": "web", "command": ("/bin/true",), "listen": ("http",)}
    return Component(**{**listening, **changes})


def parsed(text: str | None) -> dict[str, str]:
    return {
        key: value.strip()
        for key, _, value in (line.partition(":") for line in (text or "").splitlines())
    }


def status(options: Mapping[str, Any]) -> dict[str, str]:
    """Return /proc/self/status of a real child with these options."""
    return parsed(
        ff.run(["/bin/cat", "/proc/self/status"], capture=True, text=True, **options).stdout
    )


def sets(found: Mapping[str, str]) -> list[int]:
    return [int(found[name], 16) for name in SETS]


def in_a_fork(act: Any) -> None:
    """Run it in a process that may lose its privileges; its failure is ours."""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        child = ff.fork()
    except BaseException:
        os.close(read)
        os.close(write)
        raise
    if child is None:
        try:
            act()
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as failure:
        traceback_of_child = failure.read()
    assert child.wait().success
    assert not traceback_of_child, traceback_of_child


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


@needs_root
def test_a_network_worker_of_root_may_bind_and_no_more() -> None:
    found = status(spawn_options(component()))
    assert sets(found) == [BIND] * len(SETS)
    assert found["NoNewPrivs"] == "1"


@needs_root
def test_a_network_worker_of_another_user_may_bind_and_no_more() -> None:
    found = status(spawn_options(component(privileges=Privileges(user=NOBODY, group=NOBODY))))
    assert sets(found) == [BIND] * len(SETS)
    assert found["Uid"].split() == [str(NOBODY)] * 4
    assert found["Groups"] == str(NOBODY) or not found["Groups"]


@pytest.mark.parametrize("user", [None, pytest.param(NOBODY, marks=needs_root)])
def test_a_worker_without_listeners_may_nothing(user: int | None) -> None:
    privileges = Privileges(user=user, group=user)
    found = status(spawn_options(component(listen=(), privileges=privileges)))
    assert sets(found)[:3] == [0, 0, 0]
    assert found["NoNewPrivs"] == "1"
    if Holder.now().may("SETPCAP"):
        assert sets(found) == [0] * len(SETS)


@needs_root
def test_named_capabilities_are_given() -> None:
    privileges = Privileges(capabilities=("CAP_KILL", "chown"), no_new_privs=False)
    found = status(spawn_options(component(privileges=privileges)))
    both = 1 << CAPABILITIES["KILL"] | 1 << CAPABILITIES["CHOWN"]
    assert sets(found) == [both] * len(SETS)
    assert found["NoNewPrivs"] == "0"


@needs_root
@forking
def test_a_supervisor_without_privileges_does_not_fail() -> None:
    bounding = sets(parsed(Path("/proc/self/status").read_text()))[3]

    def act() -> None:
        become_nobody()
        for listen in (("http",), ()):
            found = status(spawn_options(component(listen=listen)))
            assert sets(found) == [0, 0, 0, bounding, 0]
            assert found["NoNewPrivs"] == "1"
        # Whom it is already: nothing to change, so the same file serves root and nobody.
        same = Privileges(user=NOBODY, group=NOBODY, extra_groups=())
        assert status(spawn_options(component(privileges=same)))["Uid"].split()[0] == str(NOBODY)

    in_a_fork(act)


@needs_root
@forking
def test_a_supervisor_without_privileges_does_not_promise() -> None:
    def act() -> None:
        become_nobody()
        named = Privileges(capabilities=("NET_RAW",))
        with pytest.raises(ff.SpawnError, match=r"capabilities|ambient"):
            status(spawn_options(component(privileges=named)))
        # The bounding set is what a program with privileges of its own would gain from.
        gaining = Privileges(capabilities=(), no_new_privs=False)
        with pytest.raises(ff.SpawnError) as caught:
            status(spawn_options(component(privileges=gaining)))
        assert caught.value.stage == "bounding_set"

    in_a_fork(act)


@needs_root
def test_root_that_cannot_reduce_the_bounding_set_gives_no_more() -> None:
    """A container's root: exec would give it the bounding set back, but for no_new_privs."""
    held = [name for name in CAPABILITIES if name in ("CHOWN", "NET_BIND_SERVICE", "SETUID")]
    script = """
import pyforkfd as ff
from pyforkfd.supervisor.spec._privileges import spawn_options
from pyforkfd.supervisor.spec._spec import Component
web = Component(name="web", command=("/bin/true",), listen=("http",))
print(ff.run(["/bin/cat", "/proc/self/status"], capture=True, text=True,
             **spawn_options(web)).stdout)
"""
    held_sets = ff.Capabilities(bounding=held, permitted=held, inheritable=held)
    found = ff.run(
        [sys.executable, "-I", "-c", script],
        capture=True,
        text=True,
        capabilities=held_sets,
        check=True,
    )
    mask = sum(1 << CAPABILITIES[name] for name in held)
    assert sets(parsed(found.stdout)) == [BIND, BIND, BIND, mask, BIND]


@needs_root
def test_a_worker_of_a_zygote_has_the_same() -> None:
    options = spawn_options(component(command=None, function="os:system"))
    read, write = os.pipe2(os.O_CLOEXEC)
    with Zygote() as zygote:
        options["fds"] = {1: write}
        child = zygote.spawn("os:system", args=("/bin/cat /proc/self/status",), **options)
        os.close(write)
        with open(read, encoding="utf-8") as output:
            found = parsed(output.read())
        assert child.wait().success
    assert sets(found) == [BIND] * len(SETS)
    assert found["NoNewPrivs"] == "1"


@needs_root
@forking
def test_a_user_namespace_takes_no_privilege_to_reduce() -> None:
    def act() -> None:
        become_nobody()
        privileges = Privileges(namespaces=("user", "net"), capabilities=())
        found = status(spawn_options(component(privileges=privileges)))
        assert sets(found) == [0] * len(SETS)

    in_a_fork(act)


def test_the_rest_of_the_options(tmp_path: Path) -> None:
    program = tmp_path / "filter"
    program.write_bytes(ALLOW_ALL)
    described = component(
        cwd="/",
        umask=0o27,
        nice=5,
        rlimits={"nofile": 99, "RLIMIT_CORE": (0, 0)},
        privileges=Privileges(seccomp=str(program)),
    )
    options = spawn_options(described)
    assert options["rlimits"] == {resource.RLIMIT_NOFILE: (99, 99), resource.RLIMIT_CORE: (0, 0)}
    found = status(options)
    assert found["Seccomp"] == "2"
    assert found["Umask"] == "0027"
    program.write_bytes(b"short")
    with pytest.raises(ValueError, match=r"filter: not 1 to 4096 instructions"):
        spawn_options(described)


def test_both_ways_of_starting_know_all_options() -> None:
    everything = component(
        cwd="/",
        umask=0,
        nice=0,
        cpu_affinity=(0,),
        rlimits={"CORE": 0},
        privileges=Privileges(user=0, namespaces=("net",), chroot="/"),
    )
    nobody = Holder(
        permitted=frozenset(), effective=frozenset(), user=1, group=1, groups=frozenset()
    )
    options = set(spawn_options(everything, nobody))
    assert options <= set(inspect.signature(ff.Command).parameters)
    assert options <= set(inspect.signature(Zygote.spawn).parameters)


def test_the_default_is_only_what_the_supervisor_has() -> None:
    kill = frozenset({CAPABILITIES["KILL"], CAPABILITIES["SETPCAP"]})
    holder = Holder(permitted=kill, effective=kill, user=1, group=1, groups=frozenset())
    assert capabilities_for(component(), holder) == ff.Capabilities(
        bounding=(), permitted=(), inheritable=(), ambient=()
    )


def test_the_environment_has_no_variable_of_the_supervisor_alone() -> None:
    ours = {"A": "1", "B": "2", "LISTEN_FDS": "1", "NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "5"}
    assert environment(component(env={"B": "3"}), ours) == {"A": "1", "B": "3"}
    assert environment(component(env={"B": "3"}, clear_env=True), ours) == {"B": "3"}
