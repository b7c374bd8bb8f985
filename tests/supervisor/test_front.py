"""The public front of a service, before, while and after it runs; and what fails as it opens."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services import free_port

from pyforkfd.supervisor import Component, Control, Listener, Log, Metrics, Service, Supervisor
from pyforkfd.supervisor.state._events import Reloaded


def service(script: str = "exec sleep 100", **options: Any) -> Service:
    web = Component(
        name="web",
        command=("/bin/sh", "-c", script),
        listen=tuple(options.get("listeners", ())),
        cgroup="off",
        stdout="null",
        stderr="null",
        workers=1,
    )
    return Service(name="shop", components={"web": web}, **{"log": Log(stdout=False), **options})


METHODS: dict[str, Callable[[Supervisor], object]] = {
    "reload": lambda supervisor: supervisor.reload(),
    "roll_back": lambda supervisor: supervisor.roll_back(),
    "scale": lambda supervisor: supervisor.scale("web", 2),
    "retire": lambda supervisor: supervisor.retire(1, "old"),
    "stop": lambda supervisor: supervisor.stop(),
    "signal_component": lambda supervisor: supervisor.signal_component("web"),
    "send": lambda supervisor: supervisor.send("web", 1),
    "upgrade": lambda supervisor: supervisor.upgrade(),
}


def test_the_table_of_methods_is_complete() -> None:
    public = {name for name in vars(Supervisor) if not name.startswith("_")}
    assert public == {*METHODS, "run", "status"}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_before_and_after_the_run_names_itself_and_the_way_out(method: str) -> None:
    supervisor = Supervisor(service("kill -TERM $PPID; exec sleep 100"))
    wanted = rf"^Supervisor\.{method}: the service does not run: call run\(\) first$"
    with pytest.raises(RuntimeError, match=wanted):
        METHODS[method](supervisor)
    assert supervisor.run() == 0
    with pytest.raises(RuntimeError, match=wanted):
        METHODS[method](supervisor)


def test_the_status_before_while_and_after_the_run() -> None:
    running: list[dict[str, Any]] = []

    def read_again() -> Service:
        running.append(supervisor.status())
        with pytest.raises(RuntimeError, match=r"^Supervisor\.run: the service runs already$"):
            supervisor.run()
        supervisor.stop(now=True)
        return plan

    plan = service("kill -HUP $PPID; exec sleep 100")
    supervisor = Supervisor(plan, read_again=read_again)
    for _ in range(2):  # it may run again
        before = supervisor.status()
        assert (before["condition"], before["reasons"]) == ("stopped", ["the service does not run"])
        assert (before["service"], before["pid"], before["age"]) == ("shop", os.getpid(), 0.0)
        (web,) = before["components"]
        assert (web["name"], web["wanted"], web["ready"], web["workers"]) == ("web", 1, 0, [])
        assert supervisor.run() == 0
        status = running.pop()
        assert status.keys() == before.keys()
        assert status["condition"] == "starting" and status["age"] > 0
        (worker,) = status["components"][0]["workers"]
        assert worker["id"] == 1 and worker["pid"] > 0
    assert supervisor.status()["condition"] == "stopped"


def test_reloads_that_are_requested_together_have_a_generation_each() -> None:
    outcomes: list[Reloaded] = []
    reads = 0

    def twice(outcome: Reloaded) -> None:
        supervisor.reload(outcomes.append)
        supervisor.reload(outcomes.append)
        supervisor.stop(now=True)

    def read_again() -> Service:
        nonlocal reads
        reads += 1
        if reads == 1:  # it boots, and is given up when the one that reads goes on
            supervisor.reload(twice)
        return plan

    plan = service("kill -HUP $PPID; exec sleep 100")
    supervisor = Supervisor(plan, read_again=read_again)
    assert supervisor.run() == 0
    assert reads >= 4
    assert [outcome.generation for outcome in outcomes] == [4, 5]
    assert [bool(outcome.why) for outcome in outcomes] == [True, True]


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("resource", ["log", "listener", "metrics", "control"])
def test_a_resource_that_cannot_be_opened_closes_those_before_it(
    resource: str, taken: str, tmp_path: Path
) -> None:
    """The guard around every test names what would be left open."""
    directory = tmp_path / "directory"
    directory.mkdir()
    options: dict[str, Any] = {
        "log": Log(path=str(tmp_path / "log")),
        "listeners": {"http": Listener(name="http", address=f"tcp://127.0.0.1:{free_port()}")},
        "metrics": Metrics(address=f"tcp://127.0.0.1:{free_port()}"),
        "control": Control(path=str(tmp_path / "control")),
    }
    failing: dict[str, dict[str, Any]] = {
        "log": {"log": Log(path=str(directory / "log"))},
        "listener": {"listeners": {"http": Listener(name="http", address=taken)}},
        "metrics": {"metrics": Metrics(address=taken)},
        "control": {"control": Control(path=str(directory / "control"))},
    }
    supervisor = Supervisor(service(**{**options, **failing[resource]}))
    directory.rmdir()  # the specification was valid
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(OSError) as caught:
        supervisor.run()
    assert caught.value.errno in (errno.EADDRINUSE, errno.ENOENT), caught.value
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert not (tmp_path / "control").exists()
    assert supervisor.status()["condition"] == "stopped"
