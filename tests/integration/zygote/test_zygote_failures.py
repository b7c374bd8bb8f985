"""Failures of a zygote: clear errors, no orphan, no zombie, nothing left open."""

from __future__ import annotations

import errno
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from children import needs_root
from leaks import gone
from places import HELPERS
from processes import alive, children

import pyforkfd as ff
from pyforkfd import _core
from pyforkfd._fd import Fd
from pyforkfd.zygote import Zygote, ZygoteError, _birth, _messages
from pyforkfd.zygote._messages import REPORT, Received, Report

# In CI a tenth; PYFORKFD_STRESS=10000 is the full run.
STRESS = int(os.environ.get("PYFORKFD_STRESS", "1000"))


def jobs(setup: str | None = None, warm: int = 0, **env: str) -> Zygote:
    return Zygote(
        preload=["zygote_jobs"],
        setup=setup and f"zygote_jobs:{setup}",
        env={**os.environ, **env} if env else None,
        warm=warm,
    )


both = pytest.mark.parametrize("warm", [0, 2], ids=["cold", "warm"])


# --- the start


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ZygoteError, match="could not import no_such_module") as error:
        Zygote(preload=["json", "no_such_module"]).start()
    assert "ModuleNotFoundError: No module named 'no_such_module'" in error.value.traceback


def test_a_setup_that_fails() -> None:
    with pytest.raises(ZygoteError, match="RuntimeError: the setup does not want to"):
        jobs("fail_here").start()
    with pytest.raises(ZygoteError, match="SystemExit: the setup calls exit"):
        jobs("stop_here").spawn("zygote_jobs:nothing")
    with pytest.raises(ZygoteError, match="run zygote_jobs:no_such_function"):
        jobs("no_such_function").start()


def test_a_zygote_that_is_killed_at_its_start() -> None:
    with pytest.raises(ZygoteError, match="ended before it was ready: killed by SIGKILL"):
        jobs("kill_here").start()


@both
def test_threads_are_named(warm: int) -> None:
    with jobs("start_thread", warm) as zygote:
        with pytest.raises(ff.ThreadsError, match=r"forgotten pool \(\d+\)") as error:
            zygote.spawn("zygote_jobs:nothing")
        assert list(error.value.threads.values()) == ["forgotten pool"]
        assert zygote.generation == 1


def test_another_version_of_the_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is upgraded on disk while the application runs."""
    shutil.copytree(Path(ff.__file__).parent, tmp_path / "pyforkfd")
    messages = tmp_path / "pyforkfd/zygote/_messages.py"
    messages.write_text(messages.read_text().replace("\nVERSION = 2\n", "\nVERSION = 77\n"))
    monkeypatch.setattr("pyforkfd.zygote._link._ROOT", str(tmp_path))
    with pytest.raises(ZygoteError, match="its protocol has version 77, ours 2"):
        jobs().start()


# --- a birth


def test_a_function_that_is_not_there(zygote: Zygote) -> None:
    with pytest.raises(ZygoteError, match="could not find zygote_jobs:no_such: Attri") as error:
        zygote.spawn("zygote_jobs:no_such", fds={1: ff.PIPE})
    assert "AttributeError" in error.value.traceback
    with pytest.raises(ZygoteError, match="ModuleNotFoundError: there is no module 'no_such_m"):
        zygote.spawn("no_such_module:function")
    with pytest.raises(ZygoteError, match="TypeError: 'zygote_jobs:retained' is of type 'list'"):
        zygote.spawn("zygote_jobs:retained")


class OnlyHere:
    """Its unpickling fails in a worker."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return int, ("no number",)


def test_arguments_that_cannot_be_unpickled(zygote: Zygote) -> None:
    with pytest.raises(ZygoteError, match="could not unpickle the arguments of zygote_jobs:write"):
        zygote.spawn("zygote_jobs:write", args=(OnlyHere(),))
    with pytest.raises((TypeError, AttributeError), match="pickle"):
        zygote.spawn("zygote_jobs:write", args=(threading.Lock(),), fds={1: ff.PIPE})


