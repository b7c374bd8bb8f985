"""create_subprocess_exec: asyncio's Process, our engine, the pidfd."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from typing import Any, cast

import pytest

import pyforkfd as ff
from pyforkfd import subprocess as drop_in

PIPE = asyncio.subprocess.PIPE


def test_talks_and_has_our_options() -> None:
    async def main() -> None:
        child = await ff.create_subprocess_exec(
            "sh", "-c", "cat; nice; echo no >&2", stdin=PIPE, stdout=PIPE, stderr=PIPE, nice=7
        )
        assert await child.communicate(b"said\n") == (b"said\n7\n", b"no\n")
        assert child.returncode == 0

    asyncio.run(main())


def test_no_thread_and_no_sigchld_handler() -> None:
    async def main() -> None:
        before = threading.active_count(), signal.getsignal(signal.SIGCHLD)
        child = await ff.create_subprocess_exec("sleep", "60")
        assert (threading.active_count(), signal.getsignal(signal.SIGCHLD)) == before
        child.send_signal(signal.SIGUSR1)
        assert await child.wait() == -signal.SIGUSR1
        with pytest.raises(ProcessLookupError):
            child.kill()

    asyncio.run(main())


def test_many_at_once() -> None:
    async def one(code: int) -> int:
        child = await ff.create_subprocess_exec("sh", "-c", f"exit {code}", stdout=PIPE)
        return await child.wait()

    async def main() -> list[int]:
        return await asyncio.gather(*(one(code) for code in range(50)))

    assert asyncio.run(main()) == list(range(50))


def test_on_a_loop_in_another_thread() -> None:
    async def main() -> int:
        return await (await ff.create_subprocess_exec("true")).wait()

    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(asyncio.run(main())))
    thread.start()
    thread.join()
    assert codes == [0]


def test_somebody_polls_it_to_the_end() -> None:
    async def main() -> None:
        child = await ff.create_subprocess_exec("sleep", "60")
        popen: subprocess.Popen[bytes] = child._transport.get_extra_info("subprocess")  # type: ignore[attr-defined]
        popen.kill()
        assert popen.wait() == -signal.SIGKILL  # takes the status and closes the pidfd
        assert await child.wait() == -signal.SIGKILL

    asyncio.run(main())


def test_what_is_cancelled_while_it_starts_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []
    started = drop_in.Popen._started

    def watch(self: Any, *args: Any) -> None:
        pids.append(self.pid)
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        started(self, *args)

    monkeypatch.setattr(drop_in.Popen, "_started", watch)

    async def main() -> None:
        await ff.create_subprocess_exec("sleep", "60", stdout=PIPE)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_an_error_leaves_nothing() -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError) as caught:
            await ff.create_subprocess_exec("/nowhere/program", stdin=PIPE, stdout=PIPE)
        assert caught.value.filename == "/nowhere/program"
        with pytest.raises(ff.SpawnError):
            await ff.create_subprocess_exec("true", cgroup="/proc", stdin=PIPE)

    asyncio.run(main())


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("everything", [True, False])
def test_a_start_that_is_cancelled_at_any_step_ends(steps: int, everything: bool) -> None:
    """Alone, and with the task of asyncio's own that connects the pipes."""
    problems: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, about: problems.append(about))
        start = ff.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        task = asyncio.ensure_future(start)
        for _ in range(steps):
            await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task(), task} if everything else ()
        for one in (task, *others):
            one.cancel()
        child = (await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 20))[0]
        if isinstance(child, asyncio.subprocess.Process):  # it had been started by then
            child.kill()
            await asyncio.wait_for(child.wait(), 20)
        else:
            assert isinstance(child, asyncio.CancelledError)

    asyncio.run(main())
    assert problems == []


BOTH = "head -c 1000000 /dev/zero >&2; echo out; head -c 1000000 /dev/zero >&2"


def test_communicate_reads_both_outputs_beyond_their_limits() -> None:
    async def main() -> None:
        child = await ff.create_subprocess_exec(
            "sh", "-c", BOTH, stdout=PIPE, stderr=PIPE, limit=1024
        )
        assert child.stderr is not None
        stdout, stderr = await asyncio.wait_for(child.communicate(), 20)
        assert (stdout, len(stderr)) == (b"out\n", 2_000_000)
        assert await child.communicate() == (b"", b"")

    asyncio.run(main())


