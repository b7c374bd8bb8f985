"""Guards around every test, and the back ends that every test of spawning runs under."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "helpers"), str(HERE.parent / "benchmarks")]  # clients.py is of both

from cgroups import cgroup_delegated, cgroup_home, cgroup_limited, cgroup_tree  # noqa: E402, F401
from children import BACKENDS, Children, build  # noqa: E402
from hangs import guard_against_hangs as pytest_configure  # noqa: E402, F401
from leaks import Holdings  # noqa: E402
from tools import tool  # noqa: E402

import pyforkfd as ff  # noqa: E402
from pyforkfd import _core  # noqa: E402

# A shell without job control has its background jobs ignore it, and so would all children.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Descriptors, children, threads, signals, dumpable flag: as they were, or named."""
    before = Holdings.now()
    yield
    if leaks := before.leaks():
        pytest.fail("left behind or changed:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A directory that every user may enter, unlike those of tmp_path."""
    path = Path(tempfile.mkdtemp(prefix="pyforkfd-tests-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def look(programs: Path) -> Path:
    """The program of tests/helpers/look.c."""
    build(HERE / "helpers" / "look.c", programs / "look")
    return programs / "look"


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Builds a Go program of one file; Go's own library comes from the user's cache."""
    compiler = tool("go", "golang-go")
    directory = tmp_path_factory.mktemp("go")
    env = {**os.environ, "GO111MODULE": "off", "CGO_ENABLED": "0"}

    @functools.cache
    def build(source: Path) -> Path:
        program = directory / source.stem
        subprocess.run(
            [compiler, "build", "-o", program, source], cwd=directory, env=env, check=True
        )
        return program

    return build


@pytest.fixture(params=BACKENDS)
def children(request: pytest.FixtureRequest, look: Path) -> Iterator[Children]:
    """Starts children by each back end in turn, and demands that it was used."""
    _core.force_backend(request.param)
    try:
        try:
            ff.spawn([look, "1"], fds={1: ff.DEVNULL}).wait()
        except ff.SpawnError as error:
            if error.stage != "clone":
                raise
            pytest.skip(f"{request.param} is refused here: {error}")
        yield Children(request.param, look)
    finally:
        _core.force_backend(None)


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """Like tmp_path, but every user may enter it."""
    path = Path(tempfile.mkdtemp(prefix="pyforkfd-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def other_fd() -> Iterator[int]:
    """A descriptor of ours that is not like any other."""
    fd = os.memfd_create("other")
    yield fd
    os.close(fd)


def cgroup2_mounts() -> list[Path]:
    lines = Path("/proc/mounts").read_text().splitlines()
    return [Path(line.split()[1]) for line in lines if line.split()[2] == "cgroup2"]


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of our own below the one we are in."""
    if not cgroup2_mounts():
        pytest.skip("no cgroup v2 tree is mounted")
    ours = next(
        line.removeprefix("0::/")
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    path = cgroup2_mounts()[0] / ours / f"pyforkfd-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup may be made here: {error}")
    yield path
    path.rmdir()
