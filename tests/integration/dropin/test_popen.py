"""pyforkfd.subprocess: the standard names, with our options."""

from __future__ import annotations

import inspect
import os
import resource
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from interrupts import interrupted_after

import pyforkfd as ff
from pyforkfd import subprocess as drop_in

PIPE = drop_in.PIPE


def test_it_has_the_standard_names_and_signatures() -> None:
    assert set(subprocess.__all__) <= set(drop_in.__all__)
    for name in ("run", "call", "check_call", "check_output", "getoutput", "getstatusoutput"):
        stock = inspect.signature(getattr(subprocess, name)).parameters
        ours = inspect.signature(getattr(drop_in, name)).parameters
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in stock.values()
        ]
    stock = inspect.signature(subprocess.Popen.__init__).parameters
    ours = inspect.signature(drop_in.Popen.__init__).parameters
    assert [p for p in ours if p != "options"] == list(stock)
    kinds = {name: p.kind for name, p in stock.items()}
    assert {n: p.kind for n, p in ours.items() if n != "options"} == kinds
    known = {*drop_in.PopenOptions.__annotations__, "self", "startupinfo", "creationflags"}
    assert set(stock) <= known


def test_every_option_of_command_is_offered() -> None:
    standard = {
        "args", "executable", "env", "cwd", "umask", "user", "group", "extra_groups",
        "process_group",
    }  # fmt: skip
    renamed = {"argv0", "close_others", "new_session"}
    options = set(inspect.signature(ff.Command).parameters) - standard - renamed
    assert set(drop_in.Options.__annotations__) == options


def test_options_of_ours_and_standard_ones_together(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log:
        output = drop_in.check_output(
            "ulimit -n; nice; readlink /proc/self/fd/7; echo unseen >&7",
            shell=True,
            text=True,
            cwd="/",
            fds={7: log},
            rlimits={resource.RLIMIT_NOFILE: (33, 33)},
            nice=9,
            no_new_privs=True,
        )
    assert output.splitlines() == ["33", "9", str(tmp_path / "log")]
    assert (tmp_path / "log").read_text() == "unseen\n"


def test_a_pipe_of_its_own() -> None:
    script = "read line <&5; echo $line $line >&6"
    fds = {5: ff.PIPE_TO_CHILD, 6: ff.PIPE}
    with drop_in.Popen[bytes](["sh", "-c", script], fds=fds) as child:
        child.pipes[5].write(b"twice\n")
        child.pipes[5].flush()
        assert child.pipes[6].read() == b"twice twice\n"


def test_an_output_that_goes_where_another_goes() -> None:
    done = drop_in.run(
        ["sh", "-c", "echo a; echo b >&4"], stdout=drop_in.PIPE, fds={4: ff.SameAs(1)}, check=True
    )
    assert done.stdout == b"a\nb\n"


def test_one_number_has_one_source(other_fd: int) -> None:
    with pytest.raises(ValueError, match=r"child's \[1\] also"):
        drop_in.Popen(["true"], stdout=drop_in.DEVNULL, fds={1: other_fd})
    with pytest.raises(ValueError, match=rf"child's \[{other_fd}\] also"):
        drop_in.Popen(["true"], pass_fds=[other_fd], fds={other_fd: ff.DEVNULL})


def test_a_wrong_option_says_at_which_step() -> None:
    with pytest.raises(ff.SpawnError) as caught:
        drop_in.run(["true"], cgroup="/proc")
    assert caught.value.stage == "cgroup"
    with pytest.raises(TypeError, match="nonsense"):
        drop_in.run(["true"], nonsense=1)  # type: ignore[call-arg]


def test_errors_are_the_standard_ones() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        drop_in.run(["/nowhere/program"])
    assert caught.value.filename == "/nowhere/program"
    assert isinstance(caught.value.__cause__, ff.SpawnError)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        drop_in.run(["sh", "-c", "echo said; exit 4"], capture_output=True, check=True)
    assert (failed.value.returncode, failed.value.stdout) == (4, b"said\n")
    for call in (drop_in.run, drop_in.call, drop_in.check_call, drop_in.check_output):
        with pytest.raises(subprocess.TimeoutExpired) as late:
            call(["sleep", "60"], timeout=0.05)
        assert 0.04 < late.value.timeout <= 0.05
    with pytest.raises(ValueError, match="input"):
        drop_in.run(["true"], input=b"", stdin=drop_in.PIPE)
    with pytest.raises(ValueError, match="capture_output"):
        drop_in.run(["true"], capture_output=True, stdout=drop_in.PIPE)
    with pytest.raises(ValueError, match="stdout"):
        drop_in.check_output(["true"], stdout=drop_in.PIPE)
    with pytest.raises(subprocess.CalledProcessError):
        drop_in.check_call(["false"])


def test_the_small_ones() -> None:
    assert drop_in.call(["sh", "-c", "exit 7"]) == 7
    assert drop_in.check_call(args=["true"]) == 0
    assert drop_in.check_output(["cat"], input=b"in") == b"in"
    assert drop_in.check_output(["cat"], input=None, text=True) == ""
    assert drop_in.getstatusoutput("echo out; exit 5") == (5, "out")
    assert drop_in.getoutput("echo out") == "out"


def kernel_knows_the_status_of_reaped_children() -> bool:
    """Try PIDFD_INFO_EXIT, Linux 6.15."""
    child = ff.spawn(["true"])
    os.waitpid(child.pid, 0)
    return not child.wait().lost


class TestPidfd:
    def test_it_is_the_childs_until_that_is_reaped(self) -> None:
        with drop_in.Popen[bytes](["cat"], stdin=drop_in.PIPE) as child:
            told = Path(f"/proc/self/fdinfo/{child.pidfd}").read_text()
            assert f"Pid:\t{child.pid}\n" in told
            child.communicate(b"")
            assert child.pidfd == -1

    def test_a_forgotten_one_is_closed(self) -> None:
        child = drop_in.Popen[bytes](["true"])
        assert child.wait() == 0
        child = drop_in.Popen[bytes](["sleep", "60"])
        pid = child.pid
        with pytest.warns(ResourceWarning, match="still running"):
            del child
        os.kill(pid, signal.SIGKILL)  # not before, or it could be reaped when it goes
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        subprocess._active.clear()  # type: ignore[attr-defined]

    def test_a_wait_in_another_thread_sees_a_signal(self) -> None:
        child = drop_in.Popen[bytes](["sleep", "60"])
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(child.wait(timeout=60)))
        thread.start()
        child.send_signal(signal.SIGUSR1)
        thread.join()
        assert codes == [-signal.SIGUSR1]
        child.send_signal(signal.SIGUSR1)  # does nothing

    def test_waits_end_when_time_is_up_and_can_be_repeated(self) -> None:
        with drop_in.Popen[Any](["cat"], stdin=drop_in.PIPE) as child:
            for timeout in (-1, 0, 0.01):
                with pytest.raises(subprocess.TimeoutExpired):
                    child.wait(timeout=timeout)
            assert child.poll() is None
            child.terminate()
            assert child.wait(timeout=10) == -signal.SIGTERM

    def test_a_child_that_somebody_else_reaped(self) -> None:
        child = drop_in.Popen[bytes](["sleep", "60"])
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        if kernel_knows_the_status_of_reaped_children():
            child.terminate()
            assert child.wait(timeout=10) == -signal.SIGKILL
        else:
            with pytest.warns(RuntimeWarning, match="exit status lost, reporting 255"):
                child.terminate()
            assert child.wait(timeout=10) == 255


