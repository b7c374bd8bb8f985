"""FORKFD_DEBUG: what is said, where, and that it is said whole."""

from __future__ import annotations

import errno
import os
import select
import selectors
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Children
from forked import in_child
from lines import parse_all

import pyforkfd as ff

FORKS = """
import ctypes, os, pyforkfd
for fork in (os.fork, ctypes.CDLL(None).fork):  # the second without the GIL, unknown to Python
    pid = fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
"""
SPAWNS = """
import pyforkfd
pyforkfd.spawn(["true"]).wait()
"""
SUMMARY = ("threads", "children", "spawned", "failed", "forked")


def run(code: str, settings: str | None, *options: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "FORKFD_DEBUG"}
    if settings is not None:
        env["FORKFD_DEBUG"] = settings
    return subprocess.run(
        [sys.executable, "-P", *options, "-W", "ignore::DeprecationWarning", "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "log"
    ff.debug("")


@pytest.mark.parametrize("settings", [None, "", "exec=0,fork=0,epoll=0,sched=0", "epoll=1"])
def test_nothing_is_said_where_nothing_is_asked(settings: str | None) -> None:
    done = run(SPAWNS + FORKS, settings)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_life_of_a_child(children: Children, log: Path) -> None:
    ff.debug(f"exec=1,file={log}")
    child = children.start(["/bin/sh", "-c", "exit 7"])
    assert child.wait().code == 7
    lines = parse_all(log.read_text(), "exec")
    assert [line["stage"] for line in lines] == ["started", "clone", "executed", "reaped"]
    for line in lines:
        assert line["pid"] == str(os.getpid())
        assert line["tid"] == str(threading.get_native_id())
        assert line.get("subject") == (None if line["stage"] == "reaped" else "/bin/sh")
        assert line.get("child") == (None if line["stage"] == "started" else str(child.pid))
    assert lines[2]["backend"] == children.backend
    assert int(lines[1]["us"]) <= int(lines[2]["us"])
    assert lines[3]["code"] == "7"
    times = [float(line["t"]) for line in lines]
    assert times == sorted(times)


def test_an_epoll_and_its_forks(log: Path) -> None:
    reader, writer = os.pipe()
    ff.debug(f"epoll=1,file={log}")
    with ff.ForkSafeSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        selector.modify(reader, selectors.EVENT_WRITE)
        child = in_child(lambda: (os.getpid(), selector.unregister(reader) and None))[0]
        os.close(reader)
        selector.unregister(reader)
        number = selector.fileno()
    ff.debug("")
    os.close(writer)
    lines = parse_all(log.read_text())
    seen = [(line["pid"], line["stage"], line.get("fd"), line.get("errno")) for line in lines]
    me, fd = str(os.getpid()), str(reader)
    assert seen == [
        (me, "add", fd, None),
        (me, "modify", fd, None),
        (str(child), "rebuilt", None, None),
        (str(child), "remove", fd, None),
        (me, "remove", fd, str(errno.EBADF)),
    ]
    assert {(line["event"], line["epoll"]) for line in lines} == {("epoll", str(number))}
    assert (lines[2]["entries"], lines[2]["left_out"]) == ("1", "0")
    assert int(lines[2]["us"]) >= 0 and int(lines[0]["events"]) == select.EPOLLIN


def test_a_start_that_fails(log: Path) -> None:
    ff.debug(f"exec=1,file={log}")
    with pytest.raises(FileNotFoundError):
        ff.spawn(["/bin/true"], cwd="/no such\ndirectory")
    lines = parse_all(log.read_text())
    assert [line["stage"] for line in lines] == ["started", "clone", "failed"]
    assert lines[2]["step"] == "working_directory"
    assert lines[2]["on"] == "/no such\ndirectory"
    assert lines[2]["errno"] == "2"


def test_every_fork_of_the_process_is_told() -> None:
    lines = parse_all(run(FORKS, "fork=1").stderr)
    assert sorted(line["stage"] for line in lines) == sorted(
        ["before", "in_parent", "in_child"] * 2
    )
    parents = {line["pid"] for line in lines if line["stage"] != "in_child"}
    assert len(parents) == 1
    born = [line for line in lines if line["stage"] == "in_child"]
    assert {line["parent"] for line in born} == parents
    assert len({line["pid"] for line in born} - parents) == 2


def test_lines_of_many_threads_never_mix() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, True)
    read: list[bytes] = []

    def drain() -> None:
        with os.fdopen(reader, "rb") as lines:
            read.append(lines.read())

    def start() -> None:
        for _ in range(25):
            ff.spawn(["/bin/true"]).wait()

    drainer = threading.Thread(target=drain)
    drainer.start()
    ff.debug(f"exec=1,fd={writer}")
    try:
        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        ff.debug("")
        os.close(writer)
        drainer.join()
    lines = parse_all(read[0].decode())
    for stage in ("started", "executed", "reaped"):
        assert len([line for line in lines if line["stage"] == stage]) == 200


def test_what_is_not_known_is_a_warning_that_names_the_known() -> None:
    done = run(SPAWNS, "exec=1,colour=1,fork=yes,fd")
    lines = done.stderr.splitlines()
    said = [line for line in lines if "RuntimeWarning: FORKFD_DEBUG: " in line]
    assert len(said) == 3
    for line, word in zip(said, ("'colour'", "'fork=yes'", "'fd'"), strict=True):
        assert word in line
        assert "fork=1, exec=1, epoll=1, sched=MILLISECONDS, fd=N or file=PATH" in line
    assert [line for line in lines if "event=exec" in line], "the rest holds"


def test_a_target_that_cannot_be_is_a_warning_too() -> None:
    for settings in ("exec=1,fd=99", "exec=1,file=/nonexistent/file"):
        done = run(SPAWNS, settings)
        assert "RuntimeWarning: FORKFD_DEBUG: " in done.stderr
        assert "event=" not in done.stderr


def test_a_warning_may_be_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(SPAWNS, "colour=1", "-W", "error")
    assert "RuntimeWarning: FORKFD_DEBUG: 'colour' is not known" in caught.value.stderr


def test_mistakes_are_errors_where_they_are_made() -> None:
    for settings in ("colour=1", "exec", "exec=2", "sched=often", "fd=-1", "fd=2,file=/dev/null"):
        with pytest.raises(ValueError, match=r"known are fork=1|exclude each other"):
            ff.debug(settings)
    with pytest.raises(OSError, match="fd=999"):
        ff.debug("fd=999")
    with pytest.raises(FileNotFoundError):
        ff.debug("file=/nonexistent/file")


def test_a_file_is_appended_to_and_closed_when_it_is_replaced(log: Path, tmp_path: Path) -> None:
    log.write_text("")
    for _ in range(2):
        ff.debug(f"exec=1,file={log}")
        ff.spawn(["/bin/true"]).wait()
    ff.debug(f"exec=1,file={tmp_path / 'other'}")
    ff.spawn(["/bin/true"]).wait()
    ff.debug("")
    open_now = {os.readlink(f"/proc/self/fd/{fd}") for fd in ff.fd_table()}
    assert not {str(log), str(tmp_path / "other")} & open_now
    ff.spawn(["/bin/true"]).wait()
    assert len(parse_all(log.read_text())) == 8
    assert len(parse_all((tmp_path / "other").read_text())) == 4


def test_the_environment_reaches_children_that_use_it(log: Path) -> None:
    code = f"""
import sys, pyforkfd
assert pyforkfd.spawn([sys.executable, "-P", "-c", {SPAWNS!r}]).wait().success
"""
    run(code, f"exec=1,file={log}")
    lines = parse_all(log.read_text())
    assert len({line["pid"] for line in lines}) == 2


def test_a_summary_every_so_often(log: Path) -> None:
    code = f"""
import os, sys, time
import pyforkfd
sleeper = pyforkfd.spawn(["sleep", "60"])
pid = os.fork()
def wait_for_lines(pid):
    while True:
        with open({str(log)!r}) as log:
            if len([line for line in log if f" pid={{pid}} " in line]) > 2: return
        time.sleep(0.01)
wait_for_lines(os.getpid())
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
sleeper.kill()
sleeper.wait()
"""
    log.touch()
    run(code, f"sched=20,file={log}")
    lines = parse_all(log.read_text(), "sched")
    parent, *others = dict.fromkeys(line["pid"] for line in lines)
    assert len(others) == 1, "the child of os.fork goes on with its own"
    for line in lines:
        assert int(line["descriptors"]) >= 3
        assert int(line["gil_ms"]) >= 0
        assert line["epoll_drift"] == "0"
    # Some of them: others are of before and after.
    seen = {tuple(line[name] for name in ("pid", *SUMMARY)) for line in lines}
    assert (parent, "3", "1", "1", "0", "1") in seen
    assert (others[0], "3", "0", "0", "0", "0") in seen
