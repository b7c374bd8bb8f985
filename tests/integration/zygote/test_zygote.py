"""A zygote's workers: our own children, with every option of the request."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from children import identity, needs_root

import pyforkfd as ff
from pyforkfd.zygote import Zygote, ZygoteError

REPORT_FD = 50  # the descriptor on which jobs report


def report(zygote: Zygote, job: str, *args: object, **options: Any) -> Any:
    """Run a job that must succeed, and return its report."""
    options["fds"] = {**(options.get("fds") or {}), REPORT_FD: ff.PIPE}
    with zygote.spawn(f"zygote_jobs:{job}", args=(REPORT_FD, *args), **options) as worker:
        text = worker.pipes[REPORT_FD].read()
    assert worker.status is not None and worker.status.success, worker.status
    return json.loads(text)


def printed(zygote: Zygote, job: str, *args: object, **options: Any) -> tuple[str, str, int]:
    """Run a job, and return its stdout, stderr and exit code."""
    options["fds"] = {**(options.get("fds") or {}), 1: ff.PIPE, 2: ff.PIPE}
    with zygote.spawn(f"zygote_jobs:{job}", args=args, **options) as worker:
        assert worker.stdout is not None and worker.stderr is not None
        out, err = worker.stdout.read().decode(), worker.stderr.read().decode()
    assert worker.returncode is not None
    return out, err, worker.returncode


def test_a_worker_is_our_own_child(zygote: Zygote) -> None:
    seen = report(zygote, "facts")
    assert seen["ppid"] == os.getpid()
    assert seen["imported_in"] == zygote.pid != seen["pid"]
    assert seen["threads"] == 1
    assert seen["gc"] == [True, True]
    worker = zygote.spawn("zygote_jobs:nothing")
    pid, status, usage = os.wait4(worker.pid, 0)
    assert (pid, status) == (worker.pid, 0) and usage.ru_utime + usage.ru_stime > 0
    assert worker.wait().lost or worker.wait().success  # Linux 6.15 keeps a copy


def test_status_and_usage(zygote: Zygote) -> None:
    status = zygote.spawn("zygote_jobs:leave", args=(3,)).wait()
    assert status.code == 3 and status.rusage is not None
    assert zygote.spawn("zygote_jobs:die", args=(9,)).wait().signal == 9
    worker = zygote.spawn("zygote_jobs:wait")
    with pytest.raises(TimeoutError):
        worker.wait(0.01)
    worker.terminate()
    assert worker.wait().signal == signal.SIGTERM


def test_how_a_function_ends(zygote: Zygote) -> None:
    assert printed(zygote, "nothing") == ("", "", 0)
    assert printed(zygote, "leave", None)[2] == 0
    assert printed(zygote, "leave", "words") == ("", "words\n", 1)
    assert printed(zygote, "leave", 256 + 7)[2] == 7
    _, err, code = printed(zygote, "fail", "on purpose")
    assert code == 1 and err.startswith("Traceback") and "ValueError: on purpose" in err
    assert "_serve" not in err  # only what happened in the worker
    assert printed(zygote, "break_stdout")[2] == 120


def test_keyword_arguments(zygote: Zygote) -> None:
    assert zygote.spawn("zygote_jobs:leave", kwargs={"code": 4}).wait().code == 4


def test_at_the_end(zygote: Zygote, tmp_path: Path) -> None:
    log = tmp_path / "log"
    out, err, code = printed(zygote, "at_end", str(log))
    assert (out, err, code) == ("buffered", "", 0)
    assert log.read_text() == "thread atexit "
    with Zygote(preload=["zygote_jobs"], setup="zygote_jobs:register_atexit") as other:
        assert printed(other, "nothing") == ("", "", 0)


def test_a_worker_is_a_whole_python(zygote: Zygote) -> None:
    assert report(zygote, "whole") == ["signal", 0, 3]


def test_descriptors(zygote: Zygote, other_fd: int) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    with ff.Fd(null):
        fds = {0: null, 1: ff.DEVNULL, 2: ff.CLOSED, 3: null, 4: other_fd, 7: ff.SameAs(4)}
        seen = report(zygote, "facts", fds={**fds, 5: ff.Open("/etc/hostname")})["fds"]
    hostname = os.stat("/etc/hostname")
    place = {number: tuple(row[:2]) for number, row in seen.items()}
    expected = {"0": null, "1": null, "3": null, "4": other_fd, "7": other_fd}
    device = os.stat("/dev/null").st_dev, os.stat("/dev/null").st_ino
    del place[str(REPORT_FD)]
    assert place == {
        number: identity(other_fd) if fd == other_fd else device for number, fd in expected.items()
    } | {"5": (hostname.st_dev, hostname.st_ino)}
    assert {number: row[2] for number, row in seen.items()} == {
        number: int(number) > 2 for number in seen
    }


def test_descriptors_change_places(zygote: Zygote) -> None:
    files = [os.memfd_create(f"file {n}") for n in range(3)]
    a, b, c = files
    try:
        seen = report(zygote, "facts", fds={a: b, b: c, c: a})["fds"]
        assert [tuple(seen[str(n)][:2]) for n in files] == [identity(n) for n in (b, c, a)]
    finally:
        for fd in files:
            os.close(fd)


def test_nothing_of_other_workers(zygote: Zygote) -> None:
    pipes = dict.fromkeys(range(3, 30), ff.PIPE)
    with zygote.spawn("zygote_jobs:wait", fds={**pipes, 0: ff.PIPE}) as first:
        assert report(zygote, "facts")["fds"].keys() == {"0", "1", "2", str(REPORT_FD)}
        first.kill()


def test_many_descriptors(zygote: Zygote, other_fd: int) -> None:
    targets = range(100, 800)
    seen = report(zygote, "facts", fds=dict.fromkeys(targets, other_fd))["fds"]
    assert all(tuple(seen[str(n)][:2]) == identity(other_fd) for n in targets)


def test_pipes(zygote: Zygote) -> None:
    with zygote.spawn("zygote_jobs:copy", fds={0: ff.PIPE, 1: ff.PIPE}) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write("é € 𝄞".encode())
        worker.stdin.close()
        assert worker.stdout.read().decode() == "é € 𝄞"


def test_large_arguments(zygote: Zygote) -> None:
    data = os.urandom(3_000_000)
    with zygote.spawn("zygote_jobs:echo", args=(data,), fds={1: ff.PIPE}) as worker:
        assert worker.stdout is not None and worker.stdout.read() == data


def test_listeners(zygote: Zygote) -> None:
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        assert report(zygote, "listeners", listen={"web": a, "admin": b}) == [
            [3, "web"],
            [4, "admin"],
        ]


def test_environment_directory_and_streams_are_ours_at_the_call(
    zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report(zygote, "facts")["cwd"] == os.getcwd()
    monkeypatch.setenv("LATER", "yes")
    monkeypatch.delenv("PATH")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    seen = report(zygote, "facts")
    assert seen["env"]["LATER"] == "yes" and "PATH" not in seen["env"]
    assert seen["cwd"] == str(tmp_path)
    assert report(zygote, "facts", cwd="below")["cwd"] == str(tmp_path / "below")
    with ff.Fd(os.open("below", os.O_RDONLY)) as below:
        assert report(zygote, "facts", cwd=below)["cwd"] == str(tmp_path / "below")
    assert report(zygote, "facts", env={"ONLY": "this"})["env"] == {"ONLY": "this"}


def test_the_environment_of_the_zygote(monkeypatch: pytest.MonkeyPatch) -> None:
    with Zygote(preload=["zygote_jobs"], env={"OF": "the zygote"}) as zygote:
        zygote.start()
        monkeypatch.setenv("LATER", "yes")
        env = report(zygote, "facts")["env"]
        assert env["OF"] == "the zygote" and not {"LATER", "PATH"} & env.keys()


def test_the_signal_mask_is_the_calling_threads(zygote: Zygote) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        assert report(zygote, "facts")["blocked"] == 1 << signal.SIGUSR2 - 1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    seen = report(
        zygote,
        "facts",
        signal_mask=[signal.SIGHUP],
        ignore_signals=[signal.SIGUSR1],
        default_signals=[signal.SIGPIPE],
    )
    assert seen["blocked"] == 1 << signal.SIGHUP - 1
    assert seen["ignored"] & 1 << signal.SIGUSR1 - 1
    assert not seen["ignored"] & 1 << signal.SIGPIPE - 1
    assert report(zygote, "facts")["ignored"] & 1 << signal.SIGPIPE - 1  # a Python's own


def test_ctrl_c_interrupts_a_worker_and_not_the_zygote(zygote: Zygote) -> None:
    assert zygote.pid is not None
    with zygote.spawn("zygote_jobs:wait", fds={2: ff.PIPE}) as worker:
        assert worker.stderr is not None
        os.kill(zygote.pid, signal.SIGINT)
        worker.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in worker.stderr.read()
    assert worker.returncode == 1
    assert zygote.spawn("zygote_jobs:nothing").wait().success


def test_resources(zygote: Zygote) -> None:
    cpu = min(os.sched_getaffinity(0))
    seen = report(
        zygote,
        "facts",
        umask=0o027,
        nice=5,
        cpu_affinity=[cpu],
        rlimits={resource.RLIMIT_NOFILE: (100, 200)},
        new_session=True,
        no_new_privs=True,
    )
    assert seen["umask"] == 0o027
    assert seen["nice"] == 5
    assert seen["cpus"] == [cpu]
    assert seen["files"] == [100, 200]
    assert seen["sid"] == seen["pid"]
    assert seen["no_new_privs"] == 1
    assert report(zygote, "facts", process_group=0)["pgid"] != os.getpgid(0)


ALLOW_ALL = b"\x06\x00\x00\x00\x00\x00\xff\x7f"  # ret SECCOMP_RET_ALLOW


def test_a_filter(zygote: Zygote) -> None:
    assert report(zygote, "facts", seccomp=ALLOW_ALL, no_new_privs=True)["seccomp"] == 2


@needs_root
def test_credentials(zygote: Zygote) -> None:
    seen = report(
        zygote,
        "facts",
        user=4321,
        group=4322,
        extra_groups=[4323],
        capabilities=ff.Capabilities(bounding=["CHOWN"]),
    )
    assert seen["uid"] == [4321] * 3 and seen["gid"] == [4322] * 3
    assert seen["groups"] == [4323]
    assert seen["capabilities"] == 1


@needs_root
def test_namespaces(zygote: Zygote) -> None:
    seen = report(zygote, "facts", namespaces=["pid", "uts"], parent_death_signal=signal.SIGKILL)
    assert seen["pid"] == 1 and seen["ppid"] == 0


@needs_root
def test_a_cgroup(zygote: Zygote, cgroup: Path) -> None:
    assert report(zygote, "facts", cgroup=cgroup)["cgroup"].strip().endswith(cgroup.name)
    with ff.Fd(os.open(cgroup, os.O_RDONLY)) as fd:
        assert report(zygote, "facts", cgroup=fd)["cgroup"].strip().endswith(cgroup.name)


@needs_root
def test_a_new_root(zygote: Zygote, tmp_path: Path) -> None:
    assert zygote.spawn("zygote_jobs:nothing", chroot=tmp_path).wait().success


def test_no_two_workers_draw_the_same() -> None:
    with Zygote(preload=["zygote_jobs", "random", "ssl"]) as zygote:
        drawn = [report(zygote, "draw") for _ in range(2)]
    for one, other in zip(*drawn, strict=True):
        assert one != other


def test_hooks_run_in_the_worker() -> None:
    with Zygote(preload=["zygote_jobs"], setup="zygote_jobs:count_hooks") as zygote:
        assert report(zygote, "report_hooks") == ["child"]


def test_what_the_preloaded_code_has_open_stays_open() -> None:
    with Zygote(preload=["zygote_jobs"], setup="zygote_jobs:open_files") as zygote:
        text, number = report(zygote, "read_retained", fds={3: ff.DEVNULL})
        assert text == Path("/etc/hostname").read_text()
        assert number >= 64
        with pytest.raises(ValueError, match=f"{number} is /etc/hostname, which the zygote's"):
            zygote.spawn("zygote_jobs:nothing", fds={number: ff.DEVNULL})


def test_asynchronous_wait(zygote: Zygote) -> None:
    import asyncio

    async def all_of_them() -> list[ff.ExitStatus]:
        workers = [zygote.spawn("zygote_jobs:leave", args=(n,)) for n in range(5)]
        return await asyncio.gather(*(worker.wait_async() for worker in workers))

    assert [status.code for status in asyncio.run(all_of_them())] == list(range(5))


def test_one_for_the_whole_process() -> None:
    one = Zygote.shared(preload=["zygote_jobs"], env={"A": "1", "B": "2"})
    assert Zygote.shared(preload=["zygote_jobs"], env={"B": "2", "A": "1"}) is one
    assert Zygote.shared(preload=["zygote_jobs"]) is not one
    with one:
        assert one.spawn("zygote_jobs:nothing").wait().success


def test_refork_takes_new_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "fresh_code.py"
    module.write_text("version = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Zygote(preload=["zygote_jobs", "fresh_code"]) as zygote:
        old = zygote.spawn("zygote_jobs:wait")
        assert zygote.generation == 1
        module.write_text("version = 'two'\n")
        zygote.refork()
        assert zygote.generation == 2
        assert report(zygote, "report_module", "fresh_code") == "two"
        assert old.poll() is None
        module.write_text("no python")
        with pytest.raises(ZygoteError, match="could not import fresh_code"):
            zygote.refork()
        assert report(zygote, "report_module", "fresh_code") == "two"  # the old one serves on
    old.kill()
    assert old.wait().signal == signal.SIGKILL


def test_values_that_make_no_sense(zygote: Zygote) -> None:
    with pytest.raises(ValueError, match=r"'zygote_jobs' is not 'package.module:function'"):
        zygote.spawn("zygote_jobs")
    with pytest.raises(ValueError, match="setup"):
        Zygote(setup="a b:c")
    with pytest.raises(TypeError, match="preload: a sequence is wanted"):
        Zygote(preload="json")
    with pytest.raises(ValueError, match="nice"):
        zygote.spawn("zygote_jobs:nothing", nice=40)
