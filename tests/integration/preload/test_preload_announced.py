"""Descriptors whose numbers the next program is told pass; other numbers mean nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from preloaded import Preloaded
from tools import tool

import pyforkfd as ff

WAYS = ["by_fork", "by_vfork", "by_posix_spawn", "in_place"]


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        (["--status-fd", "7"], True),  # gpg(1), dpkg(1)
        (["--status-fd=7"], True),
        (["--fd", "7"], True),  # uvicorn
        (["-displayfd", "7"], True),  # Xserver(1)
        (["--fds=6,7"], True),
        (["-o", "APT::Status-Fd=7"], True),  # apt(8)
        (["-oAPT::Keep-Fds::=7"], True),
        (["-netdev", "tap,id=net0,fd=7,vhostfd=6"], True),  # qemu(1)
        (["-netdev", "tap,fds=5:6:7"], True),
        (["--bind", "fd://7"], True),  # gunicorn, hypercorn
        (["-pass", "fd:7"], True),  # openssl(1)
        (["bind", "fd@7"], True),  # haproxy
        (["FD:7,nonblock", "-"], True),  # socat(1)
        (["--print-address", "7"], True),  # dbus-daemon(1)
        (["--file=/dev/fd/7"], True),
        (["/proc/self/fd/7/x"], True),
        (["/proc/thread-self/fd/7"], True),
        (["--jobserver-auth=6,7"], True),
        (["-c", "gpg --batch --status-fd 7 --verify x"], True),
        (["-c", "echo done >&7"], True),
        (["-c", "read line <&7; x"], True),
        (["-c", "gpg --status-fd '7'"], True),
        (["7"], False),
        (["-n", "7"], False),
        (["--status-fd", "77"], False),
        (["--status-fd", "-1", "7"], False),
        (["--status-fd", "x7"], False),
        (["--status-fd=7th"], False),
        (["--status-fd", "6", "7"], False),
        (["--status-fd"], False),
        (["status-fd", "7"], False),
        (["--fdisk", "7"], False),
        (["--fdisk=7"], False),
        (["52:54:00:fd:7:1"], False),  # an Ethernet address
        (["fd:7:1::2"], False),  # an IPv6 address
        (["/dev/fd/77", "/dev/fd/x", "/proc/77/fd/7"], False),
        (["LISTEN_FDS=7"], False),
        (["--fd=99999999999999999999997"], False),
        (["-c", "exec 7>&-"], False),
    ],
)
def test_arguments(words: list[str], passes: bool, leak: Path, preloaded: Preloaded) -> None:
    for way in WAYS:
        args: list[str | Path] = [leak, way, leak, "show", *words]
        assert preloaded.output(*args).split() == ["7"] * passes, way
    assert len(preloaded.logged()) == (0 if passes else len(WAYS))


@pytest.mark.parametrize(
    ("variable", "value", "passes"),
    [
        ("CARGO_MAKEFLAGS", "-j --jobserver-fds=6,7 --jobserver-auth=6,7", True),
        ("MFLAGS", "- --jobserver-auth=7,6", True),
        ("FPM_SOCKETS", "127.0.0.1:9000=6,/run/php.sock=7", True),
        ("FPM_SOCKETS_1", "[::1]:9000=7,", True),
        ("FPM_SOCKETS", "127.0.0.7:7=6,", False),
        ("PUMA_INHERIT_0", "7:tcp://0.0.0.0:9292", True),
        ("PUMA_INHERIT_0", "5:tcp://0.0.0.7:7", False),
        ("SERVER_STARTER_PORT", "80=5;127.0.0.1:81=7", True),
        ("SERVER_STARTER_PORT", "7=5;127.0.0.7:7=6", False),
        ("UNICORN_FD", "6,7", True),
        ("EINHORN_FDS", "6 7", True),
        ("EINHORN_FD_0", "7", True),
        ("APT_HOOK_INFO_FD", "7", True),
        ("_FUSE_COMMFD", "7", True),
        ("LISTEN_FDS_OF_MINE", "7", False),
        ("LOG_FILE", "/dev/fd/7", True),
        ("LOG_FILE", "/proc/self/fd/7", True),
        ("BIND", "fd://7", True),
        ("GPG_OPTIONS", "--batch --status-fd 7", True),
        ("FD_OF_MINE", "7", False),
        ("SHLVL", "7", False),
        ("PUMA_INHERIT", "7", False),
    ],
)
def test_variables(
    variable: str, value: str, passes: bool, leak: Path, preloaded: Preloaded
) -> None:
    for way in WAYS:
        args: list[str | Path] = [leak, way, leak, "show"]
        seen = preloaded.output(*args, settings={variable: value}).split()
        assert seen == ["7"] * passes, way


def test_the_log_says_how_to_pass_it(leak: Path, preloaded: Preloaded) -> None:
    """In the line's end, which even a very long command does not cut off."""
    target = "/" * 900 + str(leak)
    assert preloaded.output(leak, "by_fork", target, "show").split() == []
    (line,) = preloaded.log.read_text().splitlines()
    assert len(line) < 1024
    advice = line.partition("; to pass it on: ")[2]
    assert advice == "--keep 7, or FORKFD_KEEP=7"
    settings = {"FORKFD_KEEP": advice.partition("FORKFD_KEEP=")[2]}
    assert preloaded.output(leak, "by_fork", target, "show", settings=settings).split() == ["7"]


