"""What a Python worker imports, under a supervisor that runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from places import HELPERS
from services import Running, raw, service

import pyforkfd as ff
from pyforkfd.supervisor.control._client import ControlClient
from pyforkfd.supervisor.worker._messages import Ready, Status
from pyforkfd.supervisor.worker._protocol import decode_event

ENV = {"PYTHONPATH": str(HELPERS)}
WAYS = ("poll", "thread", "loop")


def config(way: str, *more: str, extra: str = "") -> str:
    return "\n".join(
        [
            'name = "test"\nrollback = "60s"',
            '[listeners.web]\naddress = "systemd:web"',
            '[components.web]\nfunction = "workers:serve"',
            f'args = ["{way}"]\nlisten = ["web"]\nstderr = "inherit"\nstdout = "inherit"',
            *more,
            extra,
        ]
    )


def who(port: int) -> list[str]:
    with raw(port) as client:
        return client.recv(100).decode().split()


def said(running: Running, order: str, *, after: int = 0, count: int = 1) -> dict[str, object]:
    line = running.log.wait_for(rf'message (\[.*"order": "{order}".*)', after=after, count=count)
    data: dict[str, object] = json.loads(line[1])[2]
    return data


@pytest.mark.parametrize("way", WAYS)
def test_it_serves_is_paused_comes_back_and_drains(way: str, tmp_path: Path) -> None:
    """Pausing is what a reload with a roll back does to the old generation."""
    with service(tmp_path, config(way), env=ENV) as running:
        assert who(running.port)[:3] == ["web", "0", "1"]
        running.reload()
        assert said(running, "pause")["accepting"] is False
        assert who(running.port)[:3] == ["web", "0", "2"]
        running.stop()
        assert said(running, "drain", count=2)["accepting"] is False
        assert running.log.text().count("has left: exit code 0") == 2


@pytest.mark.parametrize(
    "give", ['give = "channel"', 'give = "numbers"\nnumbers = { web = 20 }', 'give = "listen_fds"']
)
def test_listeners_come_whichever_way_they_are_given(give: str, tmp_path: Path) -> None:
    with service(tmp_path, config("poll", give), env=ENV) as running:
        assert who(running.port)[0] == "web"


def test_a_worker_hears_of_other_components(tmp_path: Path) -> None:
    other = '[components.keys]\nfunction = "workers:serve"\nargs = ["poll"]\nstderr = "inherit"'
    other += "\nrestart = { backoff = '2s' }"
    with service(tmp_path, config("thread", extra=other), ready=2, env=ENV) as running:
        running.log.wait_for(r'\["web", .*"component": "keys", "ready": 1')
        born = running.log.wait_for(r'\["keys", \d+, .*"pid": (\d+)')
        after = len(running.log)
        os.kill(int(born[1]), signal.SIGKILL)
        running.log.wait_for(r'\["web", .*"component": "keys", "ready": 0', after=after)
        running.log.wait_for(r'\["web", .*"component": "keys", "ready": 1', after=after)


def test_messages_go_both_ways(tmp_path: Path) -> None:
    code = """
from pyforkfd.supervisor import worker
me = worker.current()
me.on("message", lambda order: me.send(["echo", order.body["data"]["forward"]]))
me.ready()
me.send({"forward": "web"})
while not me.draining:
    me.poll(1.0)
"""
    (tmp_path / "talks.py").write_text(code)
    text = f"""
name = "test"
[components.web]
command = ["{sys.executable}", "{tmp_path}/talks.py"]
stderr = "inherit"
"""
    with service(tmp_path, text) as running:
        running.log.wait_for(r'message \["web", 1, \["echo", "web"\]\]')


LEAVES = """
import os, socket, sys, time
from pyforkfd.supervisor import worker
me = worker.current()
me.ready()
if me.number == 1:
    time.sleep(1.2)  # or it would count as one that does not live long
    if sys.argv[1] == "worker":
        me.stopping()
    elif sys.argv[1] == "channel":
        with socket.socket(fileno=os.dup(me.fileno())) as channel:
            channel.send(b'{"event": "stopping"}')
    else:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto(b"STOPPING=1\\n", os.environ["NOTIFY_SOCKET"])
    while not os.path.exists("enough"):  # its replacement serves meanwhile
        me.poll(0.01)
    sys.exit(int(sys.argv[2]))
while not me.draining:
    me.poll(1.0)
"""


@pytest.mark.parametrize(
    ("how", "code"), [("worker", 0), ("worker", 3), ("channel", 0), ("notify", 0)]
)
def test_one_that_leaves_by_itself_is_replaced_before_its_end(
    how: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "leaves.py").write_text(LEAVES)
    text = f"""
