"""One start as a whole: all that it needs is made, and all of it is freed when it fails."""

from __future__ import annotations

import errno
import os
import resource
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from leaks import Holdings
from services import free_port

from pyforkfd.supervisor._reactor import Reactor
from pyforkfd.supervisor.processes._launch import prepare
from pyforkfd.supervisor.processes._resources import Resources, open_resources
from pyforkfd.supervisor.processes._workers import Workers
from pyforkfd.supervisor.processes._zygotes import zygote_for
from pyforkfd.supervisor.spec._spec import Component, Listener, Log, Privileges, Service
from pyforkfd.supervisor.state._events import Event, Spawned, SpawnFailed
from pyforkfd.supervisor.state._model import Phase, Worker
from pyforkfd.supervisor.succession._succession import Succession
from pyforkfd.supervisor.worker._identity import VARIABLE, identify

WEB = Component(
    name="web",
    command=("/bin/sh", "-c", 'echo "$LISTEN_FDNAMES"; echo "$FORKFD_WORKER" >&2; exec sleep 100'),
    listen=("http",),
    cgroup="off",
)


def service(directory: Path) -> Service:
    address = f"tcp://127.0.0.1:{free_port()}"
    return Service(
        name="s",
        components={"web": WEB},
        listeners={"http": Listener(name="http", address=address)},
        log=Log(path=str(directory / "log"), stdout=False),
    )


def worker(**options: Any) -> Worker:
    return Worker(
        id=7,
        spec=replace(WEB, **options),
        position=0,
        generation=1,
        phase=Phase.BOOTING,
        born=0.0,
        since=0.0,
    )


@pytest.fixture
def plan(tmp_path: Path) -> Service:
    return service(tmp_path)


@pytest.fixture
def resources(plan: Service) -> Iterator[Resources]:
    with ExitStack() as stack:
        succession = stack.enter_context(Succession())
        found = open_resources(stack, plan, succession)
        found.sockets.open(plan)
        yield found


def settled(resources: Resources) -> Holdings:
    """List what is held, once the pipes of workers that have gone are read to their end."""
    resources.reactor.run_once(0)
    resources.output.poll(time.monotonic() + 10)
    return Holdings.now()


def test_a_start_hands_over_the_process_and_its_channel(
    plan: Service, resources: Resources, tmp_path: Path
) -> None:
    before = settled(resources)
    resources.watch.started(worker())
    launch = prepare(worker(), plan, resources, None)
    process, channel = launch.start()
    with process, channel, launch.notify:
        assert launch.channel is channel and not channel.closed
        while "slot=" not in (text := (tmp_path / "log").read_text()):
            resources.reactor.run_once(1.0)
            resources.output.poll(time.monotonic())
        assert "http" in text
        assert (
            "component=web worker=7 position=0 generation=1 version=1 channel=4 page=5 log=6"
            in text
        )
        launch.close()  # nothing of it is left there
        assert not channel.closed and process.poll() is None
        process.kill()
        process.wait()
    resources.output.worker_gone(7, time.monotonic())
    resources.watch.ended(7, "signal", expected=True)
    assert settled(resources) == before


def test_a_start_that_is_not_performed_frees_all_of_it(plan: Service, resources: Resources) -> None:
    before = settled(resources)
    with prepare(worker(), plan, resources, None) as launch:
        assert not launch.channel.closed
    assert launch.channel.closed
    assert settled(resources) == before


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"command": ("/nonexistent/program",)}, "/nonexistent/program"),
        ({"cwd": "/nonexistent/directory"}, "/nonexistent/directory"),
        ({"privileges": Privileges(user="nosuchuser")}, 'there is no user "nosuchuser"'),
        ({"privileges": Privileges(seccomp="/nonexistent/filter")}, "/nonexistent/filter"),
    ],
)
def test_a_start_that_fails_frees_all_of_it(
    options: dict[str, Any], why: str, plan: Service, resources: Resources, tmp_path: Path
) -> None:
    events: list[Event] = []
    workers = Workers(resources, events.append)
    before = settled(resources)
    workers.start(worker(**options), plan)
    (event,) = events
    assert isinstance(event, SpawnFailed) and event.worker_id == 7
    assert why in event.why
    assert 7 not in workers
    assert settled(resources) == before
    # Nor is it expected to confirm a new log file.
    file = resources.output.file
    assert file is not None
    (tmp_path / "log").rename(tmp_path / "moved")
    now = time.monotonic()
    assert file.reopen(now) and file.next_switch(now) is None


def test_a_start_that_cannot_be_watched_ends_the_worker(
    plan: Service, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where fs.epoll.max_user_watches is reached: ENOSPC of epoll_ctl(2)."""
    events: list[Event] = []
    workers = Workers(resources, events.append)
    before = settled(resources)
    add, left = Reactor.add, 0

    def refuse(self: Reactor, fd: int, *arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, fd, *arguments)

    monkeypatch.setattr(Reactor, "add", refuse)
    for number in range(1, 5):  # two pipes, the process, the channel
        left = number
        workers.start(worker(), plan)
        (event,) = events
        events.clear()
        assert isinstance(event, SpawnFailed) and event.shortage, number
        assert 7 not in workers
        assert settled(resources) == before, number
    workers.start(worker(), plan)
    assert isinstance(events.pop(), Spawned)
    workers.abandon()
    assert settled(resources) == before


@pytest.mark.parametrize("kind", ["command", "function"])
def test_a_start_frees_all_of_it_at_whatever_descriptor_it_fails(
    kind: str, plan: Service, resources: Resources
) -> None:
    """Each start may have one descriptor more than the last, until one succeeds."""
    events: list[Event] = []
    workers = Workers(resources, events.append)
    options: dict[str, Any] = {}
    if kind == "function":
        options = {"command": None, "function": "time:sleep", "args": (100,)}
        spec = zygote_for(plan, worker(**options).spec)
        while resources.zygotes.get(spec, 1) is None:
            select.select([resources.zygotes], [], [])
            resources.zygotes.read()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # All numbers below the highest are taken, so that the limit counts those that are free.
    taken = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]
    highest = max(map(int, os.listdir("/proc/self/fd")))
    while taken[-1] < highest:
        taken.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    try:
        before = settled(resources)
        failures = 0
        while True:
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1 + failures, hard))
            try:
                workers.start(worker(**options), plan)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            event = events.pop()
            if isinstance(event, Spawned):
                break
            assert isinstance(event, SpawnFailed) and "Too many open files" in event.why
            assert event.shortage
            failures += 1
            assert settled(resources) == before, failures
        workers.abandon()
        assert settled(resources) == before
        # Two ends of the channel, two of each pipe: at least as many ways to fail.
        assert failures >= 6, failures
    finally:
        for fd in taken:
            os.close(fd)


def test_listeners_that_are_sent_are_not_in_listen_fds(plan: Service, resources: Resources) -> None:
    launch = prepare(worker(give="channel"), plan, resources, None)
    assert "listen" not in launch.options
    env = launch.options["env"]
    assert env is not None and identify(env[VARIABLE]).by_channel
    launch.close()
