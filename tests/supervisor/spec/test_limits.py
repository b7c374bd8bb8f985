"""The limits of a worker, as plain values."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pyforkfd.supervisor.spec._limits import Limits, Pressure


def test_no_limit_is_set_by_default() -> None:
    assert Limits().files() == {}
    assert Limits().controllers() == frozenset()


def test_each_limit_has_its_file() -> None:
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


def test_every_wrong_share_of_pressure_is_reported() -> None:
    assert Pressure().wanted() == {}
    assert Pressure(memory=1, cpu=0.01).wanted() == {"cpu": 0.01, "memory": 1}
    with pytest.raises(ValueError) as caught:
        Pressure(cpu=0.009, io=True, memory=1.1)
    assert str(caught.value).splitlines() == [
        "cpu: 0.009 is out of range; write a number, from 0.01 to 1",
        "io: true is not a number",
        "memory: 1.1 is out of range; write a number, from 0.01 to 1",
    ]


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"memory_max": 0}, ["memory_max: 0 is out of range; write bytes, above 0"]),
        ({"memory_max": "1G"}, ['memory_max: "1G" is not a whole number; write bytes']),
        ({"pids_max": True}, ["pids_max: true is not a whole number"]),
        ({"swap_max": False}, ["swap_max: false is not a whole number; write bytes"]),
        ({"swap_max": -1}, ["swap_max: -1 is out of range; write bytes, 0 or more"]),
        (
            {"cpu_weight": 10_001},
            ["cpu_weight: 10001 is out of range; write a whole number, from 1 to 10000"],
        ),
        (
            {"cpu_max": 0.001},
            ["cpu_max: 0.001 is out of range; write a number of processors, from 0.01..."],
        ),
        ({"cpu_max": "all"}, ['cpu_max: "all" is not a number or an array of 2']),
        (
            {"cpu_max": math.inf},
            ["cpu_max: inf is out of range; write a number of processors, ..."],
        ),
        (
            {"cpu_max": (999, 100_000)},
            [
                (
                    "cpu_max: (999, 100000) is out of range; write a quota from 1000 to "
                    "8192000000 and a period from 1000 to 1000000, in microseconds"
                )
            ],
        ),
        (
            {"memory_high": 2, "memory_max": 1},
            [
                (
                    "memory_high: 2 is above memory_max, 1, and would never slow anything down; "
                    "write less"
                )
            ],
        ),
        (
            {"memory_max": -1, "oom_group": 1, "pids_max": 0},
            [
                "memory_max: -1 is out of range; write bytes, above 0",
                "oom_group: 1 is not true or false",
                "pids_max: 0 is out of range; write a whole number, from 1 to 4194304",
            ],
        ),
    ],
)
def test_every_wrong_limit_is_reported(options: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        Limits(**options)
    found = str(caught.value).splitlines()
    assert len(found) == len(lines)
    for line, wanted in zip(found, lines, strict=True):
        assert line.startswith(wanted.removesuffix("...")), line