name = "test"
control = {{ path = "{tmp_path}/control" }}
[components.web]
command = ["{sys.executable}", "-P", "{tmp_path}/leaves.py", "{how}", "{code}"]
stdout = "inherit"
stderr = "inherit"
"""
    with service(tmp_path, text) as running, ControlClient(f"{tmp_path}/control") as client:
        running.log.wait_for("web: worker 1: leaves by itself")
        running.log.wait_for("web: worker 2: ready after")
        (web,) = client.request("status")["status"]["components"]
        assert [w["phase"] for w in web["workers"]] == ["draining", "ready"]
        (tmp_path / "enough").touch()
        if code:
            running.log.wait_for(r"worker 1 died \(exit\): exit code 3")
        else:
            running.log.wait_for("worker 1: has left: exit code 0")
            (web,) = client.request("status")["status"]["components"]
            assert web["crashes"] == 0
        running.stop()
        assert running.log.text().count("died") == (code != 0)


def test_a_status_is_shown_the_newest_one(tmp_path: Path) -> None:
    code = """
from pyforkfd.supervisor import worker
me = worker.current()
for number in range(100):
    me.status(f"booting {number}")
me.ready("serving")
me.status("serves, all \u00fc are in memory")
me.send("reported")
for text in ("two\\nlines", "x" * 4001):
    try:
        me.status(text)
    except ValueError as error:
        me.send(str(error)[:30])
while not me.draining:
    me.poll(1.0)
"""
    (tmp_path / "reports.py").write_text(code)
    text = f"""
name = "test"
control = {{ path = "{tmp_path}/control" }}
[components.web]
command = ["{sys.executable}", "-P", "{tmp_path}/reports.py"]
stdout = "inherit"
stderr = "inherit"
"""
    with service(tmp_path, text) as running, ControlClient(f"{tmp_path}/control") as client:
        running.log.wait_for('message .*"reported"')
        running.log.wait_for('message .*"status: line break in')
        running.log.wait_for('message .*"status: 4001 bytes')
        (web,) = client.request("status")["status"]["components"]
        assert web["workers"][0]["status"] == "serves, all \u00fc are in memory"


def test_a_status_with_readiness_goes_one_way_only(tmp_path: Path) -> None:
    """Of two ways one could bring it after a newer one."""
    path = f"{tmp_path}/notify"
    ours, theirs = ff.FdChannel.pair()
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        code = "from pyforkfd.supervisor import worker; worker.current().ready('serves')"
        who = "component=web worker=1 position=0 generation=1 channel=9"
        with ff.spawn(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, "NOTIFY_SOCKET": path, "FORKFD_WORKER": who},
            fds={9: theirs},
        ) as child:
            assert child.wait().code == 0
        for wanted in (Status("serves"), Ready()):
            with ours.recv(timeout=0) as received:
                assert decode_event(received) == wanted
        assert manager.recv(100) == b"WATCHDOG=1"
        assert manager.recv(100) == b"READY=1"


def test_without_a_channel_status_and_stopping_go_to_the_notify_socket(tmp_path: Path) -> None:
    path = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        run(
            """
from pyforkfd.supervisor import worker
me = worker.current()
me.status("boots")
me.stopping()
""",
            FORKFD_WORKER="component=web worker=1 position=0 generation=1",
            NOTIFY_SOCKET=path,
        )
        assert manager.recv(100) == b"STATUS=boots"
        assert manager.recv(100) == b"STOPPING=1"


def test_a_worker_of_another_version_is_named_and_still_leaves_in_good_order(
    tmp_path: Path,
) -> None:
    """Its orders and events are refused; READY=1 and stop_signal are left."""
    code = """
import signal, sys
from pyforkfd.supervisor import worker
from pyforkfd.supervisor.worker import _protocol
me = worker.current()
_protocol.VERSION = 2
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
me.ready()
while True:
    me.poll(1.0)
"""
    (tmp_path / "newer.py").write_text(code)
    text = f"""
name = "test"
[components.web]
command = ["{sys.executable}", "-P", "{tmp_path}/newer.py"]
stdout = "inherit"
stderr = "inherit"
"""
    with service(tmp_path, text) as running:
        running.log.wait_for(
            "web: worker 1: message refused: the other end has version 2 of the protocol, this "
            "end 1: supervisor and worker need the same pyforkfd"
        )
        running.stop()
        running.log.wait_for("worker 1: has left: exit code 0")


def test_a_supervisor_of_another_version_is_named() -> None:
    run(
        """
from pyforkfd.supervisor import log_writer, worker
for call in (worker.current, log_writer):
    try:
        call()
    except ValueError as error:
        assert "FORKFD_WORKER: the other end has version 2" in str(error), error
    else:
        raise SystemExit("no error")