class TestCommunicate:
    """In one native loop, and as the standard one does it where that does not fit."""

    BOTH = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; cat"

    @pytest.mark.parametrize("size", [0, 1, 4096, 4097, 300_000])
    def test_input_of_any_size_and_more_output_than_pipes_hold(self, size: int) -> None:
        data = os.urandom(size)
        command = ["sh", "-c", self.BOTH]
        done = drop_in.run(command, input=data, capture_output=True, timeout=60)
        assert done.stdout == b"\0" * 300_000 + data
        assert len(done.stderr) == 300_000

    def test_what_was_written_before_comes_first(self) -> None:
        with drop_in.Popen[bytes](["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as child:
            assert child.stdin is not None
            child.stdin.write(b"x" * 60_000)
            assert child.communicate(b"y" * 4096, timeout=60)[0] == b"x" * 60_000 + b"y" * 4096

    def test_it_goes_on_after_a_timeout(self) -> None:
        script = "echo one; echo three >&2; read go; echo two"
        reader, writer = os.pipe()
        with drop_in.Popen[bytes](
            ["sh", "-c", script], stdin=reader, stdout=PIPE, stderr=PIPE
        ) as child:
            with pytest.raises(drop_in.TimeoutExpired) as caught:
                child.communicate(timeout=0.3)
            assert (caught.value.output, caught.value.stderr) == (b"one\n", b"three\n")
            os.write(writer, b"\n")
            assert child.communicate() == (b"one\ntwo\n", b"three\n")
        os.close(reader)
        os.close(writer)

    def test_it_goes_on_after_an_interrupt(self) -> None:
        command = ["sh", "-c", "echo one; sleep 1; echo two"]
        with drop_in.Popen[bytes](command, stdout=PIPE, stderr=PIPE) as child:
            with interrupted_after(0.3):
                child.communicate()
            assert child.communicate() == (b"one\ntwo\n", b"")

    def test_text(self) -> None:
        command = ["sh", "-c", "printf 'a\\r\\nb'; cat"]
        done = drop_in.run(command, input="\u00e4\n", capture_output=True, text=True, check=True)
        assert done.stdout == "a\nb\u00e4\n"
