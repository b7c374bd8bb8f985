"""libforkfd_preload.so in programs of others: leaks are logged and stopped, all else works."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from children import needs_root
from leaks import gone as reached
from places import ROOT
from preloaded import Preloaded, compile_leak
from sandbox import CLOSE_RANGE, refuse
from tools import NATIVE_TOOLS, tool

import pyforkfd as ff

PRELOAD = ROOT / "csrc" / "preload"
PR_SET_CHILD_SUBREAPER = 36
MISSING = 77  # this libc has no such function

# How a child comes to be and executes, where 7 is inherited by accident.
LEAKS = """by_fork by_execv by_execvp by_execvpe by_execl by_execlp by_execle by_search by_twice
by__Fork by_vfork by_clone_vfork by_clone by_raw by_posix_spawn by_posix_spawnp by_forkpty by_daemon
in_place in_place_after_failure by_fexecve by_execveat by_pidfd_spawn""".split()


# --- every way to start a program ------------------------------------------------------------


def without(leak: Path, way: str) -> list[str]:
    """What the command has open without the library: the leak that is to be stopped."""
    done = subprocess.run([leak, way, leak, "show"], capture_output=True, text=True, check=False)
    if done.returncode == MISSING:
        pytest.skip(f"this libc has no {way.removeprefix('by_')}")
    assert done.returncode == 0, done
    return done.stdout.split()


@pytest.mark.parametrize("way", LEAKS)
def test_a_leak_is_stopped_and_logged(way: str, leak: Path, preloaded: Preloaded) -> None:
    assert without(leak, way) == ["7"]
    assert preloaded.output(leak, way, leak, "show").split() == []
    command = "a descriptor's program" if way in ("by_fexecve", "by_execveat") else str(leak)
    assert preloaded.logged() == [(7, "/dev/null", command)]


@pytest.mark.parametrize("way", ["by_system", "by_popen"])
def test_shells_that_libc_starts(way: str, leak: Path, preloaded: Preloaded) -> None:
    assert without(leak, way) == ["7"]
    assert preloaded.output(leak, way, leak, "show").split() == []
    assert preloaded.logged() == [(7, "/dev/null", f"sh -c {leak} show && true")]


@pytest.mark.parametrize("way", LEAKS)
def test_what_is_kept_passes(way: str, leak: Path, preloaded: Preloaded) -> None:
    without(leak, way)
    assert preloaded.output(leak, way, leak, "show", settings={"FORKFD_KEEP": "3,7"}).split() == [
        "7"
    ]
    assert preloaded.logged() == []


@pytest.mark.parametrize("way", LEAKS)
def test_a_leak_is_logged_and_let_through(way: str, leak: Path, preloaded: Preloaded) -> None:
    without(leak, way)
    assert preloaded.output(
        leak, way, leak, "show", settings={"FORKFD_CLOSE_OTHERS": "0"}
    ).split() == ["7"]
    assert [number for number, _, _ in preloaded.logged()] == [7]
    assert " leaked to " in preloaded.log.read_text()


@pytest.mark.parametrize("way", ["by_fork_pass", "by_vfork_pass", "by_fork_vfork_pass"])
def test_what_the_child_makes_inheritable_is_meant(
    way: str, leak: Path, preloaded: Preloaded
) -> None:
    assert preloaded.output(leak, way, leak, "show").split() == ["7", "9"]
    assert preloaded.logged() == []


def test_what_the_child_opens_is_meant(leak: Path, preloaded: Preloaded) -> None:
    with_leak = without(leak, "by_fork_open")
    assert preloaded.output(leak, "by_fork_open", leak, "show").split() == sorted(
        set(with_leak) - {"7"}
    )


def test_file_actions_are_meant(leak: Path, preloaded: Preloaded) -> None:
    assert preloaded.output(leak, "by_posix_spawn_pass", leak, "show").split() == ["7", "9"]
    assert "unless its file actions" in preloaded.log.read_text()  # they cannot be read


def test_a_start_that_fails_is_no_leak(leak: Path, preloaded: Preloaded) -> None:
    said = preloaded.output(leak, "by_posix_spawn_failed", leak, "show")
    assert said == os.strerror(errno.ENOENT) + "\n"
    assert preloaded.logged() == []


def test_vfork_is_still_vfork(leak: Path, preloaded: Preloaded) -> None:
    """The child writes to its parent's memory, and marks no descriptor of its parent's."""
    assert preloaded.output(leak, "by_vfork_memory", leak, "show") == "1 0\n"


@needs_root
def test_a_vfork_that_fails(leak: Path, preloaded: Preloaded) -> None:
    said = preloaded.output(leak, "by_vfork_failed", leak, "show")
    assert said == f"-1 {os.strerror(errno.EAGAIN)}\n"


def test_threads_that_vfork_at_once(leak: Path, preloaded: Preloaded) -> None:
    preloaded.output(leak, "by_many_threads", leak, "show")
    assert preloaded.logged() == [(7, "/dev/null", "/bin/true")] * 4000  # no line is torn


@pytest.mark.parametrize("way", ["by_fork", "by_vfork", "by_posix_spawn", "in_place"])
def test_without_close_range(way: str, leak: Path, preloaded: Preloaded) -> None:
    with ff.spawn(
        [leak, way, leak, "show"],
        fds={1: ff.PIPE},
        env=preloaded.environment(),
        seccomp=refuse([CLOSE_RANGE], errno.ENOSYS),
        no_new_privs=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.read().split() == []
    assert preloaded.logged() == [(7, "/dev/null", str(leak))]


@needs_root
@pytest.mark.parametrize("way", ["by_fork", "by_vfork", "by_posix_spawn", "in_place"])
def test_without_proc(way: str, leak: Path, preloaded: Preloaded) -> None:
    script = f"mount -t tmpfs none /proc && exec {leak} {way} {leak} show"
    # Alone: a sanitizer wants /proc.
    env = {**preloaded.environment(), "LD_PRELOAD": str(preloaded.library)}
    with ff.spawn(["sh", "-c", script], fds={1: ff.PIPE}, env=env, namespaces={"mnt"}) as child:
        assert child.stdout is not None
        assert child.stdout.read().split() == []
    assert child.status is not None
    if child.status.code == 32:
        pytest.skip("nothing may be mounted here")
    assert child.status.success, child.status
    assert f": descriptor 7 would have leaked to {leak}; to pass it" in preloaded.log.read_text()


def test_a_log_that_nobody_reads(leak: Path, preloaded: Preloaded) -> None:
    """Neither a pipe without reader nor a FIFO without one disturbs the program."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        fds = {5: writer}
        args: list[str | Path] = [leak, "by_fork", leak, "show"]
        assert preloaded.output(*args, fds=fds, settings={"FORKFD_LOG": "5"}).split() == ["5"]
    finally:
        os.close(writer)
    os.mkfifo(preloaded.log)
    assert preloaded.output(*args).split() == []


