"""The keeper: the supervisor is killed, its work goes on."""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import Load
from leaks import gone, steady
from logged_service import LoggedService, config, write
from places import HELPERS
from processes import alive, children, descendants, descriptors
from services import free_port

import pyforkfd as ff
from pyforkfd._fd import Fd
from pyforkfd.supervisor.succession._keeper import Adopted, Keeper, keeper_program

TIMES = 20


def is_supervisor(pid: int) -> bool:
    try:
        return b"serve.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def supervisor_of(keeper: int) -> int | None:
    return next(filter(is_supervisor, children(keeper)), None)


def workers_of(keeper: int) -> set[int]:
    return {pid for pid in descendants(keeper) if not is_supervisor(pid)}


def next_supervisor(keeper: int, last: int) -> int:
    while (pid := supervisor_of(keeper)) in (None, last):
        os.sched_yield()
    assert pid is not None
    return pid


@pytest.fixture
def with_keeper(tmp_path: Path) -> Iterator[tuple[LoggedService, int]]:
    port = config(tmp_path / "s.toml", keeper=True)
    with LoggedService(tmp_path / "s.toml") as service:
        service.ready(2)
        yield service, port


def test_twenty_kills_under_load(with_keeper: tuple[LoggedService, int]) -> None:
    service, port = with_keeper
    keeper = service.process.pid
    workers, held = workers_of(keeper), steady(lambda: kinds(keeper))
    ours = steady(lambda: kinds(service.supervisor))
    each = steady(lambda: {pid: descriptors(pid) for pid in workers})
    assert len(workers) == 2
    chance = random.Random(7)
    last = 0
    with Load(port) as load:
        for time_of_it in range(TIMES):
            if time_of_it % 2:
                service.wait_for("took over 2 workers")
            last = next_supervisor(keeper, last)
            time.sleep(chance.uniform(0.0, 0.4))  # any moment: while it starts, or serves
            os.kill(last, signal.SIGKILL)
            load.wait_for(20)
        last = next_supervisor(keeper, last)
        service.wait_for(f"^{last} took over 2 workers")
        load.wait_for(50)
    assert load.failures == []
    assert load.pids() <= workers
    assert workers_of(keeper) == workers
    assert gone(lambda: kinds(keeper) == held)
    assert gone(lambda: kinds(last) == ours), (kinds(last), ours)
    assert gone(lambda: {pid: descriptors(pid) for pid in workers} == each)
    service.stop()
    assert not still_alive(workers)


def kinds(pid: int) -> list[str]:
    """What a process has open, without inodes: the link between the two is another."""
    return sorted(what.partition("[")[0] for what in descriptors(pid).values())


def still_alive(pids: set[int]) -> set[int]:
    """Those that still run a moment later."""
    gone(lambda: not any(map(alive, pids)), 2.0)
    return set(filter(alive, pids))


def test_kills_in_the_middle_of_reloads(with_keeper: tuple[LoggedService, int]) -> None:
    service, port = with_keeper
    keeper = service.process.pid
    chance = random.Random(11)
    with Load(port) as load:
        for generation in range(2, 7):
            os.kill(keeper, signal.SIGHUP)
            service.wait_for("got SIGHUP")
            time.sleep(chance.uniform(0.0, 0.3))  # any moment of the reload
            os.kill(service.supervisor, signal.SIGKILL)
            service.wait_for("took over")
            outcome = f"generation {generation} serves"
            if outcome not in service.log.text():
                service.wait_for(outcome)
            load.wait_for(20)
        assert gone(lambda: len(workers_of(keeper)) == 2)
        load.wait_for(100)
    assert load.failures == []


def test_an_end_without_a_supervisor_is_known_and_the_worker_replaced(
    with_keeper: tuple[LoggedService, int],
) -> None:
    service, _ = with_keeper
    keeper = service.process.pid
    one, other = sorted(workers_of(keeper))
    os.kill(keeper, signal.SIGSTOP)  # so that no supervisor is there when they end
    os.kill(service.supervisor, signal.SIGKILL)
    os.kill(one, signal.SIGKILL)
    os.kill(other, signal.SIGUSR1)
    os.kill(keeper, signal.SIGCONT)
    service.wait_for("died .*SIGKILL|died .*SIGUSR1")
    service.wait_for("died .*SIGKILL|died .*SIGUSR1")
    service.ready(2)
    assert not {one, other} & workers_of(keeper)
    assert len(workers_of(keeper)) == 2


def test_an_end_after_the_takeover_is_known_by_the_keeper(
    with_keeper: tuple[LoggedService, int],
) -> None:
    service, _ = with_keeper
    keeper = service.process.pid
    service.kill()
    service.wait_for("took over")
    os.kill(min(workers_of(keeper)), signal.SIGUSR1)
    service.wait_for("died .*SIGUSR1")
    service.ready(1)


