"""A reload, a request and a signal cannot hurt: the answer may be no, and the workers go on."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from services import PATIENCE, free_port
from services import Service as Process
from supervised import SERVER, Supervised, fetch, toml

import pyforkfd as ff
from pyforkfd.supervisor._reactor import Reactor
from pyforkfd.supervisor.control._client import ControlClient
from pyforkfd.supervisor.control._messages import ControlError
from pyforkfd.supervisor.processes._sockets import Sockets
from pyforkfd.supervisor.spec._spec import Listener


class Guarded:
    """A service whose workers, descriptors and answers must stay as they are."""

    def __init__(self, service: Supervised, port: int) -> None:
        self.service, self.port = service, port
        self.before = min((self.state() for _ in range(5)), key=lambda state: len(state[1]))

    def state(self) -> tuple[list[int], list[str]]:
        pids = [worker["pid"] for worker in self.service.workers()]
        folder = Path(f"/proc/{self.service.process.pid}/fd")
        found = []
        for fd in folder.iterdir():
            try:
                found.append(os.readlink(fd).partition(":")[0])
            except FileNotFoundError:  # the client's, which has closed
                continue
        return pids, sorted(found)

    def check(self) -> None:
        assert fetch(("127.0.0.1", self.port)).startswith("one ")
        end = time.monotonic() + PATIENCE
        while (state := self.state()) != self.before:  # the end of our last client is not read yet
            assert time.monotonic() < end, (state, self.before)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service:
        service.until("^ready: web 2/2")
        yield Guarded(service, port)


def put(path: Path, text: str | bytes) -> None:
    path.unlink()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def test_whatever_is_in_place_of_the_file_is_refused(guarded: Guarded) -> None:
    service, config = guarded.service, guarded.service.config
    port = guarded.port
    with socket.create_server(("127.0.0.1", 0)) as other:
        good, bad = free_port(), other.getsockname()[1]
        listeners = (
            f"[listeners.a]\naddress = 'tcp://127.0.0.1:{good}'\n"
            f"[listeners.b]\naddress = 'tcp://127.0.0.1:{bad}'\n"
        )
        two = toml(port).replace('["http"]', '["http", "a", "b"]')
        cases: dict[str, tuple[Any, str]] = {
            "nested": ("x = " + "[" * 5000 + "]" * 5000 + toml(port), "nested too deeply"),
            "digits": (toml(port, more=f"nice = {'9' * 5000}"), "a number cannot be read"),
            "hexadecimal": (toml(port, more="nice = 0x" + "f" * 5000), "more than 64 bits"),
            "workers": (toml(port).replace("workers = 2", "workers = 1_000_000_000"), "range"),
            "duration": (toml(port, more="stop_timeout = 1e300"), "range"),
            "a taken port": (toml(bad), "Address already in use"),
            "one of two": (two + listeners, "Address already in use"),
            "not text": (b"\xff", "not UTF-8"),
            "a null byte": (b"\0", "Invalid"),
            "empty": ("", "there is none, and so nothing to run"),
            "too long": ("#" * 300_000, "has more than"),
            "a pipe": (fifo, "is a pipe"),
            "a directory": (directory, "is a directory"),
            "a device": (device, "is a character device"),
            "nothing": (Path.unlink, "No such file"),
        }
        for name, (content, why) in cases.items():
            if callable(content):
                content(config)
            else:
                put(config, content)
            with service.client() as client:
                try:
                    client.request("reload")
                except ControlError as error:
                    assert why in str(error), name
                else:
                    pytest.fail(f"{name}: not refused")
            service.process.send_signal(signal.SIGHUP)
            service.log.wait_for("got SIGHUP")
            guarded.check()
            if config.is_dir():
                config.rmdir()
            else:
                config.unlink(missing_ok=True)
            config.write_text("")
        with socket.create_server(("127.0.0.1", good)):
            pass  # it was closed
    config.write_text(toml(port))
    assert service.command("reload").returncode == 0


REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "scale": ({"do": "scale", "component": "web", "count": 10**9}, "out of range"),
    "scale beyond integers": (
        {"do": "scale", "component": "web", "count": 10**3000},
        "out of range",
    ),
    "scale below": ({"do": "scale", "component": "web", "count": -1}, "out of range"),
    "scale nothing": ({"do": "scale", "component": "w" * 5000, "count": 1}, "no component"),
    "scale by a share": ({"do": "scale", "component": "web", "count": 1e300}, "not of type"),
    "lines": ({"do": "logs", "lines": -(10**30)}, "negative"),
    "restart": ({"do": "restart", "worker": 10**30}, "no worker"),
    "signal": ({"do": "signal", "component": "web", "signal": 10**30}, "no signal"),
    "reload": ({"do": "reload", "components": ["x" * 5000]}, "no component"),
    "rollback": ({"do": "rollback"}, "no generation is paused"),
    "nothing": ({"do": "x" * 5000}, "there is no request"),
    "a table": ({"do": {}}, "not of type"),
    "version": ({"v": 10**3000}, "not supported"),
}


def test_absurd_requests_are_refused(guarded: Guarded) -> None:
    for name, (body, why) in REQUESTS.items():
        assert why in request(guarded, json.dumps({"v": 1, **body}).encode()), name
        guarded.check()
    for text in (b"[" * 16_000, b'{"v": 1, "x": ' + b"[" * 15_000, b"9" * 16_000, b"\xff", b"null"):
        assert request(guarded, text)
        guarded.check()
    with guarded.service.client() as client:  # more than there is, which is no fault
        assert client.request("logs", lines=10**30)["ok"]


def request(guarded: Guarded, data: bytes) -> str:
    with ff.FdChannel.connect(str(guarded.service.control)) as channel:
        channel.send(data)
        with channel.recv(timeout=60) as message:
            return str(json.loads(message.data)["error"])


def test_signals_with_a_bad_file(guarded: Guarded) -> None:
    put(guarded.service.config, "x = " + "[" * 5000)
    for signum, line in {
        signal.SIGHUP: "reload: .*nested",
        signal.SIGUSR1: "got SIGUSR1",
        signal.SIGUSR2: "the new program cannot take over",
    }.items():
        guarded.service.process.send_signal(signum)
        guarded.service.log.wait_for(line)
        guarded.check()


KEYS = st.sampled_from(
    ["workers", "nice", "stop_timeout", "listen", "env", "restart", "heartbeat", "recycle", "args"]
)
VALUES = st.sampled_from(
    [
        "-1",
        "10_000_000_000",
        "1e300",
        "inf",
        "nan",
        '""',
        "[]",
        "{}",
        "true",
        "9" * 5000,
        "0x" + "f" * 5000,
    ]
) | st.integers(2**20, 2**70).map(str)


def test_random_reloads(guarded: Guarded) -> None:
    service, port = guarded.service, guarded.port

    @settings(
        max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
    )
    @given(KEYS, VALUES)
    def reload(key: str, value: str) -> None:
        text = toml(port).replace("workers = 2\n", "" if key == "workers" else "workers = 2\n")
        text = text.replace('listen = ["http"]\n', "" if key == "listen" else 'listen = ["http"]\n')
        put(service.config, f"{text}\n{key} = {value}\n")
        done = service.command("reload")
        if done.returncode:  # else it was a right value, and the service is another
            assert done.stderr.startswith("pyforkfd reload: "), done.stderr
            assert fetch(("127.0.0.1", port)).startswith("one ")
        with service.client() as client:
            assert client.request("status")["status"]["condition"] == "ready"

    reload()
    assert "Traceback" not in service.log.text()


# Exceptions of our own

PROGRAM = f"""
import os, sys, time
from pyforkfd.supervisor import Component, Listener, Service, Supervisor, Control

