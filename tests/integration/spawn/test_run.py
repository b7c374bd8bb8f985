"""run(): output, limits, and that all which was started is gone when time is up."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from leaks import gone

import pyforkfd as ff

# Starts a grandchild that outlives it, tells its pid, and goes on.
FAMILY = "sleep 1000 & echo $!; sleep 1000"


def has_gone(pid: int) -> bool:
    """Nobody's child any more, or a zombie that init has not yet taken."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def told(result: ff.Completed[bytes]) -> int:
    """The pid that FAMILY wrote."""
    assert result.stdout is not None
    return int(result.stdout)


def test_a_program_to_its_end() -> None:
    done = ff.run(["sh", "-c", "cat; echo no >&2; exit 3"], input=b"said", capture=True)
    assert (done.stdout, done.stderr, done.returncode) == (b"said", b"no\n", 3)
    assert not done.status.success
    with pytest.raises(dataclasses.FrozenInstanceError):
        done.stdout = b""  # type: ignore[misc]


def test_text_loses_no_byte() -> None:
    done = ff.run(["cat"], input="ä\udcff", capture=True, text=True)
    assert done.stdout == "ä\udcff"


def test_more_than_pipes_hold() -> None:
    data = os.urandom(3_000_000)
    done = ff.run(["sh", "-c", "tee /dev/stderr"], input=data, capture=True)
    assert done.stdout == done.stderr == data


def test_a_child_that_does_not_want_its_input() -> None:
    assert ff.run(["true"], input=b"x" * 1_000_000).status.success


def test_without_input_it_reads_nothing_and_inherits_the_rest() -> None:
    assert ff.run(["sh", "-c", "read line && exit 1; exit 0"]).status.success
    script = "import pyforkfd as ff; print(ff.run(['echo', 'seen']).stdout)"
    done = ff.run([sys.executable, "-P", "-c", script], capture=True, text=True)
    assert done.stdout == "seen\nNone\n"


def test_a_command_and_what_replaces_its_options(tmp_path: Path) -> None:
    command = ff.Command(["sh", "-c", "pwd; echo no >&2"], cwd="/", fds={2: ff.STDOUT})
    assert ff.run(command, capture=True).stdout == b"/\nno\n"
    assert ff.run(command, capture=True, cwd=tmp_path).stdout == os.fsencode(tmp_path) + b"\nno\n"
    assert ff.run(command, fds={1: ff.PIPE, 2: ff.DEVNULL}).stdout == b"/\n"


def test_check() -> None:
    with pytest.raises(ff.ExitError, match="run sh: exit code 3") as caught:
        ff.run(["sh", "-c", "echo said; exit 3"], check=True, capture=True)
    assert caught.value.result.stdout == b"said\n"
    assert caught.value.result.returncode == 3
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.result.stdout) == (str(caught.value), b"said\n")


class TestTimeout:
    def test_it_kills_the_whole_group(self) -> None:
        with pytest.raises(TimeoutError, match=r"not ended after 0\.3 s") as caught:
            ff.run(["sh", "-c", FAMILY], capture=True, timeout=0.3)
        assert isinstance(caught.value, ff.RunTimeoutError)
        assert caught.value.errno is None
        result = caught.value.result
        assert result.status.signal == signal.SIGKILL
        assert gone(lambda: has_gone(told(result)))

    def test_a_session_too(self) -> None:
        with pytest.raises(ff.RunTimeoutError) as caught:
            ff.run(["sh", "-c", FAMILY], capture=True, timeout=0.3, new_session=True)
        assert gone(lambda: has_gone(told(caught.value.result)))

    def test_one_that_has_ended_and_left_others_that_hold_its_output(self) -> None:
        with pytest.raises(ff.RunTimeoutError) as caught:
            ff.run(["sh", "-c", "sleep 1000 & echo $!"], capture=True, timeout=0.3)
        assert gone(lambda: has_gone(told(caught.value.result)))

    def test_nothing_escapes_from_a_cgroup_of_its_own(self, cgroup: Path) -> None:
        if not (cgroup / "cgroup.kill").exists():
            pytest.skip("no cgroup.kill (Linux 5.14)")
        script = "setsid sleep 1000 & echo $!; sleep 1000"
        with pytest.raises(ff.RunTimeoutError) as caught:
            ff.run(["sh", "-c", script], capture=True, timeout=0.3, cgroup=cgroup)
        assert gone(lambda: has_gone(told(caught.value.result)))
        assert gone(lambda: "populated 0" in (cgroup / "cgroup.events").read_text())

    def test_a_cgroup_with_others_in_it_is_not_killed(self, cgroup: Path) -> None:
        with ff.spawn(["sleep", "1000"], cgroup=cgroup) as other:
            with pytest.raises(ff.RunTimeoutError):
                ff.run(["sleep", "1000"], timeout=0.05, cgroup=cgroup)
            assert other.poll() is None
            other.kill()

    def test_zero_and_enough(self) -> None:
        with pytest.raises(ff.RunTimeoutError):
            ff.run(["sleep", "1000"], timeout=0)
        assert ff.run(["echo", "x"], capture=True, timeout=60).stdout == b"x\n"