# --- what is announced to the next program ---------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "passes"),
    [
        ("LISTEN_FDS", "5", True),  # LISTEN_PID is to come
        ("LISTEN_FDS", "4", False),
        ("NGINX", "6;7;", True),
        ("NGINX", "77;", False),
        ("GUNICORN_FD", "6,7", True),
        ("WAYLAND_SOCKET", "7", True),
        ("MAKEFLAGS", " -j2 --jobserver-auth=6,7 --", True),
        ("MAKEFLAGS", " -j7 --jobserver-auth=fifo:/tmp/7", False),
        ("OTHER", "7", False),
        ("MINE", "a=5;b=7", True),
    ],
)
@pytest.mark.parametrize("way", ["by_fork", "by_vfork", "by_posix_spawn", "in_place"])
def test_variables(
    way: str, variable: str, value: str, passes: bool, leak: Path, preloaded: Preloaded
) -> None:
    settings = {"FORKFD_KEEP": "MINE", variable: value}
    seen = preloaded.output(leak, way, leak, "show", settings=settings).split()
    assert seen == (["7"] if passes else [])
    assert len(preloaded.logged()) == (not passes)


def test_a_listener_of_another_process(leak: Path, preloaded: Preloaded) -> None:
    settings = {"LISTEN_FDS": "5", "LISTEN_PID": "1"}
    assert preloaded.output(leak, "by_fork", leak, "show", settings=settings).split() == []


