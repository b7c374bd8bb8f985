"""The examples run as they are, but for the address of their web listener."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from leaks import gone
from places import ROOT
from processes import children
from services import Running, load, service, until_last

EXAMPLES = ROOT / "examples"
ADDRESS = re.compile(r'(\[listeners\.)http(\]\naddress = )"tcp://127\.0\.0\.1:8080"')


@contextmanager
def example(name: str, directory: Path, *, ready: int) -> Iterator[Running]:
    """A copy of it runs; its captured output is inherited, so that it can be looked at."""
    for source in (EXAMPLES / name).iterdir():
        if source.is_file():
            shutil.copy(source, directory)
    text = (directory / "service.toml").read_text()
    assert ADDRESS.search(text)
    text = text.replace("/run/signing.sock", f"{directory}/signing.sock")
    text = ADDRESS.sub(r'\1http\2"systemd:web"', text)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with service(directory, text, ready=ready, env={"PATH": programs}) as running:
        yield running


def sign(running: Running, message: str) -> tuple[str, str]:
    """Have a message signed: (the worker that has the key, the signature)."""
    key, signature = running.get(f"/{message}").decode().split()
    return key, signature


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Running]:
    (tmp_path / "signing.key").write_text("the first key")
    with example("signing", tmp_path, ready=3) as running:
        # Each web worker gets the news of the keys a moment after it is ready.
        assert gone(lambda: all(sign(running, "any")[0] != "local" for _ in range(10)))
        yield running


def signer(running: Running) -> int:
    """The pid of the worker that has the key."""
    (found,) = (
        pid
        for pid in children(running.process.pid)
        if b"FORKFD_WORKER=component=keys " in Path(f"/proc/{pid}/environ").read_bytes()
    )
    return found


def test_a_key_is_replaced_while_it_serves(keys: Running, tmp_path: Path) -> None:
    first = sign(keys, "message")
    assert first[0] != "local" and sign(keys, "message") == first
    (tmp_path / "signing.key").write_text("the second key")
    with load(keys.port) as counted:
        keys.reload()
    while (second := sign(keys, "message")) == first:
        pass  # the signal is sent when the web workers are new
    assert second[0] not in ("local", first[0])
    assert "keys: worker" not in keys.log.text().partition("got SIGHUP")[2]  # it was not replaced
    assert counted["new"]["failed"] == counted["keep_alive"]["failed"] == {}


def test_who_has_lost_the_key_signs_by_itself_until_it_is_back(
    keys: Running, tmp_path: Path
) -> None:
    first = sign(keys, "message")
    (tmp_path / "signing.key").rename(tmp_path / "hidden")
    after = len(keys.log)
    os.kill(signer(keys), signal.SIGKILL)
    keys.log.wait_for(r"keys: worker \d+ died \(signal\)", after=after)
    keys.log.wait_for(r"keys: worker \d+ died \(exit\)", after=after)
    # Web workers get the news a moment later.
    assert gone(lambda: sign(keys, "message")[0] == "local")
    after = len(keys.log)
    (tmp_path / "hidden").rename(tmp_path / "signing.key")
    keys.log.wait_for(r"keys: worker \d+: ready", after=after)
    while (now := sign(keys, "message"))[0] == "local":
        pass  # the web workers get the news a moment later
    assert now == first


def test_the_asgi_service(tmp_path: Path) -> None:
    with example("asgi", tmp_path, ready=4) as running:
        assert b"generation 1" in running.get()
        running.reload()
        running.get_until(rb"generation 2\b")


@pytest.fixture
def program(go: Callable[[Path], Path]) -> Path:
    return go(EXAMPLES / "go" / "worker.go")


def test_the_go_worker_loses_no_request(program: Path, tmp_path: Path) -> None:
    shutil.copy(program, tmp_path)
    with example("go", tmp_path, ready=2) as running:
        client = running.connect()
        with load(running.port) as counted:
            running.reload()
            assert until_last(client) == {b"go"}
        assert counted["new"]["failed"] == counted["keep_alive"]["failed"] == {}
        for worker in (1, 2):
            running.log.wait_for(f"worker {worker}: has left: exit code 0")


def test_the_go_worker_is_replaced_when_it_is_stuck(program: Path, tmp_path: Path) -> None:
    shutil.copy(program, tmp_path)
    with example("go", tmp_path, ready=2) as running:
        client = running.connect()
        client.request("GET", "/block")
        running.log.wait_for(r"no heartbeat for [\d.]+ s: dumping its stack")
        running.log.wait_for(r"main\.\(\*worker\)\.ServeHTTP")  # Go's answer to SIGABRT
        running.log.wait_for(r"died \(stale\)")
        client.close()
        assert running.get().startswith(b"go ")
