"""The limits of a worker, as plain values."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pyforkfd.supervisor.spec._limits import Limits, Pressure


def test_nothing_is_limited_that_nobody_asked_for() -> None:
    assert Limits().files() == {}
    assert Limits().controllers() == frozenset()


def test_what_is_written_where() -> None:
    limits = Limits(
        memory_max=2**30,
        memory_high=2**29,
        swap_max=0,
        oom_group=False,
        cpu_weight=20,
        cpu_max=1.5,
        pids_max=64,
    )
    assert limits.files() == {
        "memory.high": "536870912",
        "memory.max": "1073741824",
        "memory.swap.max": "0",
        "memory.oom.group": "0",
        "cpu.weight": "20",
        "cpu.max": "150000 100000",
        "pids.max": "64",
    }
    assert limits.controllers() == {"memory", "cpu", "pids"}
    assert Limits(cpu_max=(2000, 20000)).files() == {"cpu.max": "2000 20000"}


def test_pressure_that_makes_no_sense_is_said_whole() -> None:
    assert Pressure().wanted() == {}
    assert Pressure(memory=1, cpu=0.01).wanted() == {"cpu": 0.01, "memory": 1}
    with pytest.raises(ValueError) as caught:
        Pressure(cpu=0.009, io=True, memory=1.1)
    assert str(caught.value).splitlines() == [
        "cpu: 0.009 is not a share from 0.01 to 1",
        "io: True is not a share from 0.01 to 1",
        "memory: 1.1 is not a share from 0.01 to 1",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory_max": 0}, ["memory_max: 0 is not bytes above 0"]),
        ({"memory_max": "1G"}, ["memory_max: '1G' is not bytes above 0"]),
        ({"pids_max": True}, ["pids_max: True is not a whole number above 0"]),
        ({"swap_max": False}, ["swap_max: False is not bytes from 0"]),
        ({"swap_max": -1}, ["swap_max: -1 is not bytes from 0"]),
        ({"cpu_weight": 10_001}, ["cpu_weight: 10001 is not a whole number from 1 to 10000"]),
        ({"cpu_max": 0.001}, ["cpu_max: 0.001 processors are less than the kernel's 0.01"]),
        (
            {"cpu_max": math.inf},
            ["cpu_max: inf is neither a number of processors nor (quota, period)"],
        ),
        (
            {"cpu_max": (999, 100_000)},
            ["cpu_max: (999, 100000): the quota is 1000 microseconds at least, the period ..."],
        ),
        (
            {"memory_high": 2, "memory_max": 1},
            ["memory_high: 2 is above memory_max, 1, and would never slow anything down"],
        ),
        (
            {"memory_max": -1, "oom_group": 1, "pids_max": 0},
            [
                "memory_max: -1 is not bytes above 0",
                "oom_group: 1 is not True or False",
                "pids_max: 0 is not a whole number above 0",
            ],
        ),
    ],
)
def test_what_makes_no_sense_is_said_whole(options: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        Limits(**options)
    told = str(caught.value).splitlines()
    assert len(told) == len(said)
    for line, wanted in zip(told, said, strict=True):
        assert line.startswith(wanted.removesuffix("...")), line
