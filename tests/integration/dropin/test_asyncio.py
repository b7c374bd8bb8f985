"""create_subprocess_exec: asyncio's Process, our engine, the pidfd."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from typing import Any

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
