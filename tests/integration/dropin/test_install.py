"""Our engine under the standard modules: the same behaviour, and nothing left afterwards."""

from __future__ import annotations

import _posixsubprocess
import itertools
import json
import os
import posix
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from children import needs_root

import pyforkfd as ff
from pyforkfd import _core
from pyforkfd import subprocess as drop_in
from pyforkfd._dropin import _install
from pyforkfd._dropin import _seams as _standard

REPORT = 99
NOBODY = 65534


def seams() -> list[Any]:
    return [
        vars(subprocess.Popen)["_execute_child"],
        _posixsubprocess.fork_exec,
        os.posix_spawn,
        os.posix_spawnp,
        posix.posix_spawn,
        posix.posix_spawnp,
    ]


STOCK = seams()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert all(a is b for a, b in zip(seams(), STOCK, strict=True))
    assert _install._depth == 0


def test_nested_and_gone() -> None:
    with drop_in.installed():
        inside = seams()
        assert not any(a is b for a, b in zip(inside, STOCK, strict=True))
        with drop_in.installed():
            assert seams() == inside
        assert seams() == inside
    with pytest.raises(RuntimeError, match="without install"):
        drop_in.uninstall()


def test_threads_install_and_start_at_once() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                with drop_in.installed(), subprocess.Popen(["true"]) as child:
                    assert child.wait() == 0
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_child_of_fork_may_uninstall() -> None:
    with drop_in.installed():
        pid = os.fork()
        if pid == 0:
            drop_in.uninstall()
            os._exit(int(not all(a is b for a, b in zip(seams(), STOCK, strict=True))))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_another_has_replaced_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = lambda *args: 0  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(posix, "posix_spawnp", theirs)
        with pytest.raises(drop_in.UnknownInterpreterError, match=r"posix\.posix_spawnp is"):
            drop_in.install()
        assert seams()[:5] == STOCK[:5]
    drop_in.install()
    with monkeypatch.context() as patch:
        patch.setattr(_posixsubprocess, "fork_exec", theirs)
        with pytest.raises(drop_in.UnknownInterpreterError, match="fork_exec is"):
            drop_in.uninstall()
        assert posix.posix_spawn is not STOCK[4]
    drop_in.uninstall()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("STOCK_EXECUTE_CHILD", lambda self, args, handles: None, "_execute_child takes"),
        ("STOCK_FORK_EXEC", lambda args, how: 0, "fork_exec takes"),
        ("STOCK_FORK_EXEC", lambda: 0, "fork_exec takes"),
    ],
)
def test_an_unknown_interpreter_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, said: str
) -> None:
    _standard.demand_known.cache_clear()
    monkeypatch.setattr(_standard, name, value)
    with pytest.raises(drop_in.UnknownInterpreterError, match=said):
        drop_in.install()
    with pytest.raises(drop_in.UnknownInterpreterError, match=said):
        drop_in.Popen(["true"])