def test_what_a_cancelled_communicate_has_read_is_not_lost() -> None:
    async def main() -> None:
        child = await ff.create_subprocess_exec(
            "sh", "-c", "echo one; read line; echo two", stdin=PIPE, stdout=PIPE
        )
        assert child.stdout is not None
        again = await ff.create_subprocess_exec("sh", "-c", "echo one; sleep 60", stdout=PIPE)
        assert again.stdout is not None
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(again.communicate(), 0.2)
        assert await again.stdout.readline() == b"one\n"
        again.kill()
        assert await again.communicate() == cast(Any, (b"", None))
        assert await child.communicate(b"\n") == cast(Any, (b"one\ntwo\n", None))

    asyncio.run(main())


def test_two_that_communicate_both_end() -> None:
    async def main() -> None:
        child = await ff.create_subprocess_exec("sh", "-c", "sleep 0.1; echo x", stdout=PIPE)
        both = await asyncio.wait_for(asyncio.gather(child.communicate(), child.communicate()), 20)
        assert b"".join(stdout for stdout, _ in both) == b"x\n"

    asyncio.run(main())


def test_a_reader_that_does_not_read_stops_the_child() -> None:
    async def main() -> None:
        child = await ff.create_subprocess_exec(
            "head", "-c", "10000000", "/dev/zero", stdout=PIPE, limit=1000
        )
        assert child.stdout is not None
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert len(child.stdout._buffer) < 1_000_000  # type: ignore[attr-defined]
        assert len(await child.stdout.read()) == 10_000_000
        assert await child.wait() == 0

    asyncio.run(main())


def test_the_end_is_seen_though_another_process_has_its_output() -> None:
    async def main() -> None:
        child = await ff.create_subprocess_exec("sh", "-c", "sleep 60 & echo $!", stdout=PIPE)
        assert child.stdout is not None
        pid = int(await child.stdout.readline())
        assert await asyncio.wait_for(child.wait(), 20) == 0
        os.kill(pid, signal.SIGKILL)
        assert await child.stdout.read() == b""

        child = await ff.create_subprocess_exec("sh", "-c", "sleep 60 & echo $!", stdout=PIPE)
        assert child.stdout is not None
        pid = int(await child.stdout.readline())
        while child.returncode is None:  # nobody waits
            await asyncio.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        await child.communicate()

    asyncio.run(main())


def test_a_child_that_nobody_waits_for_is_reaped() -> None:
    async def main(**pipes: Any) -> int:
        child = await ff.create_subprocess_exec("true", **pipes)
        stat = f"/proc/{child.pid}/stat"
        for _ in range(2000):
            await asyncio.sleep(0.005)
            if not os.path.exists(stat):
                break
        return child.pid

    for pipes in ({}, {"stdout": PIPE}, {"stdin": PIPE}):
        with pytest.raises(ProcessLookupError):
            os.kill(asyncio.run(main(**pipes)), 0)


UVLOOP = """
import asyncio, uvloop
import pyforkfd as ff

PIPE = asyncio.subprocess.PIPE

async def main():
    child = await ff.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    print(await child.communicate(b"said"))
    other = await ff.create_subprocess_exec("echo", "x", stdout=PIPE)
    print(await other.communicate(), other.returncode)

uvloop.run(main())
"""


def test_uvloop_too() -> None:
    pytest.importorskip("uvloop")
    command = [sys.executable, "-W", "error", "-c", UVLOOP]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "(b'said', b'')\n(b'x\\n', None) 0\n"
    assert done.stderr == ""


IGNORED = """
import asyncio, signal, sys
import pyforkfd as ff
from pyforkfd import _core, subprocess

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if sys.argv[1] == "lost":  # as on kernels before 6.15
    _core.reap = lambda fd: (False, 0, 0, None)
CHILD = ["sh", "-c", "sleep 0.05; exit 7"]

async def on_asyncio():
    return await (await ff.create_subprocess_exec(*CHILD)).wait()

async def by_shell():
    return await (await ff.create_subprocess_exec("sh", "-c", "sleep 0.05; kill -9 $$")).wait()

polled = subprocess.Popen(CHILD)
while polled.poll() is None:
    pass
print(asyncio.run(on_asyncio()), asyncio.run(by_shell()), subprocess.Popen(CHILD).wait(),
      subprocess.Popen(CHILD).wait(timeout=9), polled.returncode)
"""


@pytest.mark.parametrize("how", ["known", "lost"])
def test_a_status_is_true_or_said_to_be_lost_where_sigchld_is_ignored(how: str) -> None:
    command = [sys.executable, "-c", IGNORED, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    known = ff.spawn(["sh", "-c", "exit 7"])
    assert os.waitpid(known.pid, 0)[1] == 7 << 8
    if how == "lost" or known.wait().lost:
        assert done.stdout.split() == ["255"] * 5
        assert done.stderr.count("exit status lost, reporting 255") >= 1
    else:
        assert done.stdout.split() == ["7", "-9", "7", "7", "7"]
        assert done.stderr == ""