mode = "good"

class Faulty(Component):
    # As a bug in the state machine would be: what it reads of a component raises.
    def __getattribute__(self, name):
        where = sys._getframe(1).f_globals["__name__"]
        if name == "workers" and where == "pyforkfd.supervisor.state._changes":
            raise ZeroDivisionError("a bug in a step")
        return object.__getattribute__(self, name)

class Unpicklable:
    def __reduce__(self):
        raise ZeroDivisionError("not to be pickled")

def web(kind=Component, **options):
    options = {{"command": (sys.executable, "-S", {str(SERVER)!r}, "one")}} | options
    return kind(name="web", workers=2, listen=("web",), readiness="accept", **options)

def service(component):
    return Service(
        name="shop",
        components={{"web": component}},
        listeners={{"web": Listener(name="web", address="systemd:web")}},
        control=Control(path=os.path.abspath("control")),
    )

def read_again():
    mode = open("mode").read()
    match mode:
        case "step":
            return service(web(Faulty, env={{"A": "b"}}))
        case "arguments":
            return service(
                web(function="time:sleep", command=None, args=(Unpicklable(),), boot_timeout=20)
            )
        case "memory":
            raise MemoryError
        case "recursion":
            def deeper():
                deeper()
            deeper()
        case "nothing":
            return None
        case "good":
            return service(web())
    raise {{"key": KeyError, "overflow": OverflowError}}[mode]("a bug of " + mode)