def test_a_timeout_ends_output_that_never_pauses() -> None:
    with pytest.raises(ff.RunTimeoutError) as caught:
        ff.run(["yes"], capture=True, timeout=0.02)
    assert caught.value.result.status.signal == signal.SIGKILL


def test_input_that_blocks_while_output_waits() -> None:
    data = os.urandom(1_000_000)
    done = ff.run(["sh", "-c", "head -c 300000 /dev/zero; cat"], input=data, capture=True)
    assert done.stdout == b"\0" * 300_000 + data


@pytest.mark.parametrize("size", [1, 4096, 4097, 65536, 65537])
def test_sizes_around_those_of_a_pipe(size: int) -> None:
    data = os.urandom(size)
    assert ff.run(["cat"], input=data, capture=True).stdout == data
    with pytest.raises(ff.OutputLimitError) as caught:
        ff.run(["cat"], input=data, capture=True, max_output=size - 1)
    assert caught.value.result.stdout == data[:-1]


class TestOutputLimit:
    def test_it_kills_and_keeps_what_is_within(self) -> None:
        with pytest.raises(ff.OutputLimitError, match="more than 10 bytes") as caught:
            ff.run(["yes"], capture=True, max_output=10)
        assert caught.value.result.stdout == b"y\n" * 5
        assert caught.value.result.status.signal == signal.SIGKILL

    def test_exactly_as_much_is_well(self) -> None:
        assert ff.run(["echo", "123"], capture=True, max_output=4).stdout == b"123\n"

    def test_both_outputs_count(self) -> None:
        with pytest.raises(ff.OutputLimitError) as caught:
            ff.run(["sh", "-c", "echo 1234; echo 567 >&2"], capture=True, max_output=8)
        result = caught.value.result
        assert len((result.stdout or b"") + (result.stderr or b"")) == 8


def test_ctrl_c_kills_the_group(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    os.mkfifo(told)
    script = f"sleep 1000 & echo $! > {told}; wait"

    def interrupt() -> None:
        tmp_path.joinpath("seen").write_text(told.read_text())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    # A shell has it ignored in what it starts in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ff.run(["sh", "-c", script])
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert gone(lambda: has_gone(int((tmp_path / "seen").read_text())))


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": b"", "fds": {0: ff.DEVNULL}},
        {"fds": {5: ff.PIPE}},
        {"fds": {1: ff.PIPE_TO_CHILD}},
        {"command": ff.Command(["true"], process_group=1)},
    ],
    ids=str,
)
def test_what_makes_no_sense(wrong: dict[str, Any]) -> None:
    command = wrong.pop("command", ["true"])
    with pytest.raises(ValueError, match=r"^(input|fds|process_group): .*run"):
        ff.run(command, **wrong)


def test_what_cannot_be_started() -> None:
    with pytest.raises(ff.SpawnError) as caught:
        ff.run(["true"], cgroup="/proc", input=b"", capture=True)
    assert caught.value.stage == "cgroup"


def test_the_end_of_stderr_is_a_note_of_the_error() -> None:
    script = "for i in $(seq 50); do echo line $i >&2; done; printf '\\377'>&2; exit 3"
    for text in (False, True):
        script = script.replace("printf '\\377'>&2; ", "") if text else script
        with pytest.raises(ff.ExitError) as caught:
            ff.run(["sh", "-c", script], capture=True, check=True, text=text)
        (note,) = caught.value.__notes__
        assert note.startswith("the end of its stderr:\n") and "line 50" in note
        assert len(note.splitlines()) == 11
        assert pickle.loads(pickle.dumps(caught.value)).__notes__ == [note]
    with pytest.raises(ff.ExitError) as caught:
        ff.run(["false"], capture=True, check=True)
    assert not hasattr(caught.value, "__notes__")