def test_a_descriptor_that_is_not_open(zygote: Zygote) -> None:
    with pytest.raises(ff.SpawnError, match="777 -> child's 3: Bad file descriptor") as error:
        zygote.spawn("zygote_jobs:nothing", fds={3: 777, 4: ff.PIPE})
    assert error.value.stage == "descriptor_source"


def test_options_that_fail(zygote: Zygote, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="change directory: /nowhere") as error:
        zygote.spawn("zygote_jobs:nothing", cwd="/nowhere")
    assert isinstance(error.value, ff.SpawnError) and error.value.program == "zygote_jobs:nothing"
    with pytest.raises(FileNotFoundError, match="child's 5"):
        zygote.spawn("zygote_jobs:nothing", fds={5: ff.Open("/nowhere")})
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        zygote.spawn("zygote_jobs:nothing", cgroup="/nowhere")
    with pytest.raises(ff.SpawnError, match="controlling terminal") as failed:
        zygote.spawn("zygote_jobs:nothing", new_session=True, controlling_terminal="/dev/null")
    assert failed.value.stage == "controlling_terminal"
    with pytest.raises(FileNotFoundError, match="open: /dev/no-terminal"):
        zygote.spawn(
            "zygote_jobs:nothing", new_session=True, controlling_terminal="/dev/no-terminal"
        )
    with pytest.raises(ff.SpawnError, match="set resource limit"):
        zygote.spawn("zygote_jobs:nothing", rlimits={7: (200, 100)})


STAGES = {
    "session": {"new_session": True},
    "process_group": {"process_group": 0},
    "keep_descriptor": {"cwd": os.open("/", os.O_RDONLY | os.O_CLOEXEC)},
    "map_descriptor": {"fds": {9: 2}},
    "close_others": {},
    "open_file": {"fds": {9: ff.Open("/dev/null")}},
    "umask": {"umask": 0o22},
    "resource_limit": {"rlimits": {7: (100, 100)}},
    "nice": {"nice": 1},
    "affinity": {"cpu_affinity": [0]},
    "scheduler": {"scheduler": ff.Scheduler(os.SCHED_OTHER)},
    "chroot": {"chroot": "/"},
    "bounding_set": {"capabilities": ff.Capabilities(bounding=[])},
    "groups": {"extra_groups": []},
    "group": {"group": 4321},
    "user": {"user": 0},
    "capabilities": {"capabilities": ff.Capabilities(permitted=[])},
    "ambient_set": {"capabilities": ff.Capabilities(ambient=[])},
    "working_directory": {"cwd": "/"},
    "no_new_privs": {"no_new_privs": True},
    "parent_alive": {"parent_death_signal": 9},
    "parent_death_signal": {"parent_death_signal": 9},
    "default_signals": {"default_signals": [signal.SIGPIPE]},
    "ignore_signals": {"ignore_signals": [signal.SIGUSR1]},
    "signal_mask": {},
    "seccomp": {"seccomp": b"\x06\x00\x00\x00\x00\x00\xff\x7f"},
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Zygote, Path]]:
    fault = tmp_path_factory.mktemp("zygote") / "fault"
    fault.write_text("")
    with jobs("obey_faults", FAULT=str(fault)) as zygote:
        zygote.start()
        yield zygote, fault


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage(stage: str, faulty: tuple[Zygote, Path]) -> None:
    zygote, fault = faulty
    fault.write_text(stage)
    with pytest.raises(ff.SpawnError) as error:
        zygote.spawn("zygote_jobs:nothing", **STAGES[stage])  # type: ignore[arg-type]
    assert error.value.stage == stage
    assert error.value.errno == 71
    fault.write_text("")
    assert zygote.spawn("zygote_jobs:nothing").wait().success


def test_which_stages_a_worker_has() -> None:
    """All of the child's, but for those of maps, of exec and of what it cannot share."""
    childs = ff.STAGES[ff.STAGES.index("parent_alive") :]
    others = {"cgroup", "id_maps", "unshare_descriptors", "environment", "exec"}
    terminals = {"controlling_terminal", "foreground"}  # test_options_that_fail
    assert set(childs) == STAGES.keys() | others | terminals | {"keep_capabilities"}


