"""The doctor called by a program: the kernel's features, a process, one descriptor."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from children import needs_root
from sandbox import refuse

import pyforkfd as ff
from pyforkfd import _core, doctor
from pyforkfd.doctor import _features
from pyforkfd.doctor._children import holding, open_in_exec
from pyforkfd.doctor._why import explain

CLONE3, CLOSE_RANGE, PIDFD_OPEN = 435, 436, 434
KCMP, SECCOMP = {"x86_64": (312, 317), "aarch64": (272, 277)}[platform.machine()]

SANDBOXED = """
import json
from pyforkfd import doctor
print(json.dumps({f.name: [f.present, f.errno, f.seen] for f in doctor.features()}))
"""


def features_inside(numbers: list[int], err: int) -> dict[str, tuple[bool, int | None, str]]:
    with ff.spawn(
        [sys.executable, "-I", "-c", SANDBOXED],
        fds={1: ff.PIPE},
        seccomp=refuse(numbers, err),
        no_new_privs=True,
    ) as sandboxed:
        assert sandboxed.stdout is not None
        answer = json.loads(sandboxed.stdout.read())
    return {name: (present, code, seen) for name, (present, code, seen) in answer.items()}


@contextlib.contextmanager
def cat(
    fds: Mapping[int, ff.FdSource] | None = None, args: Sequence[str] = ("cat",)
) -> Iterator[ff.Process]:
    """Run a program that has answered, so that its loader has closed all descriptors."""
    streams: dict[int, ff.FdSource] = {0: ff.PIPE, 1: ff.PIPE, 2: ff.DEVNULL}
    with ff.spawn(args, fds={**streams, **(fds or {})}) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"x")
        child.stdin.flush()
        assert child.stdout.read(1) == b"x"
        yield child


def problems(examination: doctor.Examination) -> dict[int | None, set[str]]:
    found: dict[int | None, set[str]] = {}
    for problem in examination.problems:
        assert problem.text and problem.remedy
        found.setdefault(problem.number, set()).add(problem.name)
    return found


def problem_text(number: int, name: str, examination: doctor.Examination | None = None) -> str:
    """Return the text of a problem; without an examination, of this process."""
    (text,) = (
        problem.text
        for problem in (examination or doctor.examine()).problems
        if (problem.number, problem.name) == (number, name)
    )
    return text


# Features


def test_features_are_those_that_a_spawn_uses() -> None:
    features = {feature.name: feature for feature in doctor.features()}
    with ff.spawn(["true"]) as started:
        assert started.wait().success
    refusals = _core.refusals()
    for name, key in (
        ("clone3(2)", "clone3"),
        ("CLONE_CLEAR_SIGHAND", "clear_sighand"),
        ("CLONE_PIDFD", "clone_pidfd"),
        ("CLOSE_RANGE_UNSHARE", "unshare"),
        ("memory shared by CLONE_VM", "shared_memory"),
    ):
        assert features[name].present == (refusals[key] == 0), name
    assert features["pidfs: inodes of pidfds"].present == (_core.own_pidfd_inode() is not None)
    for feature in features.values():
        assert feature.seen and feature.used_for and feature.without
        assert not (feature.present and feature.errno)


def test_exit_information_is_what_reap_gets() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    with ff.Fd(os.pidfd_open(pid)) as pidfd:
        os.waitpid(pid, 0)
        reaped = _core.reap(pidfd.fileno())
    present = {feature.name: feature.present for feature in doctor.features()}
    assert reaped is not None and reaped[0] == present["PIDFD_INFO_EXIT"]


def test_user_namespaces_are_what_a_spawn_gets() -> None:
    try:
        with ff.spawn(["true"], namespaces=["user"]) as started:
            possible = started.wait().success
    except ff.SpawnError:
        possible = False
    present = {feature.name: feature.present for feature in doctor.features()}
    assert present["user namespaces"] == possible


def test_without_a_cgroup_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_features, "_own_cgroup", lambda: None)
    features = {feature.name: feature for feature in doctor.features()}
    for name in ("CLONE_INTO_CGROUP", "cgroup v2, delegated to us", "cgroup v2 controllers"):
        assert (features[name].present, features[name].errno) == (False, None)
        assert "no cgroup v2" in features[name].seen


def test_what_a_sandbox_refuses_is_missing_by_its_errno() -> None:
    seen = features_inside([CLONE3, CLOSE_RANGE, PIDFD_OPEN], errno.EPERM)
    refused = (False, errno.EPERM, "EPERM: Operation not permitted")
    for name in ("clone3(2)", "CLONE_CLEAR_SIGHAND", "CLOSE_RANGE_UNSHARE"):
        assert seen[name] == refused, name
    for name in ("close_range(2)", "CLOSE_RANGE_CLOEXEC", "pidfd_open(2)", "pidfd_getfd(2)"):
        assert seen[name] == refused, name
    assert seen["CLONE_PIDFD"] == (True, None, "works"), "clone(2) was not refused"
    assert seen["CLONE_INTO_CGROUP"][0] is False


def test_nothing_else_is_missing() -> None:
    seen = features_inside([KCMP, SECCOMP], errno.ENOSYS)
    here = features_inside([PIDFD_OPEN + 1000], errno.ENOSYS)  # a filter, but of nothing
    different = {name for name in here if here[name] != seen[name]}
    assert different == {"kcmp(2)", "seccomp(2) filters"}
    assert seen["kcmp(2)"] == (False, errno.ENOSYS, "ENOSYS: Function not implemented")


def test_settings_are_those_of_proc() -> None:
    settings = {setting.name: setting.value for setting in doctor.settings()}
    assert settings["kernel.pid_max"] == Path("/proc/sys/kernel/pid_max").read_text().strip()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert settings["RLIMIT_NOFILE"].startswith(f"{soft} ")


# A process


def test_all_is_well() -> None:
    with cat() as child:
        found = doctor.examine(child.pid)
    assert (found.pid, found.program, list(found.table)) == (child.pid, "cat", [0, 1, 2])
    assert found.problems == ()
    (us,) = (holder for holder in found.holders[0] if holder.pid == os.getpid())
    assert (us.relation, us.same_program) == ("parent", False)
    assert len(us.numbers) == 1 and 2 not in found.holders


def test_a_listener_that_another_program_inherited() -> None:
    with ff.bind("tcp://127.0.0.1:0") as listener:
        number = listener.fileno()
        assert "inherited-listener" not in problems(doctor.examine()).get(number, set())
        with cat({7: listener}) as child:
            assert f"cat (child {child.pid}: 7)" in problem_text(number, "inherited-listener")
            theirs = doctor.examine(child.pid)
        # Seen from the heir it is a manager's: no problem but the mark.
        assert problems(theirs) == {7: {"no-close-on-exec"}}
        (holder,) = theirs.holders[7]
        assert (holder.pid, holder.relation) == (os.getpid(), "parent")
        assert "listening, 0 of" in problem_text(7, "no-close-on-exec", theirs)


def test_how_the_holders_are_related() -> None:
    with (
        ff.bind("tcp://127.0.0.1:0") as listener,
        cat({7: listener}, ["sh", "-c", "cat; true"]) as shell,
    ):
        held = doctor.examine().holders[listener.fileno()]
        assert {(holder.program, holder.relation) for holder in held} == {
            ("sh", "child"),
            ("cat", "descendant"),
        }
        (below,) = (holder.pid for holder in held if holder.pid != shell.pid)
        held = doctor.examine(below).holders[7]
        assert {(holder.pid, holder.relation) for holder in held} == {
            (shell.pid, "parent"),
            (os.getpid(), "ancestor"),
        }


def test_a_listener_of_forked_workers_is_no_problem() -> None:
    with ff.bind("unix:@pyforkfd-doctor") as listener, holding() as worker:
        found = doctor.examine()
        (holder,) = found.holders[listener.fileno()]
        assert (holder.pid, holder.same_program, holder.relation) == (worker, True, "child")
        assert "inherited-listener" not in problems(found).get(listener.fileno(), set())


def test_a_listener_of_an_unrelated_program() -> None:
    """An orphan: it is no child of ours any more, but holds the listener."""
    with ff.bind("tcp://127.0.0.1:0") as listener, ff.Fd(os.memfd_create("out")) as out:
        script = "cat <&3 >/dev/null & echo $! >&4"
        with ff.spawn(
            ["sh", "-c", script],
            fds={3: ff.PIPE_TO_CHILD, 4: out, 7: listener},
        ) as shell:
            assert shell.wait().success
            pid = int(os.pread(out.fileno(), 20, 0))
            text = problem_text(listener.fileno(), "inherited-listener")
            assert f" {pid}: 7" in text and "child" not in text.split(":")[0]
            pidfd = os.pidfd_open(pid)
        with ff.Fd(pidfd):  # the end of the pipe has ended it
            assert select.select([pidfd], [], [], 30)[0]


def test_a_file_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "log\x1b[31m\n"
    path.write_bytes(b"12345")
    with open(path) as file:
        assert file.fileno() not in problems(doctor.examine())
        path.unlink()
        text = problem_text(file.fileno(), "deleted")
    assert "5 bytes" in text and "log\\x1b[31m\\n (deleted)" in text


def test_no_close_on_exec(other_fd: int) -> None:
    assert other_fd not in problems(doctor.examine())
    with ff.inheriting(other_fd):
        assert problems(doctor.examine())[other_fd] == {"no-close-on-exec"}


def test_an_epoll_whose_descriptor_is_closed() -> None:
    with select.epoll() as epoll:
        reader, writer = os.pipe()
        epoll.register(reader, select.EPOLLIN)
        assert epoll.fileno() not in problems(doctor.examine())
        with holding() as child, ff.Fd(os.dup(reader)) as copy, ff.Fd(writer):
            os.close(reader)
            text = problem_text(epoll.fileno(), "stale-epoll-entry")
            assert f"watches descriptor {reader}, which is closed" in text
            assert f"descriptor {copy.fileno()}" in text and f"(child {child}: {reader}, " in text
            os.dup2(0, reader)
            text = problem_text(epoll.fileno(), "stale-epoll-entry")
            assert "another file now" in text
            os.close(reader)


def test_an_epoll_that_watches_what_only_another_has() -> None:
    with select.epoll() as epoll, socket.socket() as made:
        epoll.register(made, select.EPOLLIN)
        number = made.fileno()
        with holding() as child:
            made.close()
            assert f"(child {child}: {number})" in problem_text(epoll.fileno(), "stale-epoll-entry")
        assert epoll.fileno() not in problems(doctor.examine())


def test_a_queue_that_nobody_serves() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(ff.bind("tcp://127.0.0.1:0", backlog=1))
        for served in (False, False):
            assert "full-queue" not in problems(doctor.examine()).get(listener.fileno(), set())
            client = stack.enter_context(socket.socket())
            client.connect(listener.getsockname())
            assert not served
        assert "2 connections waiting of 1" in problem_text(listener.fileno(), "full-queue")


def test_a_stream_that_is_closed() -> None:
    code = "import os; os.write(1, b'x'); os.read(5, 1)"
    fds: dict[int, ff.FdSource] = {0: ff.CLOSED, 1: ff.PIPE, 5: ff.PIPE_TO_CHILD}
    with ff.spawn([sys.executable, "-I", "-S", "-c", code], fds=fds) as child:
        assert child.stdout is not None and child.stdout.read(1) == b"x"
        found = doctor.examine(child.pid)
    assert problems(found) == {0: {"closed-stream"}, 5: {"no-close-on-exec"}}
    assert "standard input" in problem_text(0, "closed-stream", found)


def test_a_process_near_its_limit(other_fd: int) -> None:
    more: dict[int, ff.FdSource] = dict.fromkeys(range(3, 9), other_fd)
    for limit, near in ((10, True), (11, False)):
        fds: dict[int, ff.FdSource] = {**more, 0: ff.PIPE, 1: ff.PIPE}
        with ff.spawn(["cat"], fds=fds, rlimits={resource.RLIMIT_NOFILE: (limit, limit)}) as child:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(b"x")
            child.stdin.flush()
            assert child.stdout.read(1) == b"x"
            assert (None in problems(doctor.examine(child.pid))) is near


def test_processes_that_are_not_there() -> None:
    with ff.spawn(["true"]) as ended:
        pid = ended.pid
    with pytest.raises(ProcessLookupError):
        doctor.examine(pid)
    with pytest.raises(ValueError):
        doctor.examine(-1)


@needs_root
def test_processes_that_may_not_be_examined_are_counted() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, or we may not see ourselves
            found = doctor.examine()
            os.write(writer, b"%d" % found.unseen)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        assert int(answer.read()) > 0
    os.waitpid(pid, 0)
    assert doctor.examine().unseen < 2, "root sees them; but for what a sandbox hides"


# One descriptor


def test_the_prediction_is_true(other_fd: int) -> None:
    for marked in (True, False):
        ff.set_cloexec(other_fd, marked)
        answer = doctor.why(other_fd, ["cat"])
        assert answer.has is (not marked)
        assert answer.has == (open_in_exec([other_fd]) == [other_fd])
        plain, by_subprocess, by_spawn = answer.ways
        test = ["sh", "-c", f"[ -e /proc/self/fd/{other_fd} ]"]
        assert plain.has == (os.system(test[2]) == 0)
        assert by_subprocess.has == (subprocess.run(test, check=False).returncode == 0)
        with ff.spawn(test) as child:
            assert by_spawn.has == child.wait().success
        assert bool(answer.remedy) is marked


def test_what_helps_does_help(other_fd: int) -> None:
    test = ["sh", "-c", f"[ -e /proc/self/fd/{other_fd} ]"]
    remedy = doctor.why(other_fd).remedy
    assert f"fds={{{other_fd}: {other_fd}}}" in remedy
    with ff.spawn(test, fds={other_fd: other_fd}) as child:
        assert child.wait().success
    assert f"pass_fds=({other_fd},)" in remedy
    assert subprocess.run(test, pass_fds=(other_fd,), check=False).returncode == 0
    assert f"inheriting({other_fd})" in remedy
    with ff.inheriting(other_fd):
        assert doctor.why(other_fd).has
        assert os.system(test[2]) == 0


def test_a_descriptor_that_is_closed() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    os.close(reader)
    answer = doctor.why(reader, ["cat"], really=True)
    assert (answer.has, answer.what, answer.ways) == (False, "", ())
    assert str(answer).startswith(f"cat would NOT have descriptor {reader}: it is closed")
    assert answer.tried is not None and "Bad file descriptor" in answer.tried


def test_what_is_marked_is_none_of_the_shells(other_fd: int) -> None:
    answer = explain(other_fd, ["cat"], really=False, from_shell=True)
    assert not answer.has and answer.reason.startswith("the shell passes none")
    with ff.inheriting(other_fd):
        assert explain(other_fd, ["cat"], really=False, from_shell=True).has


def test_a_listener_in_one_call() -> None:
    with ff.bind("tcp://127.0.0.1:0") as listener:
        number, port = listener.fileno(), listener.getsockname()[1]
        dead = doctor.why(listener, ["server"], really=True)
        assert dead.what == f"TCP 127.0.0.1:{port}, listening, 0 of 4096 waiting"
        assert not dead.has and "FD_CLOEXEC" in dead.reason
        assert dead.tried is not None and "no such descriptor" in dead.tried
        with ff.inheriting(listener):
            alive = doctor.why(listener, ["cat"], really=True)
        assert alive.has and alive.tried is not None and alive.tried.endswith("and it listens")
        text = str(alive).splitlines()
        assert text[0].startswith(f"cat would have descriptor {number}: ")
        assert any("accepts at once" in line for line in text)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert any("does not listen" in note for note in doctor.why(bound).notes)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_streams(number: int) -> None:
    answer = doctor.why(number, really=True)
    assert answer.has and answer.tried is not None and "the same file" in answer.tried


def test_an_unmarked_duplicate_is_named(other_fd: int) -> None:
    assert doctor.why(other_fd).notes == ()
    with ff.Fd(os.dup(other_fd)) as copy, ff.inheriting(copy):
        (note,) = doctor.why(other_fd).notes
        assert f"descriptor {copy.fileno()} is the same open file" in note


def test_what_the_command_is(
    other_fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("script", "sudo", "su"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o4755 if name == "script" else 0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with ff.inheriting(other_fd):
        answer = doctor.why(other_fd, ["no such program"])
        assert not answer.has and "not found" in answer.reason
        answer = doctor.why(other_fd, ["script"])
        assert answer.has and "#! script: /bin/sh" in answer.notes[0]
        assert "set-user-ID" in answer.notes[1]
        answer = doctor.why(other_fd, ["sudo", "server"])
        assert not answer.has and "server would not" in answer.reason
        assert doctor.why(1, ["sudo", "server"]).has
        answer = doctor.why(other_fd, ["su", "-c", "server"])
        assert answer.has and "PAM" in answer.notes[0]
        with ff.Fd(os.open(tmp_path / "script", os.O_RDONLY)) as script:
            path = f"/proc/self/fd/{script.fileno()}"
            notes = doctor.why(other_fd, [path]).notes
            assert any("could not open the script" in note for note in notes)
            with ff.inheriting(script):
                notes = doctor.why(other_fd, [path]).notes
                assert not any("could not open the script" in note for note in notes)


def test_socket_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    def notes(fd: int, **variables: str) -> str:
        for name in ("LISTEN_FDS", "LISTEN_PID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return " ".join(note for note in doctor.why(fd).notes if "LISTEN_" in note)

    ours = str(os.getpid())
    with ff.bind("tcp://127.0.0.1:0") as listener, ff.Fd(os.dup(listener.fileno())) as high:
        number = high.fileno()
        assert "LISTEN_FDS=1" in notes(number)
        count = str(number - 2)
        assert notes(number, LISTEN_FDS=count, LISTEN_PID=ours) == ""
        assert "LISTEN_PID=1 is not" in notes(number, LISTEN_FDS=count, LISTEN_PID="1")
        found_notes = notes(number, LISTEN_FDS=str(number - 3), LISTEN_PID=ours)
        assert f"announces 3 to {number - 1}, not {number}" in found_notes or number == 3
        assert "not a number" in notes(number, LISTEN_FDS="many", LISTEN_PID=ours)
    assert "which is not open" in notes(number, LISTEN_FDS=count, LISTEN_PID=ours)


def test_what_is_no_descriptor() -> None:
    with pytest.raises(ValueError, match="-1"):
        doctor.why(-1)
    with pytest.raises(TypeError):
        doctor.why("7")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not a program and its arguments"):
        doctor.why(1, "cat")
