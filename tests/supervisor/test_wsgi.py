"""gunicorn's threads as a worker: nobody who is connected loses a request to a reload."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from services import ask, load, raw, service, until_last

from pyforkfd.supervisor import wsgi

APPLICATION = """
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
FUNCTION = """
function = "pyforkfd.supervisor.wsgi:serve"
kwargs = {{ app = "application:app", threads = 2, loglevel = "warning", keepalive = 30 }}
"""
COMMAND = """
command = ["{python}", "-P", "-m", "pyforkfd.supervisor.wsgi", "--threads=2",
  "--log-level=warning", "--keep-alive=30", "application:app"]
"""
STARTS = pytest.mark.parametrize("start", [FUNCTION, COMMAND], ids=["function", "command"])


def config(start: str = FUNCTION, *, workers: int = 1, top: str = "", more: str = "") -> str:
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
{start.format(python=sys.executable)}
"""


@pytest.fixture(autouse=True)
def application(tmp_path: Path) -> Path:
    path = tmp_path / "application.py"
    path.write_text(APPLICATION)
    return path


@STARTS
def test_it_serves_and_leaves(start: str, tmp_path: Path) -> None:
    with service(tmp_path, config(start)) as running:
        assert running.get().startswith(b"1 ")
        running.stop()
        running.log.wait_for("has left: exit code 0")


@STARTS
def test_a_kept_connection_is_told_that_it_was_the_last_time(start: str, tmp_path: Path) -> None:
    with service(tmp_path, config(start)) as running:
        client = running.connect()
        assert ask(client)[1]
        running.reload()
        running.log.wait_for('message .*"still here"')
        assert until_last(client) == {b"1"}
        running.log.wait_for("worker 1: has left: exit code 0")
        assert running.get().startswith(b"2 ")  # nobody else is there


def test_silent_connections_take_no_thread_and_are_answered(tmp_path: Path) -> None:
    """More of them than there are threads, before and after a reload."""
    with service(tmp_path, config()) as running:
        silent = [running.connect() for _ in range(5)]
        assert running.get().startswith(b"1 ")
        running.reload()
        running.log.wait_for('message .*"still here"')
        for client in silent:
            assert until_last(client) == {b"1"}
        running.log.wait_for("worker 1: has left: exit code 0")


def test_a_request_on_its_way_is_finished(tmp_path: Path) -> None:
    with service(tmp_path, config()) as running, raw(running.port) as client:
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
        running.log.wait_for("worker 1: has left: exit code 0")


def test_paused_it_keeps_who_is_there_and_resumed_it_accepts(tmp_path: Path) -> None:
    with service(tmp_path, config(top='rollback = "1h"')) as running:
        old = running.connect()
        assert ask(old)[0].startswith(b"1 ")
        running.reload()
        body, stays = ask(old)
        assert body.startswith(b"1 ") and stays
        running.get_until(rb"^2 ")
        after = len(running.log)
        running.get("/back")
        running.log.wait_for("generation 1 serves", after=after)
        running.log.wait_for("worker 2: has left: exit code 0", after=after)
        running.get_until(rb"^1 ")
        old.close()


def test_requests_are_counted_so_that_a_worker_is_recycled(tmp_path: Path) -> None:
    with service(tmp_path, config(more="recycle = { requests = 10, jitter = 0 }")) as running:
        pid = running.get()
        for _ in range(10):
            running.get()
        running.log.wait_for(r"worker 1: to be replaced: \d+ requests")
        running.log.wait_for("worker 1: has left: exit code 0")
        assert running.get() != pid


def test_a_broken_deploy_changes_nothing(application: Path, tmp_path: Path) -> None:
    with service(tmp_path, config()) as running:
        application.write_text('raise RuntimeError("a broken deploy")\n')
        os.utime(application, (0, 0))
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


@pytest.mark.parametrize(
    ("option", "why"), [("bind", "the supervisor decides"), ("cakes", "no setting 'cakes'")]
)
def test_options_that_cannot_be(option: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi, "_systemd_listeners", lambda: {"web": None})
    with pytest.raises(ValueError, match=why):
        wsgi.serve("application:app", **{option: "1"})
