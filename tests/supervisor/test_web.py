"""uvicorn and gunicorn's threads as workers: nobody who is connected loses one request."""

from __future__ import annotations

import base64
import os
import select
import signal
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from services import fetch, load, raw, service, until_last

from pyforkfd.supervisor import asgi, wsgi

ASGI = """
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
WSGI = """
import os, threading, time
from pyforkfd.supervisor import worker

# So that a test can be sure that whatever is done on drain was done.
me = worker.current()
me.on("drain", lambda order: threading.Timer(0.5, me.send, ["still here"]).start())

def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        worker.current().send("slow")
        while not os.path.exists("enough"):
            time.sleep(0.01)
    if environ["PATH_INFO"] == "/back":
        worker.current().send("roll back")
    body = f"{worker.current().generation} {os.getpid()}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
UVICORN = """
function = "pyforkfd.supervisor.asgi:serve"
[components.web.kwargs]
app = "application:app"
access_log = false
log_level = "warning"
timeout_keep_alive = 60
http = "{http}"
loop = "{loop}"
"""
UVICORN_COMMAND = """
command = ["{python}", "-P", "-m", "pyforkfd.supervisor.asgi", "application:app",
  "--no-access-log", "--log-level=warning", "--timeout-keep-alive=60", "--http={http}",
  "--loop={loop}"]
"""
GUNICORN = """
function = "pyforkfd.supervisor.wsgi:serve"
kwargs = {{ app = "application:app", threads = 2, loglevel = "warning", keepalive = 30 }}
"""
GUNICORN_COMMAND = """
command = ["{python}", "-P", "-m", "pyforkfd.supervisor.wsgi", "--threads=2",
  "--log-level=warning", "--keep-alive=30", "application:app"]
"""