@both
def test_a_worker_that_dies_while_it_is_born(warm: int) -> None:
    with jobs("die_as_worker", warm) as zygote:
        with pytest.raises(ZygoteError, match=r"worker \d+ ended while it was born: killed by"):
            zygote.spawn("zygote_jobs:nothing", fds={1: ff.PIPE})
        assert zygote.generation == 1


@both
def test_a_zygote_that_dies_just_after_a_birth(warm: int) -> None:
    """Only the kernel has written the pid, and the worker is ours all the same."""
    with jobs("die_after_birth", warm) as zygote:
        for code in range(3):
            try:
                assert zygote.spawn("zygote_jobs:leave", args=(code,)).wait().code == code
            except ZygoteError as error:  # an idle worker ends with the zygote, perhaps at once
                assert warm and "killed twice" in str(error)
        assert zygote.generation >= 3


def test_zygote_and_worker_die_at_once() -> None:
    with jobs("die_both") as zygote, pytest.raises(ZygoteError, match="ended while it was born"):
        zygote.spawn("zygote_jobs:nothing")


@both
def test_a_zygote_that_dies_before_each_birth(warm: int) -> None:
    with jobs("die_before_birth", warm) as zygote:
        with pytest.raises(ZygoteError, match="killed twice before it could start"):
            zygote.spawn("zygote_jobs:nothing", fds={1: ff.PIPE})
        assert zygote.generation == 2


@both
def test_a_killed_zygote_is_replaced(warm: int) -> None:
    with jobs(warm=warm) as zygote:
        for generation in range(1, 4):
            assert zygote.spawn("zygote_jobs:nothing").wait().success
            assert zygote.generation == generation
            assert zygote.pid is not None
            with ff.Fd(os.pidfd_open(zygote.pid)) as pidfd:
                os.kill(zygote.pid, signal.SIGKILL)
                assert ff._core.wait_pidfd(pidfd.fileno(), 30)


class Alarm(Exception):
    pass


def test_a_spawn_that_is_interrupted(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def ring(number: int, frame: object) -> None:
        raise Alarm

    with jobs("stop_at_gate", GATE=str(gate)) as zygote:
        zygote.start()
        before = signal.signal(signal.SIGALRM, ring)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Alarm):
                zygote.spawn("zygote_jobs:wait", fds={1: ff.PIPE})
        finally:
            signal.signal(signal.SIGALRM, before)
        assert zygote.generation == 1
        done = threading.Event()

        def hold() -> None:
            with open(gate, "w"):
                done.wait()

        opened = threading.Thread(target=hold)
        opened.start()
        try:
            assert zygote.spawn("zygote_jobs:nothing").wait().success
        finally:
            done.set()
            opened.join()