def test_an_upgrade_after_a_kill_and_a_kill_after_an_upgrade(
    with_keeper: tuple[LoggedService, int],
) -> None:
    service, port = with_keeper
    keeper = service.process.pid
    workers = workers_of(keeper)
    with Load(port) as load:
        for _ in range(2):
            service.kill()
            service.wait_for("took over")
            os.kill(keeper, signal.SIGUSR2)  # by way of the keeper
            service.wait_for("took over")
            load.wait_for(50)
    assert load.failures == []
    assert workers_of(keeper) == workers


def test_the_file_may_be_broken_when_the_supervisor_is_killed(
    with_keeper: tuple[LoggedService, int], tmp_path: Path
) -> None:
    service, port = with_keeper
    workers = workers_of(service.process.pid)
    (tmp_path / "s.toml").write_text("name = 3")
    service.kill()
    service.wait_for("took over")
    assert workers_of(service.process.pid) == workers
    os.kill(service.process.pid, signal.SIGHUP)
    service.wait_for("reload: .*")
    write(tmp_path / "s.toml", port, keeper=True)
    os.kill(service.process.pid, signal.SIGHUP)
    service.wait_for("generation 2 serves")


def test_workers_of_a_zygote_live_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.fspath(HELPERS))
    port = config(tmp_path / "s.toml", keeper=True, start='function = "pid_server:main"')
    with LoggedService(tmp_path / "s.toml") as service:
        service.ready(2)
        with Load(port) as load:
            load.wait_for(50)
            for _ in range(3):
                service.kill()
                service.wait_for("took over 2 workers")
                load.wait_for(50)
        assert load.failures == []
        assert load.pids() <= children(service.process.pid)
        os.kill(next(iter(load.pids())), signal.SIGKILL)
        service.wait_for("died .*SIGKILL")
        service.ready(1)


def test_a_supervisor_that_fails_is_started_again(tmp_path: Path) -> None:
    port = config(tmp_path / "s.toml", keeper=True)
    serve = tmp_path / "serve.py"
    fault = """
import pyforkfd.supervisor._engine as engine


def reload(supervisor):
    engine.advance = lambda *_: 1 / 0  # a fault of ours, in what every event goes through


Supervisor.reload = reload
logging.basicConfig"""
    text = (HELPERS / "serve.py").read_text()
    assert text.count("logging.basicConfig") == 1
    serve.write_text(text.replace("logging.basicConfig", fault))
    with LoggedService(tmp_path / "s.toml", [sys.executable, str(serve)]) as service:
        service.ready(2)
        workers = workers_of(service.process.pid)
        with Load(port) as load:
            os.kill(service.process.pid, signal.SIGHUP)
            service.wait_for("ZeroDivisionError")
            service.wait_for("died: exit code 70")
            service.wait_for("took over")
            load.wait_for(50)
        assert load.failures == []
        assert workers_of(service.process.pid) == workers


def test_without_its_keeper_the_supervisor_stops_in_order(
    with_keeper: tuple[LoggedService, int],
) -> None:
    service, port = with_keeper
    workers = workers_of(service.process.pid)
    with Load(port) as load:
        load.wait_for(20)
    service.process.kill()
    service.wait_for("got SIGTERM")
    for _ in workers:
        service.wait_for("has left: exit code 0")
    assert not still_alive({*workers, service.supervisor})
    assert "not sent" not in service.log.text()


def test_an_orphan_is_killed(tmp_path: Path) -> None:
    """A worker that was started in the moment in which its supervisor was killed."""
    stray = "import os, time; os.setpgid(0, 0); open('stray', 'w').write('x'); time.sleep(99)"
    server = HELPERS / "pid_server.py"
    script = f'({sys.executable} -S -c "$0" &); exec {sys.executable} -S {server}'
    start = f"""command = ["sh", "-c", '{script}', "{stray}"]"""
    config(tmp_path / "s.toml", keeper=True, workers=1, start=start)
    with LoggedService(tmp_path / "s.toml") as service:
        service.ready(1)
        keeper = service.process.pid
        (worker,) = children(service.supervisor)
        assert gone((tmp_path / "stray").exists)
        (orphan,) = workers_of(keeper) - {worker}
        service.kill()
        service.wait_for(f"killing process {orphan}, an orphan")
        service.wait_for("took over 1 workers")
        assert gone(lambda: workers_of(keeper) == {worker})


