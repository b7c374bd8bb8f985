"""The library, and a program that leaks a descriptor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from preloaded import Preloaded, compile_leak

import pyforkfd as ff


@pytest.fixture(scope="session")
def leak(programs: Path) -> Path:
    """The program of tests/helpers/leak.c, dynamically linked."""
    compile_leak(programs / "leak", "cc")
    return programs / "leak"


@pytest.fixture
def preloaded(shared_path: Path) -> Preloaded:
    return Preloaded(shared_path / "log", ff.preload_library())


@pytest.fixture
def inherited() -> Iterator[int]:
    """A descriptor of ours to be given to programs."""
    fd = os.open("/etc/passwd", os.O_RDONLY)
    yield fd
    os.close(fd)