""",
        FORKFD_WORKER="component=web worker=1 position=0 generation=1 version=2 log=1",
    )


def test_an_order_that_does_not_exist_has_no_callback() -> None:
    run(
        """
from pyforkfd.supervisor import worker
try:
    worker.current().on("draim", print)
except ValueError as error:
    assert str(error).startswith("on: no order 'draim' (there are accept, "), error
else:
    raise SystemExit("no error")
""",
        FORKFD_WORKER="component=web worker=1 position=0 generation=1",
    )


def test_a_blocked_loop_is_evicted_and_its_stack_shown(tmp_path: Path) -> None:
    text = """
name = "test"
[components.web]
function = "workers:stuck"
args = ["for ever"]
stderr = "inherit"
heartbeat = { stale_after = "500ms" }
drain_timeout = "500ms"
stop_timeout = "500ms"
"""
    with service(tmp_path, text, env=ENV) as running:
        running.log.wait_for(r"no heartbeat for [\d.]+ s: dumping its stack")
        running.log.wait_for("in blocks_for_ever")
        running.log.wait_for(r"died \(stale\): killed by SIGABRT")


def test_shards_of_a_dead_sibling_are_accepted_from(tmp_path: Path) -> None:
    """Connections that wait in the shard of a worker that is gone are answered by another."""
    text = """
name = "test"
[listeners.web]
address = "tcp://127.0.0.1:0"
shards = true
[components.web]
function = "pyforkfd.supervisor.asgi:serve"
kwargs = { app = "application:app", access_log = false, log_level = "warning" }
workers = 2
listen = ["web"]
stderr = "inherit"
restart = { backoff = "1h", backoff_cap = "1h" }
"""
    (tmp_path / "application.py").write_text(
        """
import os, sys
from pyforkfd.supervisor import worker
me = worker.current()
if me.position == 1 and os.path.exists("gone"):
    sys.exit("does not start again")
print(f"position {me.position} is {os.getpid()}", file=sys.stderr, flush=True)
print("port", me.listeners()["web"].getsockname()[1], file=sys.stderr, flush=True)
async def app(scope, receive, send):
    body = b"%d" % os.getpid()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
    )
    with service(tmp_path, text, ready=2) as running:
        port = int(running.log.wait_for(r"port (\d+)")[1])
        (tmp_path / "gone").touch()
        victim = int(running.log.wait_for(r"position 1 is (\d+)")[1])
        os.kill(victim, signal.SIGKILL)
        running.log.wait_for("does not start again")
        running.log.wait_for(r"worker \d+ died \(exit\)")
        answers = set()
        for _ in range(40):  # the kernel spreads them over both shards
            with raw(port) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                with client.makefile("rb") as answer:
                    answers.add(answer.read().rpartition(b"\r\n")[2])
        assert len(answers) == 1 and b"%d" % victim not in answers


def test_without_a_supervisor_there_is_none() -> None:
    run("from pyforkfd.supervisor import worker\nassert worker.current() is None")


def test_a_program_that_a_worker_starts_is_no_worker() -> None:
    """It inherits FORKFD_WORKER, and none of the descriptors."""
    run(
        "from pyforkfd.supervisor import worker\nassert worker.current() is None",
        FORKFD_WORKER="component=web worker=1 position=0 generation=1 channel=9",
    )


def test_nonsense_in_the_environment_is_said() -> None:
    run(
        """
from pyforkfd.supervisor import worker
try:
    worker.current()
except ValueError as error:
    assert "FORKFD_WORKER='worker=1'" in str(error), error
else:
    raise SystemExit("no error")
""",
        FORKFD_WORKER="worker=1",
    )


def test_importing_it_imports_no_loop_and_no_server() -> None:
    """Beside what pyforkfd itself imports, which has a child watcher for asyncio."""
    run(
        """
import sys
import pyforkfd
before = set(sys.modules)
from pyforkfd.supervisor import worker
new = {name for name in set(sys.modules) - before if not name.startswith("pyforkfd")}
assert not new & {"asyncio", "uvicorn", "gunicorn", "ssl", "http"}, new
"""
    )


def test_a_full_notify_socket_does_not_hold_a_worker_up(tmp_path: Path) -> None:
    """A supervisor that stands still for a while must not stop those that serve."""
    path = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        run(
            """
from pyforkfd.supervisor import worker
me = worker.current()
me.interval = 0.0
for _ in range(2000):
    me.beat()
""",
            FORKFD_WORKER="component=web worker=1 position=0 generation=1",
            NOTIFY_SOCKET=path,
        )
        assert manager.recv(100) == b"WATCHDOG=1"


def run(code: str, **env: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