def test_a_full_socket(zygote: Zygote) -> None:
    """Of a zygote that is stopped: callers wait, and all are served when it goes on."""
    assert zygote.pid is not None
    text = "x" * 30_000
    os.kill(zygote.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(40) as pool:
        waiting = [
            pool.submit(zygote.spawn, "zygote_jobs:write", args=(text,), fds={1: ff.DEVNULL})
            for _ in range(40)
        ]
        assert not any(future.done() for future in waiting)
        os.kill(zygote.pid, signal.SIGCONT)
        assert all(future.result().wait().success for future in waiting)


def test_more_descriptors_than_the_zygote_may_have(cold: Zygote, other_fd: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.prlimit(cold.pid or 0, resource.RLIMIT_NOFILE, (90, hard))
    try:
        with pytest.raises(ZygoteError, match="could not receive the worker's descriptors"):
            cold.spawn("zygote_jobs:nothing", fds=dict.fromkeys(range(3, 100), other_fd))
    finally:
        resource.prlimit(cold.pid or 0, resource.RLIMIT_NOFILE, (soft, hard))
    assert cold.spawn("zygote_jobs:nothing").wait().success


def test_after_a_fork_each_has_its_own(zygote: Zygote) -> None:
    if (pid := os.fork()) == 0:
        code = 99
        try:
            ours = zygote.pid is None and zygote.generation
            worker = zygote.spawn("zygote_jobs:leave", args=(5,))
            code = worker.wait().code or 98
            zygote.close()
            code += not ours
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert zygote.spawn("zygote_jobs:nothing").wait().success


# --- ends


APPLICATION = """
import os, sys
from pyforkfd.zygote import Zygote
sys.path.insert(0, sys.argv[1])
zygote = Zygote(preload=["zygote_jobs"], warm=int(sys.argv[2]))
workers = [zygote.spawn("zygote_jobs:wait", parent_death_signal=9) for _ in range(3)]
print(os.getpid(), zygote.pid, *(worker.pid for worker in workers), flush=True)
while True:
    workers.append(zygote.spawn("zygote_jobs:wait", parent_death_signal=9))
    workers.pop(0).kill()
"""


def descendants_of(session: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getsid(int(name)) == session and alive(int(name)):
                found.append(int(name))
        except ProcessLookupError:
            pass
    return found


def nothing_of(session: int) -> bool:
    return not descendants_of(session)


@both
@pytest.mark.parametrize("whom", ["application", "zygote"])
def test_killed_at_any_moment_under_load(whom: str, warm: int) -> None:
    """kill -9: nothing stays behind, of the session in which all of it ran."""
    rounds = max(3, STRESS // 50)
    rng = random.Random(7)
    if whom == "zygote":
        with jobs(warm=warm) as zygote:
            kill_the_zygote(zygote, rounds, rng)
        return
    for _ in range(rounds):
        application = subprocess.Popen(
            [sys.executable, "-P", "-c", APPLICATION, HELPERS, str(warm)],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert application.stdout is not None
        with application.stdout:
            pids = application.stdout.readline().split()
            assert len(pids) == 5, pids
            threading.Event().wait(rng.random() / 20)
            application.kill()
            application.wait()
        assert gone(functools.partial(nothing_of, application.pid)), descendants_of(application.pid)


def kill_the_zygote(zygote: Zygote, rounds: int, rng: random.Random) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []
    served = 0

    def use() -> None:
        nonlocal served
        while not stop.is_set():
            try:
                with zygote.spawn("zygote_jobs:leave", args=(3,), fds={1: ff.PIPE}) as worker:
                    pass
                assert worker.returncode == 3, worker
                served += 1
            except ZygoteError as error:
                if "killed twice" not in str(error):
                    failures.append(error)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    kills = last = 0
    while kills < rounds:
        zygote.start()
        stop.wait(rng.random() / 20)
        if (pid := zygote.pid) is not None and pid != last:
            os.kill(pid, signal.SIGKILL)
            kills, last = kills + 1, pid
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert served and zygote.generation >= kills


def test_a_parent_that_is_another_already() -> None:
    """The kernel gives a child its next parent before the last one's pidfd is readable."""
    reader, writer = os.pipe()
    with ff.Fd(reader), ff.Fd(writer), ff.Fd(os.pidfd_open(os.getpid())) as alive_still:
        if (pid := os.fork()) == 0:
            try:
                plan = _core.SpawnPlan()
                plan.close_others = False
                plan.death_signal = signal.SIGKILL
                _core.become(plan, [], os.getpid(), alive_still.fileno(), writer)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 127
        stage, index, error, *_ = REPORT.unpack(os.read(reader, 100))
    assert _core.failed(_core.SpawnPlan(), [], stage, index)[0] == "parent_alive"
    assert error == errno.ESRCH


def test_a_zygote_ends_with_its_application(tmp_path: Path) -> None:
    application = ff.spawn(
        [sys.executable, "-P", "-c", APPLICATION, str(HELPERS), "0"], fds={1: ff.PIPE}
    )
    with application:
        assert application.stdout is not None
        _, zygote, *workers = map(int, application.stdout.readline().split())
        pidfds = [os.pidfd_open(zygote)]
        application.kill()
        application.wait()
    with ff.Fd(pidfds[0]) as pidfd:
        assert ff._core.wait_pidfd(pidfd.fileno(), 30)
    assert gone(lambda: not any(map(alive, workers)))


def test_a_threaded_parent(zygote: Zygote) -> None:
    """16 busy threads that hold locks all the time; nothing of them is in a worker."""
    stop = threading.Event()
    locks = [threading.Lock() for _ in range(16)]

    def busy(lock: threading.Lock) -> None:
        while not stop.is_set():
            with lock:
                sum(range(1000))
                bytearray(100_000)

    threads = [threading.Thread(target=busy, args=(lock,)) for lock in locks]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # or each spawn waits for many turns of 16 others
    for thread in threads:
        thread.start()
    try:
        for _ in range(max(20, STRESS // 10)):
            assert zygote.spawn("zygote_jobs:nothing").wait(60).success
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)


# --- where no sibling can be cloned

WITHOUT_TID_ADDRESS = """
import ctypes, os, struct, sys
from pathlib import Path
def insn(code, jt, jf, k): return struct.pack("=HBBI", code, jt, jf, k)
# prctl(PR_GET_TID_ADDRESS) answers EINVAL, as on a kernel without it.
prog = ctypes.create_string_buffer(
    insn(0x20, 0, 0, 0) + insn(0x15, 0, 3, NUMBER) + insn(0x20, 0, 0, 16) +
    insn(0x15, 0, 1, 40) + insn(0x06, 0, 0, 0x50016) + insn(0x06, 0, 0, 0x7FFF0000))
class Fprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Fprog(6, ctypes.addressof(prog))), 0, 0) == 0

sys.path.insert(0, sys.argv[1])
import pyforkfd as ff
from pyforkfd.zygote import Zygote
try:
    ff.clone()
except OSError as error:
    assert "the kernel does not tell where the thread id is kept" in str(error)
with Zygote(preload=["zygote_jobs"], warm=int(sys.argv[2])) as zygote:
    with zygote.spawn("zygote_jobs:facts", args=(9,), fds={9: ff.PIPE}, umask=7) as worker:
        import json
        seen = json.loads(worker.pipes[9].read())
    assert seen["ppid"] == os.getpid() and seen["pid"] == worker.pid and seen["umask"] == 7
    print(zygote.spawn("zygote_jobs:leave", args=(6,)).wait().code)
    try:
        zygote.spawn("zygote_jobs:nothing", namespaces=["uts"])
    except OSError as error:
        print(error.stage)
    worker = zygote.spawn("zygote_jobs:wait", parent_death_signal=9)
    assert worker.poll() is None
    worker.kill()
    print(worker.wait())
print(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
"""


@both
def test_the_fall_back(warm: int) -> None:
    number = {"x86_64": "157", "aarch64": "167"}[os.uname().machine]
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-W",
            "error",
            "-c",
            WITHOUT_TID_ADDRESS.replace("NUMBER", number),
            HELPERS,
            str(warm),
        ],
        text=True,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["6", "clone", "killed by SIGKILL", "[]"]


@needs_root
def test_a_cgroup_that_refuses(zygote: Zygote) -> None:
    with pytest.raises(ff.SpawnError) as error:
        zygote.spawn("zygote_jobs:nothing", cgroup="/proc")
    assert error.value.stage in ("cgroup", "clone")


def test_a_worker_whose_pidfd_cannot_be_received(
    zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is free by then: nobody could wait for the worker, so it is ended."""
    zygote.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    received = _messages.receive

    def receive(answers: Fd, *, upward: bool) -> Received | Report | None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            return received(answers, upward=upward)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    before = children(os.getpid())
    monkeypatch.setattr(_birth, "receive", receive)
    with pytest.raises(ff.PassingError) as error:
        zygote.spawn("time:sleep", args=(1000,))
    assert error.value.errno == errno.EMFILE
    assert children(os.getpid()) == before
    monkeypatch.undo()
    with zygote.spawn("zygote_jobs:nothing") as worker:
        assert worker.wait().success