@pytest.mark.parametrize(("way", "passes"), [("in_place", True), ("by_posix_spawn", False)])
def test_a_listener_of_this_process(
    way: str, passes: bool, leak: Path, preloaded: Preloaded
) -> None:
    """LISTEN_PID cannot be the pid of a process that is yet to come."""
    script = f"LISTEN_FDS=5 LISTEN_PID=$$ exec {leak} {way} {leak} show"
    assert preloaded.output("sh", "-c", script).split() == ["7"] * passes


# --- shells ----------------------------------------------------------------------------------

SHELL = """
: given by who started the shell
LEAK show
: redirections of a command, a subshell and the shell
LEAK show 9</etc/passwd
(exec LEAK show 8</etc/passwd)
exec 6</etc/passwd; LEAK show; exec 6<&-
read -r line <&7; echo ${line%%:*}
{ echo three >&5; } 5>&1
LEAK show 5>&1 >/dev/null; { LEAK show >&5; } 5>&1
: pipelines and here-documents
echo four | cat | cat
cat 5<<END <&5
five
END
: a lock that another program takes
( flock -n 9 && echo locked ) 9>LOCK
"""
BASH = """
cat <(echo one) <(echo two)
coproc cat; echo six >&${COPROC[1]}; read -r line <&${COPROC[0]}; echo $line
exec {number}</etc/passwd; LEAK show >/dev/null
through() { cat "$1"; }; through <(echo seven)
"""


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_shells(
    shell: str, leak: Path, preloaded: Preloaded, shared_path: Path, inherited: int
) -> None:
    text = SHELL + (BASH if shell == "bash" else "") + "true\n"
    script = shared_path / "script"
    script.write_text(text.replace("LEAK", str(leak)).replace("LOCK", str(shared_path / "lock")))
    args: list[str | Path] = [tool(shell, shell), script]
    with ff.spawn(args, fds={1: ff.PIPE, 7: inherited}) as child:
        assert child.stdout is not None
        plain = child.stdout.read().decode().splitlines()
    os.lseek(inherited, 0, os.SEEK_SET)  # shared, like all of an open file
    seen = preloaded.output(*args, fds={7: inherited}).splitlines()
    assert plain[:4] == ["7 ", "7 9 ", "7 8 ", "6 7 "]
    assert seen == [re.sub(r"\b7 ", "", line) for line in plain]
    assert "locked" in seen and "root" in seen and ("seven" in seen) == (shell == "bash")
    logged = preloaded.logged()
    assert logged[0] == (7, "/etc/passwd", str(leak))
    assert {number for number, _, _ in logged} == {7}


def test_a_script_that_is_given_a_process_substitution(
    leak: Path, preloaded: Preloaded, shared_path: Path
) -> None:
    """It passes the name on to a child, which the descriptor must follow."""
    script = shared_path / "script"
    script.write_text('cat "$1"; true\n')
    command = f"{tool('bash', 'bash')} {script} <(echo one); true"
    assert preloaded.output(tool("bash", "bash"), "-c", command) == "one\n"


def test_in_place(leak: Path, preloaded: Preloaded) -> None:
    """Who executes another program in its own place passes what it was given."""
    assert preloaded.output("sh", "-c", f"exec {leak} show 5</etc/passwd") == "5 \n"
    assert preloaded.output("env", leak, "show", fds={5: ff.DEVNULL}) == "5 \n"
    assert preloaded.logged() == []
    args: list[str | Path] = [leak, "in_place_after_spawn", leak, "show"]
    assert preloaded.output(*args, fds={5: ff.DEVNULL}) == "5 \n"
    commands = [(number, command) for number, _, command in preloaded.logged()]
    assert commands == [(5, "/bin/true"), (7, "/bin/true"), (7, str(leak))]


