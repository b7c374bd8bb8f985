"""What is executed, as what, where, and with which environment."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import REPORT, Children, environment, raw

import pyforkfd as ff


def say(path: Path, word: str, mode: int = 0o755) -> Path:
    """A script that says a word."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {word}\n")
    path.chmod(mode)
    return path


@pytest.fixture
def look_fd(look: Path) -> Iterator[int]:
    fd = os.open(look, os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_arguments_of_every_kind(children: Children, look: Path) -> None:
    odd = b"\xff\xfe not utf-8"
    seen = children.look_as(
        [look, str(REPORT), b"bytes", Path("/a/path"), os.fsdecode(odd), "", "a b\n'\""]
    )
    assert [raw(arg) for arg in seen["argv"]] == [
        os.fsencode(look),
        b"%d" % REPORT,
        b"bytes",
        b"/a/path",
        odd,
        b"",
        b"a b\n'\"",
    ]


def test_arguments_are_taken_when_the_command_is_made(children: Children, look: Path) -> None:
    args: list[ff.StrPath] = [look, str(REPORT), "before"]
    command = ff.Command(args, fds={REPORT: ff.PIPE_FROM_CHILD})
    args[2] = "after"
    with command.spawn() as child:
        assert b'"before"' in child.pipes[REPORT].read()
    assert child.args == (look, str(REPORT), "before")


def test_one_command_many_children(children: Children, look: Path) -> None:
    command = ff.Command(["/bin/sh", "-c", "echo $$"], fds={1: ff.PIPE})
    pids = []
    for _ in range(3):
        with command.spawn() as child:
            assert child.stdout is not None
            assert int(child.stdout.read()) == child.pid
            pids.append(child.pid)
    assert len(set(pids)) == 3


@pytest.mark.parametrize("kind", [str, bytes, Path])
def test_executable(children: Children, look: Path, kind: Callable[[Path], ff.StrPath]) -> None:
    executable = kind(look)
    seen = children.look_as(["any name", str(REPORT)], executable=executable)
    assert seen["argv"] == ["any name", str(REPORT)]


def test_argv0(children: Children) -> None:
    assert children.look(argv0="-login")["argv"] == ["-login", str(REPORT)]


def test_executable_by_descriptor(children: Children, look_fd: int) -> None:
    seen = children.look_as(["by descriptor", str(REPORT)], executable=look_fd)
    assert seen["argv"][0] == "by descriptor"
    assert set(seen["fds"]) == {"0", "1", "2"}, "the program's descriptor is gone"


def test_executable_by_file_object(children: Children, look: Path) -> None:
    with open(look, "rb") as file:
        assert children.look_as(["x", str(REPORT)], executable=file)["argv"][0] == "x"


def test_executable_by_path_descriptor(children: Children, look: Path) -> None:
    fd = os.open(look, os.O_PATH | os.O_CLOEXEC)
    try:
        assert children.look_as(["x", str(REPORT)], executable=fd)["argv"][0] == "x"
    finally:
        os.close(fd)


def test_executable_by_descriptor_that_is_also_a_target(children: Children, look: Path) -> None:
    """The map may put something else where the program's descriptor is."""
    with open(look, "rb") as file:
        number = file.fileno()
        seen = children.look_as(["x", str(REPORT)], executable=file, fds={number: ff.DEVNULL})
    assert set(seen["fds"]) == {"0", "1", "2", str(number)}


def test_a_program_that_is_missing(children: Children) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        children.start(["/no/such/program"])
    assert isinstance(caught.value, ff.SpawnError)
    assert (caught.value.stage, caught.value.errno) == ("exec", errno.ENOENT)
    assert str(caught.value) == "spawn /no/such/program: execute: No such file or directory"


def test_search_along_path(children: Children, tmp_path: Path) -> None:
    say(tmp_path / "b" / "tool", "second")
    say(tmp_path / "c" / "tool", "third")
    path = f"{tmp_path}/a:{tmp_path}/b:{tmp_path}/c"
    assert children.output(["tool"], env={"PATH": path}) == b"second\n"


def test_search_uses_the_path_of_the_child(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(tmp_path / "ours" / "tool", "ours")
    say(tmp_path / "childs" / "tool", "childs")
    monkeypatch.setenv("PATH", f"{tmp_path}/ours:{os.environ['PATH']}")
    assert children.output(["tool"]) == b"ours\n"
    assert children.output(["tool"], env={"PATH": f"{tmp_path}/childs"}) == b"childs\n"
    assert children.output(["tool"], env={b"PATH": bytes(tmp_path / "childs")}) == b"childs\n"


def test_search_without_path_uses_the_default(children: Children) -> None:
    assert children.output(["sh", "-c", "echo found"], env={}) == b"found\n"


def test_search_missing_everywhere(children: Children, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^spawn tool: execute: No such file"):
        children.start(["tool"], env={"PATH": f"{tmp_path}/a:{tmp_path}/b"})


def test_search_passes_over_what_may_not_be_executed(children: Children, tmp_path: Path) -> None:
    say(tmp_path / "a" / "tool", "refused", mode=0o644)
    say(tmp_path / "b" / "tool", "found")
    path = f"{tmp_path}/a:{tmp_path}/b"
    assert children.output(["tool"], env={"PATH": path}) == b"found\n"


def test_search_remembers_what_may_not_be_executed(children: Children, tmp_path: Path) -> None:
    """Not "no such file": there is one, and it is refused."""
    say(tmp_path / "a" / "tool", "refused", mode=0o644)
    with pytest.raises(PermissionError) as caught:
        children.start(["tool"], env={"PATH": f"{tmp_path}/a:{tmp_path}/b"})
    assert str(caught.value) == "spawn tool: execute: Permission denied"


def test_search_passes_over_what_is_no_directory(children: Children, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    say(tmp_path / "b" / "tool", "found")
    path = f"{tmp_path}/file:{tmp_path}/b"
    assert children.output(["tool"], env={"PATH": path}) == b"found\n"


def test_search_empty_element_is_the_childs_directory(children: Children, tmp_path: Path) -> None:
    say(tmp_path / "tool", "here")
    assert children.output(["tool"], env={"PATH": "/nowhere:"}, cwd=tmp_path) == b"here\n"


def test_search_stops_at_what_is_no_program(children: Children, tmp_path: Path) -> None:
    """No fall-back to /bin/sh, unlike execvp(3): what is not a program is an error."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tool").write_text("echo run by a shell\n")
    (tmp_path / "a" / "tool").chmod(0o755)
    say(tmp_path / "b" / "tool", "found")
    with pytest.raises(ff.SpawnError) as caught:
        children.start(["tool"], env={"PATH": f"{tmp_path}/a:{tmp_path}/b"})
    assert (caught.value.stage, caught.value.errno) == ("exec", errno.ENOEXEC)


def test_a_slash_means_no_search(children: Children, tmp_path: Path) -> None:
    say(tmp_path / "bin" / "tool", "found")
    assert children.output(["./tool"], cwd=tmp_path / "bin") == b"found\n"
    with pytest.raises(FileNotFoundError):
        children.start(["bin/nothing"], env={"PATH": str(tmp_path)}, cwd=tmp_path)


def test_environment_is_exactly_what_is_said(children: Children) -> None:
    assert children.look(env={"A": "1", "B": "x=y", "EMPTY": ""})["env"] == [
        "A=1",
        "B=x=y",
        "EMPTY=",
    ]
    assert children.look(env={b"A": b"\xff"})["env"] == ["A=\u00ff"]
    assert children.look(env={})["env"] == []


def test_environment_none_is_ours_at_the_call(
    children: Children, look: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ff.Command([look, "1"], fds={1: ff.PIPE})
    monkeypatch.setenv("SET_AFTER_THE_COMMAND_WAS_MADE", "yes")
    with command.spawn() as child:
        assert child.stdout is not None
        assert b'"SET_AFTER_THE_COMMAND_WAS_MADE=yes"' in child.stdout.read()
    monkeypatch.delenv("SET_AFTER_THE_COMMAND_WAS_MADE")
    # C code (readline) may have set variables that os.environ knows nothing of.
    assert environment(children.look()).items() >= os.environ.items()
    assert "SET_AFTER_THE_COMMAND_WAS_MADE" not in environment(children.look())


def test_directory_by_path(children: Children, tmp_path: Path) -> None:
    assert children.look(cwd=tmp_path)["cwd"] == str(tmp_path)
    assert children.look(cwd=bytes(tmp_path))["cwd"] == str(tmp_path)
    assert children.look()["cwd"] == os.getcwd()


def test_directory_by_descriptor(children: Children, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        seen = children.look(cwd=fd)
        assert (seen["cwd"], set(seen["fds"])) == (str(tmp_path), {"0", "1", "2"})
        # The map may put something else where it is.
        assert children.look(cwd=fd, fds={fd: ff.DEVNULL})["cwd"] == str(tmp_path)
    finally:
        os.close(fd)


def test_a_directory_that_is_missing(children: Children, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        children.start(["true"], cwd=tmp_path / "missing")
    assert str(caught.value) == (
        f"spawn true: change directory: {tmp_path}/missing: No such file or directory"
    )


def test_an_interpreter_runs(children: Children) -> None:
    assert children.output([sys.executable, "-I", "-S", "-c", "print(6 * 7)"]) == b"42\n"


@pytest.mark.parametrize("name", ["/nowhere/\udcff", "/nowhere/ä", b"/nowhere/\xff"])
def test_an_error_names_a_program_that_is_no_text(name: str | bytes) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        ff.spawn([name])
    assert os.fsencode(name) in os.fsencode(str(caught.value))
