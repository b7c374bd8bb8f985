"""umask, limits, nice value, processors, scheduler."""

from __future__ import annotations

import errno
import os
import resource

import pytest
from children import Children, needs_root

import pyforkfd as ff


def test_umask(children: Children) -> None:
    ours = os.umask(0o022)
    try:
        assert children.look(umask=0o027)["umask"] == 0o027
        assert children.look()["umask"] == 0o022
    finally:
        os.umask(ours)


def test_limits(children: Children) -> None:
    core, files = resource.RLIMIT_CORE, resource.RLIMIT_NOFILE
    ours = resource.getrlimit(files)
    limits = children.look(rlimits={core: (0, 4096), files: (100, 200)})["limits"]
    assert (limits[str(core)], limits[str(files)]) == ([0, 4096], [100, 200])
    assert resource.getrlimit(files) == ours


def test_an_unlimited_limit(children: Children) -> None:
    cpu = resource.RLIMIT_CPU
    hard = resource.getrlimit(cpu)[1]
    limits = children.look(rlimits={cpu: (7, hard)})["limits"]
    assert limits[str(cpu)] == [7, hard]


def test_descriptors_above_the_childs_own_limit_are_given(
    children: Children, other_fd: int
) -> None:
    """The map is made first: the limit is for what the child opens."""
    seen = children.look(rlimits={resource.RLIMIT_NOFILE: (4, 4)}, fds={50: other_fd})
    assert "50" in seen["fds"]


def test_a_limit_with_soft_above_hard(children: Children) -> None:
    with pytest.raises(ff.SpawnError) as caught:
        children.start(["true"], rlimits={resource.RLIMIT_CORE: (2, 1)})
    assert str(caught.value) == ("spawn true: set resource limit: RLIMIT_CORE: Invalid argument")


def test_nice(children: Children) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert children.look(nice=15)["nice"] == 15
    assert children.look()["nice"] == ours == os.getpriority(os.PRIO_PROCESS, 0)


@needs_root
def test_nice_upwards(children: Children) -> None:
    assert children.look(nice=-5)["nice"] == -5


def test_affinity(children: Children) -> None:
    ours = sorted(os.sched_getaffinity(0))
    for cpu in ours[:2]:
        assert children.look(cpu_affinity=[cpu])["cpus"] == [cpu]
    assert children.look()["cpus"] == ours == sorted(os.sched_getaffinity(0))


def test_a_processor_that_is_not_there(children: Children) -> None:
    with pytest.raises(ff.SpawnError) as caught:
        children.start(["true"], cpu_affinity=[8191])
    assert (caught.value.stage, caught.value.errno) == ("affinity", errno.EINVAL)


def test_scheduler(children: Children) -> None:
    assert children.look(scheduler=ff.Scheduler(os.SCHED_BATCH))["scheduler"] == [
        os.SCHED_BATCH,
        0,
    ]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_priority_out_of_range(children: Children) -> None:
    with pytest.raises(ff.SpawnError) as caught:
        children.start(["true"], scheduler=ff.Scheduler(os.SCHED_OTHER, 3))
    assert str(caught.value) == "spawn true: set scheduler: policy 0: Invalid argument"