def test_make_and_its_jobserver(tmp_path: Path, preloaded: Preloaded) -> None:
    make = tool("make", "make")
    (tmp_path / "Makefile").write_text("all:\n\t+@$(MAKE) -f inner\n")
    (tmp_path / "inner").write_text("all: a b\na b:\n\t@echo $@\n")
    said = preloaded.output(make, "-s", "-C", tmp_path, "-j2", fds={2: ff.STDOUT})
    assert sorted(said.split()) == ["a", "b"]  # and no word of a jobserver that is gone


# --- CPython ---------------------------------------------------------------------------------

CPYTHON = """
import multiprocessing, os, subprocess, sys

def show(**options):
    done = subprocess.run([LEAK, "show"], stdout=subprocess.PIPE, check=True, **options)
    print(done.stdout.decode().split())

if __name__ == "__main__":
    LEAK = sys.argv[1]
    fd = os.open("/etc/passwd", os.O_RDONLY)
    os.dup2(fd, 20, inheritable=True)
    os.close(fd)
    show(close_fds=False)
    show()
    show(pass_fds=[20])
    show(pass_fds=[20], preexec_fn=int)
    show(close_fds=False, cwd="/")
    for method in "spawn", "forkserver", "fork":
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(pool.map(abs, [-1, -2]))
    sys.stdout.flush()
    os.spawnv(os.P_WAIT, LEAK, [LEAK, "show"])
"""


def test_cpython(tmp_path: Path, leak: Path, preloaded: Preloaded) -> None:
    script = tmp_path / "script.py"
    script.write_text(CPYTHON)
    args: list[str | Path] = [sys.executable, script, leak]
    plain = subprocess.run(args, capture_output=True, text=True, check=True).stdout
    seen = preloaded.output(*args)
    pools = ["[1, 2]"] * 3
    assert plain.splitlines() == ["['20']", "[]", "['20']", "['20']", "['20']", *pools, "20 "]
    assert seen.splitlines() == ["[]", "[]", "['20']", "['20']", "[]", *pools, ""]
    lines = preloaded.log.read_text().splitlines()
    to_us = [
        line for line in lines if f"descriptor 20 (/etc/passwd) would have leaked to {leak}" in line
    ]
    sure = [line for line in to_us if "unless" not in line]
    # By vfork, or in newer ones by posix_spawn, which may also close all: show() itself.
    assert len(sure) >= 2 and len(to_us) - len(sure) <= 2 and 3 <= len(to_us) <= 4


# --- node ------------------------------------------------------------------------------------

NODE = """
const { spawnSync, spawn, fork, execSync } = require("node:child_process");
const leak = process.argv[2];
console.log(spawnSync(leak, ["show"]).stdout.toString().trim());
console.log(spawnSync("cat", { input: "through a pipe" }).stdout.toString());
console.log(execSync("echo from a shell").toString().trim());
console.log(spawnSync("sh", ["-c", "echo extra >&4; true"],
                      { stdio: [0, 1, 2, "pipe", "pipe"] }).output[4].toString().trim());
console.log(spawnSync(leak, ["show"],
                      { stdio: [0, "pipe", 2, 40] }).stdout.toString().trim());
const child = fork(process.argv[3]);
child.on("message", (text) => { console.log(text); child.disconnect(); });
"""


# node marks what it is given itself, up to the first gap above 16.
def test_node(tmp_path: Path, leak: Path, preloaded: Preloaded, inherited: int) -> None:
    node = tool("node", "nodejs")
    (tmp_path / "parent.js").write_text(NODE)
    (tmp_path / "child.js").write_text('process.send("a message");')
    args: list[str | Path] = [node, tmp_path / "parent.js", leak, tmp_path / "child.js"]
    lines = preloaded.output(*args, fds={40: inherited}).splitlines()
    assert lines == ["", "through a pipe", "from a shell", "extra", "3", "a message"]
    logged = preloaded.logged()
    assert logged[0] == (40, "/etc/passwd", str(leak))
    assert {number for number, _, _ in logged} == {40}


# --- nginx -----------------------------------------------------------------------------------

NGINX = """
pid {folder}/pid;
error_log {folder}/error notice;
worker_processes 2;
user root;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    server {{ listen 127.0.0.1:{port}; location / {{ return 200 "{said}"; }} }}
}}
"""


