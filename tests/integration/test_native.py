"""The C++ tests of tests/native, one lane at a time."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys

import pytest
from places import TESTS
from tools import NATIVE_TOOLS, tool

NATIVE = TESTS / "native"
EMULATOR = ("qemu-aarch64", "qemu-user")
# Lane -> the programs it wants, and the Debian package of each.
LANES: dict[str, list[tuple[str, str]]] = {
    "gcc": [("g++", "g++")],
    "clang": [("clang++", "clang")],
    "asan": [("g++", "g++")],
    "tsan": [("g++", "g++")],
    "fuzz": [("clang++", "clang")],
    "aarch64": [("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"), EMULATOR],
    "musl": [],
}


def demand_zig() -> None:
    if importlib.util.find_spec("ziglang") is not None:
        return
    if os.environ.get("CI"):
        pytest.fail("ziglang is missing: the test extra installs it")
    pytest.skip("no ziglang, whose C++ toolchain has musl (pip install ziglang)")


@pytest.mark.timeout(3100)  # it compiles the core; what hangs is a program, and has a limit
@pytest.mark.parametrize("lane", LANES)
def test_lane(lane: str) -> None:
    """In build/native, which a second run finds up to date."""
    if lane in ("aarch64", "musl") and platform.machine() != "x86_64":
        pytest.skip(f"the {lane} lane is built on x86-64")
    for program, package in LANES[lane]:
        tool(program, package, NATIVE_TOOLS)
    if lane == "musl":
        demand_zig()
    done = subprocess.run(
        ["make", f"-j{os.cpu_count()}", "-C", NATIVE, "check", f"LANE={lane}"],
        env={**os.environ, "ZIG": f"{sys.executable} -m ziglang"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " 0 failed" in done.stdout, "nothing was run"
