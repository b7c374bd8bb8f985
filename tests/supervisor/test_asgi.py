"""uvicorn as a worker: nobody who is connected loses a request to a reload."""

from __future__ import annotations

import base64
import os
import select
import signal
import sys
from pathlib import Path

import pytest
from services import ask, load, raw, service, until_last

from pyforkfd.supervisor import asgi

APPLICATION = """
import asyncio, os, socket
from pyforkfd.supervisor import worker

# So that a test can be sure that whatever is done on drain was done.
me = worker.current()
told = lambda order: asyncio.get_running_loop().call_later(0.5, me.send, "still here")
me.on("drain", told)

async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    if scope["path"] == "/slow":
        worker.current().send("slow")
        while not os.path.exists("enough"):
            await asyncio.sleep(0.01)
    if scope["path"] == "/back":
        worker.current().send("roll back")
    body = f"{worker.current().generation} {os.getpid()}".encode()
    if scope["path"] == "/nodelay":
        body = b" ".join(nodelay())
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

def nodelay():
    for number in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(number))) as found:
                found.getpeername()
                if found.family == socket.AF_INET:
                    yield b"%d" % found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        except OSError:
            pass
"""
FUNCTION = """
function = "pyforkfd.supervisor.asgi:serve"
[components.web.kwargs]
app = "application:app"
access_log = false
log_level = "warning"
http = "{http}"
loop = "{loop}"
"""
COMMAND = """
command = ["{python}", "-P", "-m", "pyforkfd.supervisor.asgi", "application:app",
  "--no-access-log", "--log-level=warning", "--http={http}", "--loop={loop}"]
"""
FAST = {"http": "httptools", "loop": "uvloop"}
PLAIN = {"http": "h11", "loop": "asyncio"}


def config(
    start: str = FUNCTION, *, workers: int = 1, top: str = "", more: str = "", stack: str = "fast"
) -> str:
    kind = FAST if stack == "fast" else PLAIN
    return f"""
name = "test"
{top}
[listeners.web]
address = "systemd:web"
[components.web]
workers = {workers}
listen = ["web"]
stdout = "inherit"
stderr = "inherit"
{more}
{start.format(python=sys.executable, **kind)}
"""


@pytest.fixture(params=["fast", "plain"])
def stack(request: pytest.FixtureRequest) -> str:
    """httptools on uvloop, h11 on asyncio."""
    kind: str = request.param
    return kind


@pytest.fixture(autouse=True)
def application(tmp_path: Path) -> Path:
    path = tmp_path / "application.py"
    path.write_text(APPLICATION)
    return path


@pytest.mark.parametrize("start", [FUNCTION, COMMAND], ids=["function", "command"])
def test_it_serves_and_leaves(start: str, stack: str, tmp_path: Path) -> None:
    with service(tmp_path, config(start, stack=stack)) as running:
        assert running.get().startswith(b"1 ")
        running.stop()
        running.log.wait_for("has left: exit code 0")


def test_a_kept_connection_is_told_that_it_was_the_last_time(stack: str, tmp_path: Path) -> None:
    with service(tmp_path, config(stack=stack)) as running:
        client = running.connect()
        assert ask(client)[1]
        running.reload()
        running.log.wait_for('message .*"still here"')
        assert until_last(client) == {b"1"}
        running.log.wait_for("worker 1: has left: exit code 0")
        assert running.get().startswith(b"2 ")  # nobody else is there


def test_a_silent_connection_is_answered_when_it_speaks(stack: str, tmp_path: Path) -> None:
    with service(tmp_path, config(stack=stack)) as running:
        client = running.connect()
        assert running.get().startswith(b"1 ")  # which came to the listener's queue after it
        running.reload()
        running.log.wait_for('message .*"still here"')
        assert until_last(client) == {b"1"}
        running.log.wait_for("worker 1: has left: exit code 0")


def test_a_request_on_its_way_is_finished(stack: str, tmp_path: Path) -> None:
    with service(tmp_path, config(stack=stack)) as running, raw(running.port) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        running.log.wait_for('message .*"slow"')
        running.reload()
        (tmp_path / "enough").touch()
        with client.makefile("rb") as answer:
            assert b"\r\n\r\n1 " in answer.read()
        running.log.wait_for("worker 1: has left: exit code 0")