def get(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with client.makefile("rb") as answer:
            return answer.read().decode().rpartition("\r\n\r\n")[2]


def open_files(pid: int) -> list[str]:
    return [row.target for row in ff.fd_table(pid).values()]


@needs_root
def test_nginx(shared_path: Path, preloaded: Preloaded, inherited: int) -> None:
    """It starts, serves, reloads, and hands its listener to a new binary; 9 stays behind."""
    nginx = shutil.which("nginx", path="/usr/sbin:/sbin") or tool("nginx", "nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config, pidfile = shared_path / "config", shared_path / "pid"

    def write_config(said: str) -> None:
        config.write_text(NGINX.format(folder=shared_path, port=port, said=said))

    write_config("one")
    # Masters leave who has started them, and come to us.
    adopt = ctypes.CDLL(None).prctl
    adopt(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    masters: list[int] = []
    try:
        with ff.spawn(
            [nginx, "-c", config, "-e", shared_path / "error"],
            fds={9: inherited},
            env=preloaded.environment(),
        ) as starter:
            assert starter.wait(timeout=30).success
        masters.append(int(pidfile.read_text()))
        assert get(port) == "one"
        write_config("two")
        os.kill(masters[0], signal.SIGHUP)
        assert reached(lambda: get(port) == "two")
        assert preloaded.logged() == []  # nobody has executed anything
        assert "/etc/passwd" in open_files(masters[0])

        os.kill(masters[0], signal.SIGUSR2)
        assert reached(lambda: (shared_path / "pid.oldbin").exists() and pidfile.exists())
        assert reached(lambda: bool(pidfile.read_text()))
        masters.append(int(pidfile.read_text()))
        os.kill(masters[0], signal.SIGQUIT)
        os.waitpid(masters.pop(0), 0)
        assert get(port) == "two"
        assert "/etc/passwd" not in open_files(masters[0])
        assert preloaded.logged() == [(9, "/etc/passwd", nginx)]
    finally:
        for master in masters:
            os.kill(master, signal.SIGKILL if len(masters) > 1 else signal.SIGTERM)
            os.waitpid(master, 0)
        adopt(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


# --- other C libraries and processors --------------------------------------------------------


@pytest.mark.parametrize("kind", ["musl", "aarch64"])
def test_other_platforms(kind: str, leak: Path, tmp_path: Path) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("built on x86-64")
    if kind == "musl":
        compiler = tool("musl-gcc", "musl-tools", NATIVE_TOOLS)
        start: list[str | Path] = []
    else:
        compiler = tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu", NATIVE_TOOLS)
        start = [tool("qemu-aarch64", "qemu-user", NATIVE_TOOLS), "-L", "/usr/aarch64-linux-gnu"]
    library, program = tmp_path / "preload.so", tmp_path / "leak"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden"]
    sources = sorted(PRELOAD.glob("*.c"))
    command: list[str | Path] = [compiler, *flags, "-shared", "-Wl,-z,now,-z,defs", "-o", library]
    subprocess.run([*command, *sources, "-ldl"], check=True)
    compile_leak(program, compiler)
    ran = 0
    ways = {*LEAKS, "by_vfork_pass"}
    if kind == "aarch64":  # what it executes is this machine's own
        ways = ways - {"by_execveat"} | {"by_system", "by_popen"}  # the emulator has no execveat
    for way in sorted(ways):
        log = tmp_path / way
        args: list[str | Path] = [program, way, program]
        env = {"LD_PRELOAD": str(library), "FORKFD_LOG": str(log)}
        if start:
            settings = ["-E", f"LD_PRELOAD={library}", "-E", f"FORKFD_LOG={log}"]
            args, env = [*start, *settings, program, way, leak], dict(os.environ)
        done = subprocess.run([*args, "show"], env=env, capture_output=True, text=True, check=False)
        if done.returncode == MISSING:
            continue
        assert done.returncode == 0, (way, done)
        if way == "by_vfork_pass":
            assert done.stdout.split() == ["7", "9"]
            continue
        assert done.stdout.split() == [], way
        assert log.read_text().count(": descriptor 7 (/dev/null) would") == 1, way
        ran += 1
    assert ran >= len(LEAKS) - 3
