"""python -m pyforkfd run: the program gets the library, or is told why it cannot."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from children import needs_root
from tools import NATIVE_TOOLS, tool

import pyforkfd as ff
from pyforkfd._executable import obstacle

RUN = [sys.executable, "-m", "pyforkfd", "run"]
SHOW = ["ls", "/proc/self/fd"]  # in bytewise order, and 3 is its own


def run(
    *args: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *args],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd="/",
    )


def given(fds: Mapping[int, ff.FdSource], *args: str | Path) -> list[str]:
    """What the program has open when `run` has those descriptors."""
    with ff.spawn([*RUN, *args, "--", *SHOW], fds={1: ff.PIPE, **fds}, cwd="/") as child:
        assert child.stdout is not None
        numbers = child.stdout.read().decode().split()
    assert child.status is not None and child.status.success, child.status
    return [number for number in numbers if number not in ("0", "1", "2", "3")]


def test_the_first_program_gets_no_more_than_a_child(tmp_path: Path) -> None:
    log = tmp_path / "log"
    others = {7: ff.DEVNULL, 8: ff.DEVNULL}
    assert given(others, "--close-others", "--log", log, "--keep", "8") == ["8"]
    assert log.read_text().count("descriptor 7 (/dev/null) would have leaked to /") == 1
    assert given(others, "--close-others", "--keep=7", "--keep=8,9") == ["7", "8"]
    assert given(others, "--log", log) == ["7", "8"]
    assert "descriptor 8 (/dev/null) leaked to /" in log.read_text()


def test_a_listener_passes_through() -> None:
    script = "test $LISTEN_PID = $$ && ls -l /proc/$$/fd/3"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with ff.spawn(
            [*RUN, "--close-others", "--", "sh", "-c", script],
            fds={1: ff.PIPE},
            listen={"web": listener},
            cwd="/",
        ) as child:
            assert child.stdout is not None
            assert b"socket:" in child.stdout.read()
        assert child.status is not None and child.status.success


def test_it_becomes_the_program() -> None:
    with ff.spawn(
        [*RUN, "--close-others", "--", "sh", "-c", "echo $$; exit 3"], fds={1: ff.PIPE}, cwd="/"
    ) as child:
        assert child.stdout is not None
        assert int(child.stdout.read()) == child.pid
    assert child.status is not None and child.status.code == 3


def test_nothing_of_python_is_left_in_the_program() -> None:
    env = {"PATH": os.environ["PATH"], "LC_ALL": "", "LANG": "C"}
    said = run(
        "--close-others", "--", "sh", "-c", "env; grep SigIgn /proc/$$/status", env=env
    ).stdout
    names = {line.split("=")[0] for line in said.splitlines() if "=" in line}
    ours = {"LD_PRELOAD", "FORKFD_CLOSE_OTHERS", "FORKFD_KEEP", "FORKFD_LOG"}
    assert names - {"PWD", "_", "OLDPWD", "SHLVL"} == ours | env.keys()
    ignored = int(said.rpartition("SigIgn:")[2], 16)
    assert ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1) == 0


def test_options_of_the_program_are_its_own() -> None:
    assert run("--close-others", "--", "echo", "--log", "--", "-n").stdout == "--log -- -n\n"
    said = run("--close-others", "--", "sh", "-c", 'echo "$@"', "--", "--help", "--").stdout
    assert said == "--help --\n"


def test_other_libraries_stay_and_ours_comes_once() -> None:
    ours = str(ff.preload_library())
    other = os.environ.get("LD_PRELOAD", "").split(":") if os.environ.get("LD_PRELOAD") else []
    env = {**os.environ, "LD_PRELOAD": ":".join([*other, ours])}
    said = run("--close-others", "--", "sh", "-c", "echo $LD_PRELOAD", env=env).stdout
    assert said.split() == [":".join([*other, ours])]


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["--close-others"], 125, "no command"),
        (["--", "true"], 125, "nothing to do"),
        (["--close-others", "--keep", "3;4", "--", "true"], 125, "--keep 3;4: neither"),
        (["--close-others", "--log", "77", "--", "true"], 125, "descriptor 77 is not open"),
        (["--close-others", "--log", "/nowhere/log", "--", "true"], 127, "/nowhere/log: No such"),
        (["--close-others", "--", "no-such-program"], 127, "not found in PATH"),
        (["--close-others", "--", "/nowhere/program"], 127, "/nowhere/program: No such file"),
        (["--close-others", "--force", "--", "/etc/passwd"], 126, "/etc/passwd: Permission denied"),
        (["--close-others", "--", "/etc/passwd"], 125, "is neither ELF nor a script"),
    ],
)
def test_what_cannot_be(args: list[str], code: int, text: str) -> None:
    done = run(*args)
    assert done.returncode == code, done
    assert done.stderr.startswith("pyforkfd run: ") and text in done.stderr
    assert done.stderr.count("\n") == 1 or "--force" in args


@needs_root
def test_root_makes_no_log_where_another_user_decides(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (tmp_path / "secret").write_text("")
    (theirs / "link").symlink_to("../secret")
    os.chown(theirs, 65534, 65534)
    for name in ("link", "new"):
        done = run("--log", theirs / name, "--", "true")
        assert done.returncode == 125, done
        assert f"--log {theirs / name}: {theirs}: this directory is user nobody's" in done.stderr
    assert [path.name for path in theirs.iterdir()] == ["link"]


@needs_root
def test_root_makes_no_log_in_another_users_fifo(shared_path: Path) -> None:
    shared_path.chmod(0o1777)
    os.mkfifo(shared_path / "log")
    os.chown(shared_path / "log", 65534, 65534)
    done = run("--log", shared_path / "log", "--", "true")
    assert done.returncode == 126 and "log: is no regular file" in done.stderr, done
    (shared_path / "log").unlink()
    assert run("--log", shared_path / "log", "--", "true").returncode == 0
    assert (shared_path / "log").stat().st_uid == 0


@pytest.mark.parametrize("log", ["/dev/stderr", "/dev/null"])
def test_a_device_is_a_log(log: str) -> None:
    done = run("--log", log, "--", "true")
    assert (done.returncode, done.stderr) == (0, ""), done


def test_a_terminal_obeys_no_argument() -> None:
    done = run("--close-others", "--", "\x1b]0;title\x07")
    assert done.returncode == 127
    assert done.stderr == "pyforkfd run: \\x1b]0;title\\x07: not found in PATH\n"


def refused(program: Path, text: str) -> None:
    """It is refused with that text, and with --force started and warned of."""
    done = run("--close-others", "--", program)
    assert (done.returncode, done.stdout) == (125, ""), done
    assert text in done.stderr and "--force" in done.stderr
    forced = run("--close-others", "--force", "--", program)
    assert text in forced.stderr, forced


@pytest.fixture
def hello(shared_path: Path) -> Path:
    """A dynamically linked program of our own."""
    source = shared_path / "hello.c"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(["cc", "-o", shared_path / "hello", source], check=True)
    return shared_path / "hello"


def test_a_program_that_can_be_watched(hello: Path) -> None:
    """The control of what follows."""
    done = run("--close-others", "--", hello)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_static_program(look: Path, shared_path: Path) -> None:
    refused(look, f"{look} is statically linked")
    script = shared_path / "script"
    script.write_text(f"#! {look} 1\n")
    script.chmod(0o755)
    refused(script, f"{script} is a script of {look}, which is statically linked")


def test_scripts_without_end(shared_path: Path) -> None:
    script = shared_path / "script"
    script.write_text(f"#!{script}\n")
    script.chmod(0o755)
    assert "too many interpreters" in run("--close-others", "--", script).stderr


@needs_root
def test_a_program_of_other_credentials(hello: Path) -> None:
    if os.statvfs(hello).f_flag & os.ST_NOSUID:
        pytest.skip("set-user-ID programs have no effect here")
    os.chown(hello, 12345, 12345)
    hello.chmod(0o4755)
    refused(hello, "is set-user-ID: the loader ignores LD_PRELOAD")
    hello.chmod(0o2755)
    refused(hello, "is set-group-ID")
    hello.chmod(0o2745)  # mandatory locking, as it once was
    assert run("--close-others", "--", hello).returncode == 0
    os.chown(hello, 0, 0)
    hello.chmod(0o6755)
    assert run("--close-others", "--", hello).returncode == 0  # ours already


@needs_root
def test_a_program_with_capabilities(hello: Path) -> None:
    # vfs_cap_data, version 2: CAP_NET_BIND_SERVICE permitted and effective.
    os.setxattr(hello, "security.capability", bytes.fromhex("0100000200040000" + "0" * 24))
    assert obstacle(str(hello), ff.preload_library()) is None  # root is no less for it
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(12345, 12345, 12345)
            os.write(writer, (obstacle(str(hello), ff.preload_library()) or "").encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as said:
        assert "has file capabilities" in said.read()
    os.waitpid(pid, 0)


def test_a_program_of_another_kind(hello: Path, shared_path: Path) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("built on x86-64")
    source, other = shared_path / "hello.c", shared_path / "other"
    subprocess.run([tool("musl-gcc", "musl-tools", NATIVE_TOOLS), "-o", other, source], check=True)
    refused(other, "is of another C library (/lib/ld-musl")
    compiler = tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu", NATIVE_TOOLS)
    subprocess.run([compiler, "-o", other, source], check=True)
    refused(other, "is of another architecture than libforkfd_preload.so")


def test_a_place_that_cannot_be_named(shared_path: Path) -> None:
    place = shared_path / "a b"
    package = Path(ff.__file__).parent
    shutil.copytree(package, place / "pyforkfd")
    done = run("--close-others", "--", "true", env={**os.environ, "PYTHONPATH": str(place)})
    assert done.returncode == 125 and "space or a colon" in done.stderr