class Unable(Supervisor):
    def upgrade(self):
        raise ZeroDivisionError("a bug of a signal")

sys.exit(Unable(service(web()), read_again=read_again).run())
"""
BUGS = {
    "key": "KeyError: 'a bug of key'",
    "overflow": "OverflowError: a bug of overflow",
    "memory": "MemoryError",
    "recursion": "RecursionError: maximum recursion depth exceeded",
    "nothing": "AttributeError: 'NoneType' object has no attribute",
    "step": "ZeroDivisionError: a bug in a step",
    "arguments": "args: cannot be pickled: not to be pickled",
}


def test_a_bug_is_a_refusal_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    with ff.bind("tcp://127.0.0.1:0") as listener:
        process = Process([sys.executable, "program.py"], tmp_path, listen={"web": listener})
        port = listener.getsockname()[1]
    with process:
        process.log.wait_for("ready after", count=2)
        for mode, why in BUGS.items():
            (tmp_path / "mode").write_text(mode)
            after = len(process.log)
            with ControlClient(str(tmp_path / "control")) as client:
                with pytest.raises(ControlError) as caught:
                    client.request("reload", timeout=60)
                assert why in str(caught.value)
                assert fetch(("127.0.0.1", port)).startswith("one ")
                assert client.request("status")["status"]["condition"] == "ready"
            if mode != "arguments":
                process.log.wait_for(f"reload: unexpected: {re.escape(why)}", after=after)
                process.log.wait_for("Traceback", after=after)
        process.process.send_signal(signal.SIGUSR2)
        process.log.wait_for("SIGUSR2: unexpected: ZeroDivisionError: a bug of a signal")
        (tmp_path / "mode").write_text("good")
        with ControlClient(str(tmp_path / "control")) as client:
            assert client.request("reload", timeout=60)["ok"]


def test_a_wait_is_never_too_long_for_the_kernel() -> None:
    with Reactor() as reactor, ff.Fd(os.eventfd(1)) as ready:
        calls: list[int] = []
        reactor.add(ready.fileno(), calls.append)
        reactor.run_once(365 * 86400.0)  # epoll_wait(2) takes 24 days
        assert len(calls) == 1


def test_a_socket_of_the_service_manager_is_not_lost_by_a_refusal() -> None:
    passed = socket.create_server(("127.0.0.1", 0))
    name = passed.getsockname()
    listener = Listener(name="http", address="systemd:web")
    with Sockets([ff.ListenFd("web", passed.detach())]) as sockets:
        for _ in range(3):
            assert sockets.get(listener, 0).getsockname() == name
            sockets.keep(())


def test_the_generation_of_the_page_is_that_of_the_status(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    metrics = tmp_path / "metrics"
    config = (
        "[components.a]\ncommand = ['/bin/sleep', '1000']\nreadiness = 'started'\n"
        f"[metrics]\naddress = 'unix:{metrics}'\n"
    )

    def shown() -> float:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(metrics))
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        line = next(one for one in text.splitlines() if one.startswith("forkfd_generation"))
        return float(line.split()[-1])

    with Supervised(tmp_path, config) as service:
        service.until("^ready: a 1/1")
        assert shown() == 1
        for expected in (2, 3):
            assert service.command("reload").returncode == 0
            with service.client() as client:
                assert client.request("status")["status"]["generation"] == expected
            assert shown() == expected
