"""multiprocessing and concurrent.futures on a zygote, beside their own tests (tests/peers)."""

from __future__ import annotations

import json
import os
import pickle
import select
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
import zygote_jobs

import pyforkfd as ff
from pyforkfd.zygote import Zygote, get_context
from pyforkfd.zygote import _context as zygote_context
from pyforkfd.zygote._context import ZygoteContext


@pytest.fixture(scope="module")
def context() -> Iterator[ZygoteContext]:
    resource_tracker.ensure_running()  # multiprocessing's own, which lives as long as we do
    with Zygote(preload=["zygote_jobs"]) as zygote:
        zygote.start()
        yield get_context(zygote)


def test_a_process(context: ZygoteContext) -> None:
    queue = context.Queue()
    process = context.Process(target=zygote_jobs.fill, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == "from a worker"
    process.join()
    assert process.exitcode == 0
    process.close()
    queue.close()
    queue.join_thread()


def test_how_a_process_ends(context: ZygoteContext) -> None:
    failing = context.Process(target=zygote_jobs.leave, args=(7,))
    failing.start()
    killed = context.Process(target=zygote_jobs.wait)
    killed.start()
    killed.join(0.01)
    assert killed.is_alive() and killed.pid is not None
    assert os.waitpid(killed.pid, os.WNOHANG) == (0, 0)  # it is ours
    killed.kill()
    killed.join()
    failing.join()
    assert (failing.exitcode, killed.exitcode) == (7, -9)
    failing.close()
    killed.close()


def test_a_rehearsal_has_no_effect() -> None:
    with Zygote(preload=["zygote_jobs", "pyforkfd.zygote._context"], warm=1) as zygote:
        zygote.start()
        for _ in range(2):
            with zygote.spawn("zygote_jobs:defaults", args=(9,), fds={9: ff.PIPE}) as worker:
                seen = json.loads(worker.pipes[9].read())
            assert seen == [None, "MainProcess", False, sys.path]


def test_a_tracker_that_lives_is_not_woken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with ff.Fd(reader) as tracker, ff.Fd(writer) as ours:
        monkeypatch.setattr(resource_tracker._resource_tracker, "_fd", ours.fileno())
        monkeypatch.setattr(resource_tracker, "getfd", lambda: -7)  # starts one where it must
        assert zygote_context._tracker() == ours.fileno()
        assert select.select([tracker], [], [], 0) == ([], [], [])
        tracker.close()
        assert zygote_context._tracker() == -7


def test_a_pool(context: ZygoteContext) -> None:
    with context.Pool(3) as pool:
        assert pool.map(abs, range(-50, 0)) == list(range(50, 0, -1))
    pool.join()


def test_an_executor(context: ZygoteContext) -> None:
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
        with pytest.raises(ValueError, match="of a task"):
            pool.submit(zygote_jobs.fail, "of a task").result()
    with ProcessPoolExecutor(2, mp_context=context) as pool, pytest.raises(BrokenProcessPool):
        pool.submit(zygote_jobs.die, 9).result()


def test_it_goes_with_objects_that_hold_it(context: ZygoteContext) -> None:
    assert isinstance(pickle.loads(pickle.dumps(context)), ZygoteContext)


MAIN = """
import sys
from concurrent.futures import ProcessPoolExecutor
from pyforkfd.zygote import get_context

print("imported as", __name__, flush=True)

def triple(n):
    return 3 * n

if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context()) as pool:
        print(list(pool.map(triple, range(4))))
"""


def test_the_main_module_is_preloaded_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(MAIN)
    command = [sys.executable, "-X", "dev", "-W", "error", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "[0, 3, 6, 9]",
        "imported as __main__",
        "imported as __mp_main__",
    ]


def test_a_main_module_without_a_guard(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(MAIN.replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert "ZygoteError: the zygote could not run" in done.stderr
    assert "before the current process has finished its bootstrapping phase" in done.stderr.replace(
        "\n", " "
    ).replace("        ", "")