def test_python_3_14_has_no_allow_vfork(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ", ".join(_standard._FORK_EXEC)
    _standard.demand_known.cache_clear()
    monkeypatch.setattr(_standard, "STOCK_FORK_EXEC", eval(f"lambda {names}: 0"))
    _standard.demand_known()


def test_calls_go_through_us() -> None:
    before = _core.counters()["spawned"]
    with drop_in.installed():
        assert subprocess.run(["true"], check=False).returncode == 0
        assert subprocess.call("exit 3", shell=True) == 3
        with os.popen("echo heard") as heard:
            assert heard.read() == "heard\n"
        pid = os.posix_spawn("/bin/true", ["true"], os.environ)
        assert os.waitpid(pid, 0)[1] == 0
    assert _core.counters()["spawned"] - before == 4
    subprocess.run(["true"], check=True)
    assert _core.counters()["spawned"] - before == 4


def test_multiprocessing_goes_through_us(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, sys\n"
        "from pyforkfd import _core, subprocess\n"
        "if __name__ == '__main__':\n"
        "    subprocess.install()\n"
        "    child = multiprocessing.get_context('spawn').Process(target=os.getpid)\n"
        "    child.start(); child.join()\n"
        "    sys.exit(child.exitcode or _core.counters()['spawned'] < 1)\n"
    )
    assert subprocess.run([sys.executable, "-W", "error", script], check=False).returncode == 0


def test_multiprocessing_hears_of_a_missing_interpreter() -> None:
    """Of which the standard one leaves only a zombie."""
    from multiprocessing.util import spawnv_passfds

    with drop_in.installed(), pytest.raises(FileNotFoundError) as caught:
        spawnv_passfds(b"/nowhere/python", ["python"], [])
    assert isinstance(caught.value.__cause__, ff.SpawnError)


class TestPreexecFn:
    def test_it_runs_with_a_warning_that_names_what_replaces_it(self) -> None:
        before = _core.counters()["spawned"]
        with drop_in.installed(), pytest.warns(drop_in.PreexecFnWarning) as said:
            done = subprocess.run(
                ["sh", "-c", "umask"],
                preexec_fn=lambda: os.umask(0o7) and None,
                stdout=subprocess.PIPE,
                check=True,
            )
        assert done.stdout == b"0007\n"
        assert _core.counters()["spawned"] == before
        assert said[0].filename == __file__
        for option in ("start_new_session", "rlimits", "parent_death_signal", "umask", "chroot"):
            assert option in str(said[0].message)

    def test_it_has_no_options_of_ours(self) -> None:
        with pytest.raises(ValueError, match="preexec_fn"):
            drop_in.Popen(["true"], preexec_fn=os.getpid, nice=3)

    def test_every_option_of_ours_is_named(self) -> None:
        text = _standard.INSTEAD_OF_PREEXEC_FN
        pairs = {"fds", "listen", "parent_death_scope", "uid_map", "gid_map"}
        assert [o for o in drop_in.Options.__annotations__ if o not in text] == [
            o for o in drop_in.Options.__annotations__ if o in pairs
        ]


def test_use_vfork_false_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(subprocess, "_USE_VFORK"):
        pytest.skip("this Python has no subprocess._USE_VFORK (3.14)")
    before = _core.counters()["spawned"]
    monkeypatch.setattr(subprocess, "_USE_VFORK", False)
    with drop_in.installed():
        subprocess.run(["true"], check=True)
    assert _core.counters()["spawned"] == before


def start(program: Path, **options: Any) -> dict[str, Any]:
    """What the child sees, or its error, as subprocess starts it now."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    strict = options.get("close_fds", True)
    os.dup2(writer, REPORT, inheritable=not strict)
    os.close(writer)
    try:
        passed = (REPORT,) if strict else ()
        child = subprocess.Popen([program, str(REPORT)], pass_fds=passed, **options)
    except OSError as error:
        return {"error": (type(error).__mro__[-4:], error.errno, error.filename)}
    finally:
        os.close(REPORT)
        with open(reader, "rb") as file:
            seen = file.read()
    assert child.wait() == 0
    told: dict[str, Any] = json.loads(seen)
    del told["fds"][str(REPORT)]
    told["env"].sort()
    told["ignored"] &= ~(3 << 31)  # libc's own two, which its posix_spawn ignores
    for name in ("pid", "sid", "pgid", "pidfd_inode"):
        told[name] = "its own" if told.get(name) == told["pid"] else None
    return told


def tried() -> int:
    """How many children our engine has started, or tried to."""
    counted = _core.counters()
    return counted["spawned"] + counted["failed"]


def both(program: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    stock = start(program, **options)
    before = tried()
    with drop_in.installed():
        ours = start(program, **options)
    assert tried() == before + (options.get("cwd") != "")
    return stock, ours


def test_every_combination_of_streams(look: Path, other_fd: int) -> None:
    extra = os.memfd_create("extra")
    try:
        files = (None, 0, 1, 2, other_fd, subprocess.DEVNULL)
        for stdin, stdout, stderr in itertools.product(files, (*files, extra), files):
            stock, ours = both(look, stdin=stdin, stdout=stdout, stderr=stderr)
            assert ours == stock, (stdin, stdout, stderr)
    finally:
        os.close(extra)


def test_a_stream_that_exec_closes(look: Path) -> None:
    before = os.get_inheritable(2)
    os.set_inheritable(2, False)
    try:
        stock, ours = both(look)
    finally:
        os.set_inheritable(2, before)
    assert "2" not in ours["fds"]
    assert ours == stock


OPTIONS: dict[str, dict[str, Any]] = {
    "session": {"start_new_session": True},
    "group": {"process_group": 0},
    "umask": {"umask": 0o27},
    "environment": {"env": {"A": "ö", "B": "2"}},
    "directory": {"cwd": "/proc"},
    "no directory": {"cwd": "/nowhere"},
    "empty directory": {"cwd": ""},
    "signals stay": {"restore_signals": False},
    "open": {"close_fds": False, "env": {}},
    "no program": {"executable": "/nowhere/program"},
    "not executable": {"executable": "/etc/passwd"},
    "a directory": {"executable": "/"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_the_standards(look: Path, other_fd: int, name: str) -> None:
    os.set_inheritable(other_fd, True)
    stock, ours = both(look, **OPTIONS[name])
    if name == "empty directory":
        assert ours["error"][1:] == stock["error"][1:] == (2, "")
    assert ours == stock


@needs_root
@pytest.mark.parametrize(
    "options",
    [
        {"user": NOBODY},
        {"group": NOBODY},
        {"extra_groups": [5, 7]},
        {"user": NOBODY, "group": NOBODY, "extra_groups": []},
        {"user": NOBODY, "process_group": 0, "umask": 0o77},
    ],
    ids=str,
)
def test_credentials_are_the_standards(
    look: Path, shared_path: Path, options: dict[str, Any]
) -> None:
    shared_path.chmod(0o700)  # entered before the change of user
    stock, ours = both(look, cwd=shared_path, **options)
    assert "error" not in ours
    assert ours == stock


def test_the_next_directory_of_path_is_tried_whatever_the_error(tmp_path: Path) -> None:
    for folder, text in (("broken", "no program\n"), ("good", "#!/bin/sh\necho found\n")):
        (tmp_path / folder).mkdir()
        program = tmp_path / folder / "tool"
        program.write_text(text)
        program.chmod(0o755)
    env = {"PATH": f"{tmp_path / 'broken'}:{tmp_path / 'good'}:/bin"}
    with drop_in.installed():
        assert subprocess.check_output(["tool"], env=env) == b"found\n"
        (tmp_path / "good" / "tool").unlink()
        with pytest.raises(OSError, match="Exec format error") as caught:
            subprocess.Popen(["tool"], env=env)
    assert isinstance(caught.value.__cause__, ff.SpawnError)
    assert caught.value.__cause__.stage == "exec"