MANY = """
import os, sys, time
number = int(sys.argv[2])
for fd in range(3, number):
    os.dup2(0, fd)  # inheritable
words = ["x"] * 100_000 + ["--status-fd", "7"]
began = time.monotonic()
if os.fork() == 0:
    os.execv(sys.argv[1], [sys.argv[1], "show", *words])
os.wait()
print(time.monotonic() - began)
"""


def test_the_time_is_that_of_the_arguments(leak: Path, preloaded: Preloaded) -> None:
    """100,000 words are read once, not for each of 1,000 descriptors."""

    def measure(descriptors: int) -> tuple[str, float]:
        args: list[str | Path] = [sys.executable, "-c", MANY, leak, str(descriptors)]
        shown, took = preloaded.output(*args, settings={"FORKFD_LOG": ""}).splitlines()
        return shown.strip(), float(took)

    shown, few = min(measure(8) for _ in range(3))
    assert shown == "7"
    shown, many = min(measure(1000) for _ in range(3))
    assert shown == "7"
    assert many < 2 * few + 0.1, (few, many)  # it would be a second and more


# --- programs of others ----------------------------------------------------------------------

GPG = """
import os, sys
os.environ["GNUPGHOME"] = sys.argv[1]
def read(start):
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    start(str(writer))
    os.close(writer)
    print(os.read(reader, 99).decode().split()[1])
def execute(number):
    if os.fork() == 0:
        os.execlp("gpg", "gpg", "--status-fd", number, "--verify", "/etc/hostname")
    os.wait()
read(execute)
read(lambda number: os.system(f"gpg --batch --status-fd {number} --verify /etc/hostname"))
"""


def test_gpg(shared_path: Path, preloaded: Preloaded) -> None:
    tool("gpg", "gpg")
    home = shared_path / "home"
    home.mkdir(mode=0o700)
    args: list[str | Path] = [sys.executable, "-c", GPG, home]
    assert preloaded.output(*args, fds={2: ff.DEVNULL}).split() == ["NODATA", "NODATA"]


DPKG = """
import os
reader, writer = os.pipe()
os.set_inheritable(writer, True)
if os.fork() == 0:
    os.execlp("dpkg", "dpkg", "--status-fd", str(writer), "--simulate", "--configure", "dpkg")
os.close(writer)
print(os.read(reader, 999).decode())
os.wait()
"""


def test_dpkg(preloaded: Preloaded) -> None:
    if not shutil.which("dpkg"):
        pytest.skip("this is no Debian")
    args: list[str | Path] = [sys.executable, "-c", DPKG]
    assert "status: dpkg : error : " in preloaded.output(*args, fds={2: ff.DEVNULL})


def test_cargo(tmp_path: Path, preloaded: Preloaded) -> None:
    """A shell script stands between cargo and rustc, and has been given the jobserver."""
    cargo = tool("cargo", "cargo")
    wrapper = tmp_path / "wrapper"
    wrapper.write_text('#!/bin/sh\n"$@"\n')
    wrapper.chmod(0o755)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "lib.rs").touch()
    (tmp_path / "Cargo.toml").write_text('[package]\nname = "case"\nversion = "0.1.0"\n')
    settings = {"RUSTC_WRAPPER": str(wrapper), "CARGO_TARGET_DIR": str(tmp_path / "target")}
    manifest = tmp_path / "Cargo.toml"
    command: list[str | Path] = [cargo, "build", "--offline", "--manifest-path", manifest]
    env = preloaded.environment(**settings)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "jobserver" not in done.stderr