@dataclass(frozen=True)
class Kind:
    """Of a worker: its application, and how it is started; "plain" is h11 on asyncio."""

    application: str
    start: str
    http: str = "httptools"
    loop: str = "uvloop"

    def config(self, *, workers: int = 1, top: str = "", more: str = "") -> str:
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
{self.start.format(python=sys.executable, http=self.http, loop=self.loop)}
"""


KINDS = {
    "uvicorn": Kind(ASGI, UVICORN),
    "uvicorn-command": Kind(ASGI, UVICORN_COMMAND),
    "plain": Kind(ASGI, UVICORN, "h11", "asyncio"),
    "plain-command": Kind(ASGI, UVICORN_COMMAND, "h11", "asyncio"),
    "gunicorn": Kind(WSGI, GUNICORN),
    "gunicorn-command": Kind(WSGI, GUNICORN_COMMAND),
}


def workers(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", names, indirect=True)


@pytest.fixture
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    found = KINDS[request.param]
    (tmp_path / "application.py").write_text(found.application)
    return found


@workers(*KINDS)
def test_it_serves_and_leaves(kind: Kind, tmp_path: Path) -> None:
    with service(tmp_path, kind.config()) as running:
        assert running.get().startswith(b"1 ")
        running.stop()
        running.log.wait_for("has left: exit code 0")


@workers("uvicorn", "plain", "gunicorn", "gunicorn-command")
def test_a_kept_connection_is_told_that_it_was_the_last_time(kind: Kind, tmp_path: Path) -> None:
    with service(tmp_path, kind.config()) as running:
        client = running.connect()
        assert fetch(client)[1]
        running.reload()
        running.log.wait_for('message .*"still here"')
        assert until_last(client) == {b"1"}
        running.log.wait_for("worker 1: has left: exit code 0")
        assert running.get().startswith(b"2 ")  # nobody else is there


@workers("uvicorn", "plain", "gunicorn")
def test_silent_connections_are_answered_when_they_speak(kind: Kind, tmp_path: Path) -> None:
    """More of them than gunicorn has threads, before and after a reload."""
    with service(tmp_path, kind.config()) as running:
        silent = [running.connect() for _ in range(5)]
        assert running.get().startswith(b"1 ")  # which came to the listener's queue after them
        running.reload()
        running.log.wait_for('message .*"still here"')
        for client in silent:
            assert until_last(client) == {b"1"}
        running.log.wait_for("worker 1: has left: exit code 0")


@workers("uvicorn", "plain", "gunicorn")
def test_a_request_on_its_way_is_finished(kind: Kind, tmp_path: Path) -> None:
    with service(tmp_path, kind.config()) as running, closing(running.connect()) as client:
        client.request("GET", "/slow")
        running.log.wait_for('message .*"slow"')
        running.reload()
        running.log.wait_for('message .*"still here"')
        (tmp_path / "enough").touch()
        answer = client.getresponse()
        assert answer.read().startswith(b"1 ")
        if not answer.will_close:  # gunicorn decides that before the application is called
            assert until_last(client) == {b"1"}
        running.log.wait_for("worker 1: has left: exit code 0")


@workers("uvicorn", "gunicorn")
def test_who_stays_silent_is_cut_when_patience_ends(kind: Kind, tmp_path: Path) -> None:
    text = kind.config(more='drain_timeout = "500ms"')
    with service(tmp_path, text) as running, raw(running.port) as client:
        running.get()
        running.reload()
        running.log.wait_for("worker 1: not finished in 0.5 s")
        assert client.recv(1) == b""
        running.log.wait_for("worker 1: has left")


@workers("uvicorn", "gunicorn")
def test_paused_it_keeps_who_is_there_and_resumed_it_accepts(kind: Kind, tmp_path: Path) -> None:
    with service(tmp_path, kind.config(top='rollback = "1h"')) as running:
        old = running.connect()
        assert fetch(old)[0].startswith(b"1 ")
        running.reload()
        body, stays = fetch(old)
        assert body.startswith(b"1 ") and stays  # paused, it is not told to leave
        running.get_until(rb"^2 ")
        after = len(running.log)
        running.get("/back")
        running.log.wait_for("generation 1 serves", after=after)
        running.log.wait_for("worker 2: has left: exit code 0", after=after)
        running.get_until(rb"^1 ")
        old.close()


@workers("uvicorn")
def test_websockets_are_told_of_the_restart(kind: Kind, tmp_path: Path) -> None:
    with service(tmp_path, kind.config()) as running, raw(running.port) as client:
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


@workers("uvicorn", "uvicorn-command", "plain", "plain-command")
def test_accepted_sockets_have_tcp_nodelay(kind: Kind, tmp_path: Path) -> None:
    with service(tmp_path, kind.config()) as running:
        found = running.get("/nodelay").split()
        assert found and set(found) == {b"1"}


@workers("uvicorn", "gunicorn")
def test_a_broken_deploy_changes_nothing(kind: Kind, tmp_path: Path) -> None:
    with service(tmp_path, kind.config(workers=2), ready=2) as running:
        application = tmp_path / "application.py"
        application.write_text('raise RuntimeError("a broken deploy")\n')
        os.utime(application, (0, 0))  # its cached code is of a file with the other time
        running.process.send_signal(signal.SIGHUP)
        running.log.wait_for("generation 2 was given up: web: worker")
        assert "a broken deploy" in running.log.text()
        assert running.get().startswith(b"1 ")


@workers("uvicorn", "gunicorn")
def test_no_request_fails_over_reloads_under_load(kind: Kind, tmp_path: Path) -> None:
    with service(tmp_path, kind.config(workers=2), ready=2) as running:
        with load(running.port) as counted:
            for _ in range(3):
                running.reload()
        assert counted["keep_alive"]["failed"] == counted["new"]["failed"] == {}
        assert counted["keep_alive"]["done"] and counted["new"]["done"]


@workers("uvicorn", "gunicorn")
def test_requests_are_counted_so_that_a_worker_is_recycled(kind: Kind, tmp_path: Path) -> None:
    with service(tmp_path, kind.config(more="recycle = { requests = 10, jitter = 0 }")) as running:
        pid = running.get()
        for _ in range(10):
            running.get()
        running.log.wait_for(r"worker 1: to be replaced: \d+ requests")
        running.log.wait_for("worker 1: has left: exit code 0")
        assert running.get() != pid


@workers("uvicorn")
def test_a_supervisor_that_is_killed_leaves_nobody_behind(kind: Kind, tmp_path: Path) -> None:
    with service(tmp_path, kind.config(workers=2), ready=2) as running:
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
def test_options_of_uvicorn_that_the_supervisor_decides(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}: the supervisor decides"):
        asgi.serve("application:app", **{option: 1})


def test_without_a_listener_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    with pytest.raises(ValueError, match="no listener was given"):
        asgi.serve("application:app")


@pytest.mark.parametrize(
    ("option", "why"), [("bind", "the supervisor decides"), ("cakes", "no setting 'cakes'")]
)
def test_options_of_gunicorn_that_cannot_be(
    option: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsgi, "_systemd_listeners", lambda: {"web": None})
    with pytest.raises(ValueError, match=why):
        wsgi.serve("application:app", **{option: "1"})
