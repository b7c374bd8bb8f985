"""Many threads spawn at once, beside threads that open, close and write executables."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import pyforkfd as ff

# In CI a tenth is enough to catch a race; PYFORKFD_STRESS=100000 is the full run.
SPAWNS = int(os.environ.get("PYFORKFD_STRESS", "10000"))
THREADS = 8

# Answers which of its descriptors it has, without any interpreter or libc start-up
# that could open one: reads nothing, fstat on each number, exit code 0 if as told.
CHECKER = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
/* argv: for each number from 0: the inode expected there, or "-" for closed */
int main(int argc, char** argv) {
    for (int fd = 0; fd < 256; ++fd) {
        struct stat s;
        int open = fstat(fd, &s) == 0;
        if (fd + 1 >= argc || strcmp(argv[fd + 1], "-") == 0) {
            if (open) return 100 + (fd < 100 ? fd : 100);
        } else {
            if (!open || s.st_ino != strtoull(argv[fd + 1], 0, 10)) return 1 + (fd < 90 ? fd : 90);
        }
    }
    return 0;
}
"""


def build(source: str, folder: Path) -> Path:
    program = folder / "program"
    subprocess.run(
        ["cc", "-O1", "-static", "-x", "c", "-o", program, "-"], input=source.encode(), check=True
    )
    return program


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(CHECKER, tmp_path_factory.mktemp("checker"))


@pytest.fixture(scope="module")
def exits_42(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build("int main(void) { return 42; }", tmp_path_factory.mktemp("tiny")).read_bytes()


def run_threads(work: Callable[[int], None], count: int) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def random_child(rng: random.Random, mine: dict[int, int], program: Path) -> ff.Command:
    """A child with a random map, told what it must find; `mine`: descriptor -> inode."""
    fds: dict[int, ff.FdSource] = {0: ff.CLOSED, 1: ff.CLOSED, 2: ff.CLOSED}
    expected = ["-"] * 64
    for target in rng.sample(range(64), rng.randint(0, 8)):
        source = rng.choice(list(mine))
        fds[target] = source
        expected[target] = str(mine[source])
    return ff.Command([str(program), *expected], executable=program, fds=fds, env={})


def test_random_maps_from_many_threads(checker: Path, tmp_path: Path) -> None:
    """Each child has exactly its map, whatever other threads open meanwhile."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
            for fd in fds:
                os.set_inheritable(fd, True)  # what a strict spawn must still close
            for fd in fds:
                os.close(fd)

    def work(number: int) -> None:
        rng = random.Random(number)
        files = [open(tmp_path / f"{number}-{i}", "w") for i in range(4)]
        try:
            mine = {f.fileno(): os.fstat(f.fileno()).st_ino for f in files}
            for _ in range(SPAWNS // THREADS):
                command = random_child(rng, mine, checker)
                child = command.spawn()
                status = child.wait()
                child.close()
                assert status.code == 0, f"{status}: {command.fds} {command.args}"
        finally:
            for file in files:
                file.close()

    churner = threading.Thread(target=churn)
    churner.start()
    try:
        run_threads(work, THREADS)
    finally:
        stop.set()
        churner.join()


def test_freshly_written_scripts_are_never_busy(tmp_path: Path, exits_42: bytes) -> None:
    """ETXTBSY: a child of another thread holds the script open for writing.

    Sources are at high numbers, so that descriptors below are copied in the clone.
    """
    high = [os.open(os.devnull, os.O_RDONLY) for _ in range(30)]

    def work(number: int) -> None:
        script = tmp_path / f"script-{number}"
        for i in range(SPAWNS // THREADS // 4):
            fresh = script.with_suffix(f".{i}")
            with open(fresh, "wb") as file:
                file.write(exits_42)
                os.fchmod(file.fileno(), 0o755)
            child = ff.spawn([fresh], fds={9: high[-1 - number]})
            status = child.wait()
            child.close()
            assert status.code == 42
            fresh.unlink()

    try:
        run_threads(work, THREADS)
    finally:
        for fd in high:
            os.close(fd)


def test_busy_for_good_is_an_error(tmp_path: Path, exits_42: bytes) -> None:
    busy = tmp_path / "busy"
    with open(busy, "wb") as file:
        file.write(exits_42)
        file.flush()
        os.fchmod(file.fileno(), 0o755)
        with pytest.raises(ff.SpawnError, match=f"spawn {busy}: execute: Text file busy"):
            ff.spawn([busy])


def test_one_command_from_many_threads() -> None:
    command = ff.Command(["/bin/sh", "-c", "echo $0", "same"], fds={1: ff.PIPE}, env={})

    def work(number: int) -> None:
        for _ in range(50):
            with command.spawn() as child:
                assert child.stdout is not None
                assert child.stdout.read() == b"same\n"

    run_threads(work, THREADS)