def test_who_stays_silent_is_cut_when_patience_ends(tmp_path: Path) -> None:
    text = config(more='drain_timeout = "500ms"')
    with service(tmp_path, text) as running, raw(running.port) as client:
        running.get()
        running.reload()
        running.log.wait_for("worker 1: not finished in 0.5 s")
        assert client.recv(1) == b""
        running.log.wait_for("worker 1: has left")


def test_paused_it_keeps_who_is_there_and_resumed_it_accepts(tmp_path: Path) -> None:
    with service(tmp_path, config(top='rollback = "1h"')) as running:
        old = running.connect()
        assert ask(old)[0].startswith(b"1 ")
        running.reload()
        body, stays = ask(old)
        assert body.startswith(b"1 ") and stays  # paused, it is not told to leave
        running.get_until(rb"^2 ")
        after = len(running.log)
        running.get("/back")
        running.log.wait_for("generation 1 serves", after=after)
        running.log.wait_for("worker 2: has left: exit code 0", after=after)
        running.get_until(rb"^1 ")
        old.close()


def test_websockets_are_told_of_the_restart(tmp_path: Path) -> None:
    with service(tmp_path, config()) as running, raw(running.port) as client:
        key = base64.b64encode(os.urandom(16)).decode()
        client.sendall(
            f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        with client.makefile("rb") as stream:
            assert stream.readline().startswith(b"HTTP/1.1 101")
            while stream.readline().strip():
                pass
            running.reload()
            frame = stream.read(4)
        assert frame[0] == 0x88 and int.from_bytes(frame[2:4], "big") == 1012  # RFC 6455, 5.5.1
        running.log.wait_for("worker 1: has left: exit code 0")


@pytest.mark.parametrize("start", [FUNCTION, COMMAND], ids=["function", "command"])
def test_accepted_sockets_have_tcp_nodelay(start: str, stack: str, tmp_path: Path) -> None:
    with service(tmp_path, config(start, stack=stack)) as running:
        found = running.get("/nodelay").split()
        assert found and set(found) == {b"1"}


def test_a_broken_deploy_changes_nothing(application: Path, tmp_path: Path) -> None:
    with service(tmp_path, config(workers=2), ready=2) as running:
        application.write_text('raise RuntimeError("a broken deploy")\n')
        os.utime(application, (0, 0))  # its cached code is of a file with the other time
        running.process.send_signal(signal.SIGHUP)
        running.log.wait_for("generation 2 was given up: web: worker")
        assert "a broken deploy" in running.log.text()
        assert running.get().startswith(b"1 ")


def test_no_request_fails_over_reloads_under_load(tmp_path: Path) -> None:
    with service(tmp_path, config(workers=2), ready=2) as running:
        with load(running.port) as counted:
            for _ in range(3):
                running.reload()
        assert counted["kept"]["failed"] == counted["new"]["failed"] == {}
        assert counted["kept"]["done"] and counted["new"]["done"]


def test_requests_are_counted_so_that_a_worker_is_recycled(tmp_path: Path) -> None:
    with service(tmp_path, config(more="recycle = { requests = 10, jitter = 0 }")) as running:
        pid = running.get()
        for _ in range(10):
            running.get()
        running.log.wait_for(r"worker 1: to be replaced: \d+ requests")
        running.log.wait_for("worker 1: has left: exit code 0")
        assert running.get() != pid


def test_a_supervisor_that_is_killed_leaves_nobody_behind(tmp_path: Path) -> None:
    with service(tmp_path, config(workers=2), ready=2) as running:
        pids = {int(running.get().split()[1]) for _ in range(20)}
        watched = [os.pidfd_open(pid) for pid in pids]
        running.process.kill()
        running.process.wait()
        try:
            for fd in watched:
                assert ended(fd)
        finally:
            for fd in watched:
                os.close(fd)


def ended(fd: int) -> bool:

    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(10_000))


@pytest.mark.parametrize("option", ["port", "workers", "uds", "limit_max_requests"])
def test_what_the_supervisor_decides_is_no_option(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}: the supervisor decides"):
        asgi.serve("application:app", **{option: 1})


def test_without_a_listener_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    with pytest.raises(ValueError, match="no listener was given"):
        asgi.serve("application:app")
