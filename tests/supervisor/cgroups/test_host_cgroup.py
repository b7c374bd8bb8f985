"""What differs between machines: pressure stall information, and missing controllers."""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path

import pytest
from cgroups import CONTROLLERS, python

from pyforkfd.supervisor.cgroups._file import CgroupError
from pyforkfd.supervisor.cgroups._leaf import Leaf
from pyforkfd.supervisor.cgroups._tree import Tree, open_tree
from pyforkfd.supervisor.spec._limits import Limits

BURNER = "while True: pass"
WINDOW = 2_000_000  # microseconds; one that an unprivileged process may have


@pytest.fixture
def pressed(tree: Tree) -> Leaf:
    leaf = tree.leaf("web.1")
    if not (leaf.path / "cpu.pressure").exists():
        leaf.remove()
        pytest.skip("this kernel has no pressure stall information (CONFIG_PSI)")
    return leaf


def test_a_trigger_fires_when_tasks_wait(pressed: Leaf) -> None:
    processor = {min(os.sched_getaffinity(0))}
    with pressed, pressed.pressure_trigger("cpu", 50_000, WINDOW) as fd:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        assert poll.poll(0) == []
        # Two that want the same processor: one of them waits.
        with (
            python(BURNER, cgroup=pressed, cpu_affinity=processor),
            python(BURNER, cgroup=pressed, cpu_affinity=processor),
        ):
            assert poll.poll(30_000) == [(fd.fileno(), select.POLLPRI)]


def test_a_trigger_ends_with_its_cgroup(pressed: Leaf) -> None:
    with pressed.pressure_trigger("memory", 100_000, WINDOW, full=True) as fd:
        assert pressed.remove()
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        ((_, event),) = poll.poll(10_000)
        assert event & select.POLLERR


def test_a_window_that_the_kernel_refuses(pressed: Leaf) -> None:
    with pressed:
        with pytest.raises(CgroupError) as caught:
            pressed.pressure_trigger("memory", 1, 1)
        assert caught.value.errno == errno.EINVAL
        assert str(caught.value).startswith(
            f"write 'some 1 1' to {pressed.path}/memory.pressure: Invalid argument; a window is "
        )
        with pytest.raises(ValueError, match="3 is not within 2 microseconds"):
            pressed.pressure_trigger("memory", 3, 2)


def test_without_pressure_information_the_error_names_the_option(tmp_path: Path) -> None:
    """Make a trigger where its file is missing, as in a kernel without CONFIG_PSI."""
    with Leaf(tmp_path) as leaf, pytest.raises(CgroupError) as caught:
        leaf.pressure_trigger("memory", 100_000, WINDOW)
    assert caught.value.errno == errno.ENOENT
    assert "CONFIG_PSI" in str(caught.value)


def test_a_controller_that_this_machine_does_not_have(home: Path) -> None:
    has = (home / "cgroup.controllers").read_text().split()
    if set(CONTROLLERS) <= set(has):
        pytest.skip("this machine's cgroup v2 tree has all controllers")
    limits = Limits(memory_max=1, cpu_weight=1, pids_max=1)
    v1 = {
        option
        for line in Path("/proc/mounts").read_text().splitlines()
        if line.split()[2] == "cgroup"
        for option in line.split()[3].split(",")
    }
    with pytest.raises(CgroupError) as caught:
        open_tree("require", [limits], start=home)
    errors = [str(caught.value), *caught.value.__notes__]
    absent = [name for name in CONTROLLERS if name not in has]
    assert len(errors) == len(absent)
    for name, text in zip(absent, errors, strict=True):
        assert text.startswith(
            f"cannot have the {name} controller: write '+{name}' to "
            f"{home}/cgroup.subtree_control: No such file or directory; "
        )
        assert ("belongs to the cgroup v1 hierarchy at" in text) == (name in v1)
    tree, missing = open_tree("prefer", [limits], start=home)
    assert tree is not None
    with tree, tree.leaf("web.1", limits) as leaf:
        assert sorted(missing) == sorted(errors)
        assert leaf.missing == (), "reported once, not for every worker"