def test_the_cgroup_of_a_worker_that_was_not_started_yet_is_removed(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor was killed after it had made it, and its successor makes another."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{HELPERS}")
    (tmp_path / "slow.py").write_text("def setup(): open('gate').close()")
    os.mkfifo(tmp_path / "gate")  # the zygote waits here, and so does its worker
    config(tmp_path / "s.toml", keeper=True)
    with (tmp_path / "s.toml").open("a") as file:
        file.write('[components.fn]\nfunction = "signal:pause"\nzygote = "z"\n')
        file.write('readiness = "started"\n[zygotes.z]\nsetup = "slow:setup"\n')
    with LoggedService(tmp_path / "s.toml", cgroup=home) as service:
        service.ready(2)
        leaf = home / "fn-3.worker"
        leaf.mkdir()
        service.kill()
        service.wait_for("took over 2 workers")
        assert not leaf.exists()
        (tmp_path / "gate").write_text("")
        service.wait_for("fn: worker 3: ready")
        assert leaf.exists()


# The keeper itself, with supervisors of a few lines


def keeper(*arguments: str, code: str) -> subprocess.CompletedProcess[str]:
    command = [os.fspath(keeper_program()), *arguments, "--", sys.executable, "-S", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


GIVEN = """
import os, signal, socket, sys, time
given = dict(word.split("=") for word in os.environ["FORKFD_HANDOVER"].split())
link = socket.socket(fileno=int(given.pop("keeper")))
def hold(name, fd): socket.send_fds(link, [b"+" + name.encode()], [fd])
def killed(): os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_program_can_be_executed() -> None:
    assert keeper_program().stat().st_mode & stat.S_IXUSR


def test_it_ends_as_its_supervisor_does() -> None:
    done = keeper(code="raise SystemExit(7)")
    assert (done.returncode, done.stderr) == (7, "")


def test_it_starts_what_was_killed_with_all_that_it_holds() -> None:
    done = keeper(
        code=GIVEN
        + """
if not given:
    fd = os.memfd_create("one"); os.write(fd, b"first")
    hold("a", fd); hold("b", fd)
    fd = os.memfd_create("two"); os.write(fd, b"second")
    hold("b", fd); hold("c", fd); link.send(b"-c")
    killed()
print(sorted(given), *(os.pread(int(fd), 9, 0).decode() for _, fd in sorted(given.items())))
link.send(b"-")
"""
    )
    assert done.stdout == "['a', 'b'] first second\n"
    assert done.returncode == 0


def test_it_gives_up_one_that_never_serves_and_leaves_no_process(tmp_path: Path) -> None:
    done = keeper(
        "-t1",
        code=GIVEN
        + f"""
if not given:
    if os.fork() == 0:
        os.setpgid(0, 0)
        if os.fork() == 0: os.execlp("sleep", "sleep", "98")
        open({str(tmp_path / "pids")!r}, "a").write(f"{{os.getpid()}} ")
        os.execlp("sleep", "sleep", "99")
    hold("a", link.fileno())
killed()
""",
    )
    assert done.returncode == 1
    assert done.stderr.count("has died: signal 9") > 2
    assert "giving up" in done.stderr
    (pid,) = (tmp_path / "pids").read_text().split()
    assert not Path(f"/proc/{pid}").exists()


def test_one_that_serves_is_started_for_ever() -> None:
    done = keeper(
        "-t1",
        code=GIVEN
        + """
count = int(os.pread(int(given["n"]), 9, 0)) if given else 0
if not given:
    hold("n", given.setdefault("n", os.memfd_create("n")))
if count == 3:
    link.send(b"-")
    print("three")
    raise SystemExit
time.sleep(0.6)  # together longer than it would be patient with one that does not serve
os.pwrite(int(given["n"]), b"%d" % (count + 1), 0)
link.send(b"=")
killed()
""",
    )
    assert (done.stdout, done.returncode) == ("three\n", 0)


def test_a_signal_finds_the_next_supervisor_where_there_is_none() -> None:
    code = """
if not given: hold("a", link.fileno())
if signal.SIGTERM in signal.sigpending():
    link.send(b"-")
    print("SIGTERM")
    raise SystemExit
print("dies", flush=True)
killed()
"""
    command = [os.fspath(keeper_program()), sys.executable, "-S", "-c", GIVEN + code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        for _ in range(4):  # from the second on it waits longer and longer
            assert running.stdout.readline() == b"dies\n"
        running.terminate()
        assert running.stdout.read().removeprefix(b"dies\n") == b"SIGTERM\n"
    assert running.returncode == 0


@pytest.mark.parametrize("first", ["kill", "signal"])
def test_a_signal_that_a_killed_supervisor_has_not_read_finds_the_next(first: str) -> None:
    """Whether it was sent before the kill, or while the supervisor was about to end."""
    code = """
link.send(b"=")
if given:
    print(signal.sigtimedwait([signal.SIGHUP], 5))
    link.send(b"-")
    raise SystemExit
hold("a", link.fileno())
print(os.getpid(), flush=True)
while True: time.sleep(99)
"""
    command = [os.fspath(keeper_program()), sys.executable, "-S", "-c", GIVEN + code]
    for _ in range(10):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as kept:
            assert kept.stdout is not None
            pid = int(kept.stdout.readline())
            if first == "signal":
                kept.send_signal(signal.SIGHUP)
                assert gone(functools.partial(has_pending, pid, signal.SIGHUP))
            os.kill(pid, signal.SIGKILL)
            if first == "kill":
                kept.send_signal(signal.SIGHUP)
            assert b"si_signo=1" in kept.stdout.read()
        assert kept.returncode == 0


def has_pending(pid: int, signum: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)", status, re.MULTILINE)
    return bool(int(pending, 16) >> (signum - 1) & 1)


def test_it_reports_the_ends_of_orphans() -> None:
    done = keeper(
        code=GIVEN
        + """
import struct
parent = os.getpid()
if not given:
    hold("a", link.fileno())
    for code in 3, 4:
        if os.fork() == 0:
            while os.getppid() == parent: pass
            os._exit(code)
    killed()
print(sorted(struct.unpack("=iii", link.recv(12))[1:] for _ in range(2)))
link.send(b"-")
"""
    )
    assert done.stdout == "[(1, 3), (1, 4)]\n"


@pytest.mark.parametrize("message", [b"", b"x", b"+", b"+a b", b"+" + b"a" * 20, b"+a", b"=a"])
def test_nonsense_is_named_and_nothing_held(message: bytes) -> None:
    done = keeper(
        code=GIVEN
        + f"""
link.send({message!r})
if {message!r} not in (b"", b"+a"): socket.send_fds(link, [{message!r}], [0])
raise SystemExit(5)
"""
    )
    assert done.returncode == 5
    assert ("unknown or malformed" in done.stderr) == (message != b"")


@pytest.mark.parametrize("arguments", [[], ["-t", "0", "true"], ["-t"], ["-x", "true"]])
def test_bad_usage(arguments: list[str]) -> None:
    done = subprocess.run([keeper_program(), *arguments], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"usage: ")


def test_a_program_that_is_not_there() -> None:
    done = subprocess.run(
        [keeper_program(), "/nonexistent"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 127
    assert done.stderr == "forkfd-keeper: /nonexistent: No such file or directory\n"


def test_listeners_of_a_service_manager_reach_the_supervisor() -> None:
    code = "import os; print(os.environ['LISTEN_PID'] == str(os.getpid()))"
    script = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$1" -S -c "$2"'
    done = subprocess.run(
        ["sh", "-c", script, os.fspath(keeper_program()), sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True\n"


# Its reports, without a keeper


def test_how_an_adopted_process_ended_is_known_from_the_keeper() -> None:
    """Before Linux 6.15 from nowhere else: the report here has another code than the kernel's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ff.spawn(["sh", "-c", "exit 3"]) as child, ours:
        adopted = Adopted(child.pid, os.dup(child.pidfd), Keeper(Fd(theirs.detach())))
        assert adopted._keeper is not None
        child.wait()
        ours.send(struct.pack("=iii", child.pid + 1, 1, 4))
        ours.send(struct.pack("=iii", child.pid, 1, 5))
        assert adopted.wait().code == 5
        adopted._keeper.close()
        adopted.close()


def test_a_report_of_an_earlier_process_with_the_pid_is_discarded() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ff.spawn(["cat"], fds={0: ff.PIPE}) as child, ours:
        keeper = Keeper(Fd(theirs.detach()))
        ours.send(struct.pack("=iii", child.pid, 1, 4))
        adopted = Adopted(child.pid, os.dup(child.pidfd), keeper)
        assert adopted.poll() is None
        child.kill()
        child.wait()
        ours.send(struct.pack("=iii", child.pid, 2, signal.SIGKILL))
        assert adopted.wait().signal == signal.SIGKILL
        keeper.close()
        adopted.close()


def test_a_keeper_that_has_died_reports_nothing() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper = Keeper(Fd(theirs.detach()))
    ours.close()
    assert keeper.status(1) is None
    assert keeper.gone
    with pytest.raises(BrokenPipeError):
        keeper.hold("a", 0)
    keeper.close()


def test_the_counters_go_on(tmp_path: Path) -> None:
    """The page is handed over like the listeners, and what was counted of the dead."""
    path, port = tmp_path / "s.toml", free_port()
    config(path, keeper=True)
    with path.open("a") as file:
        file.write(f'\n[metrics]\naddress = "tcp://127.0.0.1:{port}"\n')
    with LoggedService(path) as running:
        running.ready(2)
        os.kill(min(workers_of(running.process.pid)), signal.SIGKILL)
        running.wait_for(r"died \(signal\)")
        running.ready(1)
        running.kill()
        running.wait_for("took over 2 workers")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        assert 'process_crash_total{cause="signal",component="web"} 1.0' in lines
        assert 'forkfd_workers_ready{component="web"} 2.0' in lines
