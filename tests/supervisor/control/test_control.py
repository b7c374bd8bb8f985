"""The control socket: authorization, refusals, and clients that behave badly."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from forked import in_child
from sandbox import kernel_refuses
from services import free_port
from supervised import Load, Supervised, toml

import pyforkfd as ff
from pyforkfd import _core
from pyforkfd.supervisor._reactor import Reactor
from pyforkfd.supervisor.control import _path as _control_path
from pyforkfd.supervisor.control._client import ControlClient, find_path
from pyforkfd.supervisor.control._messages import Body, ControlError, parse, send
from pyforkfd.supervisor.control._path import default_path, find
from pyforkfd.supervisor.control._requests import Requests
from pyforkfd.supervisor.control._server import Client, ControlSocket
from pyforkfd.supervisor.spec._spec import Control
from pyforkfd.supervisor.state._events import Reloaded

T = TypeVar("T")
NOBODY = 65534


@dataclass(frozen=True)
class Origin:
    component: str


@dataclass(frozen=True)
class Line:
    origin: Origin
    line: bytes


class Lines:
    """The tail of a log: its lines and its followers."""

    def __init__(self) -> None:
        self.written: list[Line] = []
        self.followers: dict[int, Any] = {}

    def write(self, component: str, text: str) -> None:
        self.written.append(Line(Origin(component), text.encode()))
        for follower in list(self.followers.values()):
            follower(self.written[-1])

    def tail(self, count: int | None = None, *, components: Any = ()) -> list[Line]:
        found = [
            one for one in self.written if not components or one.origin.component in components
        ]
        return found[len(found) - min(count or 0, len(found)) :]

    def follow(self, callback: Any) -> int:
        number = len(self.followers) + 1
        self.followers[number] = callback
        return number

    def unfollow(self, handle: int) -> None:
        self.followers.pop(handle, None)


class Service:
    """A control socket and its requests, whose loop a test turns by hand."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.reactor = Reactor()
        self.lines = Lines()
        self.requests = Requests(self)
        self.requests.attach_logs(self.lines)
        self.socket = ControlSocket(Control(path=self.path), self.reactor, self._handle)
        self.replies: list[Any] = []
        self.clients: list[Client] = []
        self.big = False

    def _handle(self, client: Client, body: Body) -> None:
        self.clients.append(client)
        self.requests(client, body)

    def turn(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.reactor.run_once(10)

    def status(self) -> dict[str, Any]:
        return {"text": "x" * 1_000_000 if self.big else "small"}

    def reload(self, reply: Any, *, only: frozenset[str] | None = None) -> None:
        self.replies.append((reply, only))

    def roll_back(self, reply: Any) -> None:
        self.replies.append((reply, None))

    def scale(self, component: str, count: int) -> None:
        raise ValueError(f"no component {component!r}")

    def retire(self, worker_id: int, why: str) -> None:
        raise AssertionError("no test requests this")

    def stop(self, *, now: bool = False) -> None:
        pass

    def signal_component(self, component: str, signum: int | None = None) -> int:
        return 0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "control")
    yield made
    made.socket.close()
    made.reactor.close()


def connect(service: Service) -> ff.FdChannel:
    channel = ff.FdChannel.connect(service.path)
    service.turn()  # accepts
    return channel


def request(service: Service, channel: ff.FdChannel, **fields: object) -> Body:
    send(channel, fields)
    service.turn()
    return receive(channel)


def receive(channel: ff.FdChannel) -> Body:
    with channel.recv(timeout=10) as message:
        return parse(message)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{", "not JSON"),
        (b"\xff\xff", "not JSON"),
        (b"[" * 15_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"v": 2, "do": "ping"}', "v: protocol version 2 is not supported; write 1"),
        (b'{"do": "ping"}', "v: protocol version None is not supported"),
        (b'{"v": 1}', "do: None is not of type str"),
        (b'{"v": 1, "do": "dance"}', "do: there is no request 'dance'; write ping, status"),
        (b'{"v": 1, "do": "scale", "component": "web", "count": true}', "not of type int"),
        (b'{"v": 1, "do": "scale", "component": "web", "count": 1}', "no component 'web'"),
        (b'{"v": 1, "do": "reload", "components": [1]}', "not a list of strings"),
        (b'{"v": 1, "do": "signal", "component": "web", "signal": 900}', "no signal 900"),
        (b'{"v": 1, "do": "ping", "in_file": 5}', "in_file: no descriptor was passed"),
        (b"x" * 20_000, "cannot be read"),
    ],
)
def test_a_malformed_request_is_refused_and_the_next_is_not(
    service: Service, data: bytes, why: str
) -> None:
    with connect(service) as channel:
        channel.send(data)
        service.turn()
        reply = receive(channel)
        assert reply["ok"] is False and why in reply["error"]
        assert request(service, channel, do="ping") == {"v": 1, "ok": True}


def test_descriptors_are_not_taken(service: Service) -> None:
    with connect(service) as channel:
        if kernel_refuses():
            with pytest.raises(PermissionError):
                channel.send(b'{"v": 1, "do": "ping"}', [0])
            assert request(service, channel, do="ping")["ok"]
            # As on a kernel that does not: the option is the listener's, inherited.
            _core.pass_rights(service.socket._listener.fileno(), True)
    with connect(service) as channel:
        channel.send(b'{"v": 1, "do": "ping"}', [0])
        service.turn()
        assert "cannot be read" in receive(channel)["error"]


def test_a_reply_of_any_size_arrives(service: Service) -> None:
    service.big = True
    with connect(service) as channel:
        assert len(request(service, channel, do="status")["status"]["text"]) == 1_000_000


def test_a_reload_has_its_reply_when_it_is_over(service: Service) -> None:
    with connect(service) as channel, connect(service) as other:
        send(channel, {"do": "reload", "components": ["web"]})
        send(channel, {"do": "ping"})  # waits its turn
        service.turn()
        ((reply, only),) = service.replies
        assert only == {"web"}
        assert request(service, other, do="ping")["ok"]
        with pytest.raises(TimeoutError):
            channel.recv(timeout=0)
        assert not select.select([service.reactor._epoll], [], [], 0)[
            0
        ]  # we do not turn in circles
        reply(Reloaded(4))
        assert receive(channel) == {"v": 1, "ok": True, "generation": 4}
        service.turn()
        assert receive(channel) == {"v": 1, "ok": True}


def test_a_client_that_leaves_while_it_waits_is_forgotten(service: Service) -> None:
    with connect(service) as channel:
        send(channel, {"do": "reload"})
        service.turn()
    service.turn()
    assert service.clients[0].closed
    service.replies[0][0](Reloaded(4, "not received"))


def test_waiting_requests_have_a_reply_when_the_supervisor_ends(service: Service) -> None:
    with connect(service) as waits, connect(service) as stops:
        send(waits, {"do": "reload"})
        service.turn()
        send(stops, {"do": "stop"})
        service.turn()
        service.socket.close()
        assert "ended before the new generation was ready" in receive(waits)["error"]
        assert receive(stops) == {"v": 1, "ok": True}
        assert not os.path.exists(service.path)


def test_logs_are_followed_until_the_client_leaves(service: Service) -> None:
    service.lines.write("web", "first")
    service.lines.write("keys", "second")
    with connect(service) as channel:
        assert request(service, channel, do="logs", components=["web"])["lines"] == ["first"]
        assert receive(channel)["ok"]
        send(channel, {"do": "logs", "lines": 1, "follow": True})
        service.turn()
        assert receive(channel)["lines"] == ["second"]
        service.lines.write("web", "third")
        assert receive(channel)["lines"] == ["third"]
        assert service.lines.followers
    service.turn()
    assert not service.lines.followers


def test_the_whole_log_goes_at_once(service: Service) -> None:
    lines = [f"{number} " + "x" * 100 for number in range(5000)]
    for line in lines:
        service.lines.write("web", line)
    with connect(service) as channel:
        assert request(service, channel, do="logs", lines=10_000)["lines"] == lines
        assert receive(channel)["ok"]


def test_a_client_that_does_not_read_is_disconnected_and_blocks_no_other(service: Service) -> None:
    with connect(service) as lazy, connect(service) as other:
        send(lazy, {"do": "logs", "follow": True})
        service.turn()
        for number in range(5000):
            service.lines.write("web", f"{number} " + "x" * 1000)
        service.turn()
        assert service.clients[0].closed and not service.lines.followers
        assert request(service, other, do="ping")["ok"]


def test_a_client_that_reads_late_gets_all_of_it(service: Service) -> None:
    with connect(service) as late:
        send(late, {"do": "logs", "follow": True})
        service.turn()
        lines = [f"{number} " + "x" * 1000 for number in range(900)]
        for line in lines:
            service.lines.write("web", line)
        got: list[str] = []
        while len(got) < len(lines):
            try:
                with late.recv(timeout=0) as message:
                    got += parse(message)["lines"]
            except TimeoutError:
                service.turn()
        assert got == lines


def test_idle_clients_are_closed_for_others(service: Service) -> None:
    idle = [connect(service) for _ in range(64)]
    assert request(service, idle[0], do="ping")["ok"]  # now the second is the one idle for longest
    with connect(service) as newcomer:
        assert request(service, newcomer, do="ping")["ok"]
    with pytest.raises(EOFError):
        idle[1].recv(timeout=10)
    service.turn()
    assert request(service, idle[0], do="ping")["ok"]
    for channel in idle:
        channel.close()
    with ControlClients(service, 64) as waiting:
        for channel in waiting:
            send(channel, {"do": "reload"})
            service.turn()
        with connect(service) as refused:
            assert "64 clients wait for their replies" in receive(refused)["error"]


class ControlClients:
    def __init__(self, service: Service, count: int) -> None:
        self.service, self.count = service, count

    def __enter__(self) -> list[ff.FdChannel]:
        self.made = [connect(self.service) for _ in range(self.count)]
        return self.made

    def __exit__(self, *exception: object) -> None:
        for channel in self.made:
            channel.close()


def test_a_second_supervisor_does_not_take_the_path(service: Service) -> None:
    with pytest.raises(OSError, match=f"listen {service.path}: Address already in use"):
        ControlSocket(Control(path=service.path), service.reactor, service._handle)
    assert os.path.exists(service.path)


def test_a_path_that_another_process_has_bound_stays(service: Service) -> None:
    os.unlink(service.path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(service.path)
        service.socket.close()
        assert os.path.exists(service.path)


def as_nobody(act: Callable[[], T]) -> T:
    """Run it in a child of another user, who could not start an interpreter of ours."""

    def become() -> T:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return act()

    return in_child(become)


def outcome_of(path: Path, do: str) -> str:
    """Send a request; return "done" or the error."""
    try:
        with ControlClient(str(path)) as client:
            client.request(do)
    except (ControlError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("allowed", [(), (NOBODY,)])
def test_other_users_are_refused_unless_allowed(
    shared_path: Path, allowed: tuple[int, ...]
) -> None:
    config = toml(free_port())
    config += f"[control]\npath = '{shared_path}/control'\nmode = 0o666\n"
    config += f"allow_users = {list(allowed)}\n"
    with Supervised(shared_path, config) as service:
        service.until("^ready: web 2/2")
        outcome = as_nobody(lambda: outcome_of(service.control, "stop"))
        if allowed:
            assert outcome == "done"
            assert service.wait() == 0
            return
        assert outcome.startswith("ControlError: user nobody (uid 65534) may not send requests")
        service.log.wait_for(rf"control: refused user nobody \(uid {NOBODY}\)")
        assert service.command("status").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_socket_that_may_not_be_opened_is_named(shared_path: Path) -> None:
    with Supervised(shared_path, toml(free_port())) as service:
        service.until("^ready: web 2/2")
        outcome = as_nobody(lambda: outcome_of(service.control, "stop"))
        assert outcome.startswith(f"PermissionError: [Errno 13] connect {service.control}: ")


def test_scaling_under_load_fails_nothing(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service:
        service.until("^ready: web 2/2")
        with Load(("127.0.0.1", port)) as load, service.client() as client:
            for count in (4, 1, 3, 2):
                client.request("scale", component="web", count=count)
                service.until(f"^ready: web {count}/{count}")
                load.more()
        assert load.failures == []
        assert len({answer.split()[1] for answer in load.answers}) >= 4


def test_a_worker_is_replaced_before_it_leaves(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service:
        service.until("^ready: web 2/2")
        first = service.workers()[0]
        with Load(("127.0.0.1", port)) as load:
            with ff.Fd(os.pidfd_open(first["pid"])) as pidfd:
                assert service.command("restart", str(first["id"])).returncode == 0
                assert select.select([pidfd], [], [], 30)[0]
            load.more()
        assert load.failures == []
        assert service.command("restart", "999").returncode == 1
        service.stop()
        assert "degraded" not in service.log.text()


def test_many_clients_at_once(tmp_path: Path) -> None:
    with Supervised(tmp_path, toml(free_port())) as service:
        service.until("^ready: web 2/2")
        failed: list[str] = []

        def use() -> None:
            for _ in range(20):
                try:
                    with service.client() as client:
                        client.request("status")
                except (ControlError, OSError) as error:
                    failed.append(str(error))

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_service_is_found_by_name_or_alone(
    shared_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(shared_path, NOBODY, NOBODY)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared_path))
    monkeypatch.setattr(_control_path, "_SYSTEM", str(shared_path / "nothing"))

    def look() -> list[str]:
        found = [found_path(None)]
        with ff.FdChannel.listen(default_path("shop")):
            found.append(found_path(None))
            with ff.FdChannel.listen(default_path("bank")):
                found += map(found_path, (None, "bank", "x"))
        return [*found, found_path(None)]  # the paths are still there, without a listener

    there = shared_path / "pyforkfd"
    none = "no service runs here, or none with a control socket at its usual place"
    assert as_nobody(look) == [
        none,
        f"{there}/shop.sock",
        "several services run here (bank, shop): name one with --service",
        f"{there}/bank.sock",
        none.replace("no service", "no service x") + " (there are bank, shop)",
        none,
    ]
    assert len(list(there.iterdir())) == 2


def found_path(service: str | None) -> str:
    try:
        return find_path(service)
    except ControlError as error:
        return str(error)


def test_a_directory_that_others_may_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or 1)
    (tmp_path / "pyforkfd").mkdir()
    (tmp_path / "pyforkfd").chmod(0o777)
    with pytest.raises(OSError, match="not a directory that only this user can write to"):
        default_path("shop")
    assert not [path for _, path in find() if path.startswith(str(tmp_path))]


def test_a_usual_place_is_looked_at_and_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or 1)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError):
        default_path("shop", create=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = default_path("shop", create=False)
    assert path == f"{tmp_path}/pyforkfd/shop.sock"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "pyforkfd").mkdir(0o700)
    os.chown(tmp_path / "pyforkfd", os.geteuid(), -1)
    assert default_path("shop", create=False) == path


def test_a_client_receives_the_reason_even_if_its_request_was_not_read(tmp_path: Path) -> None:
    path = str(tmp_path / "there")
    with (
        ff.FdChannel.listen(path) as listener,
        ControlClient(path) as client,
        listener.accept() as ours,
    ):
        messages = client.stream("ping")
        send(client._channel, {"do": "ping"})  # is never read: the close is a reset
        send(ours, {"ok": False, "error": "not you"})
        ours.close()
        with pytest.raises(ControlError, match="not you"):
            next(messages)


def test_a_client_does_not_wait_for_ever_for_one_that_hangs(tmp_path: Path) -> None:
    path = str(tmp_path / "there")
    with (
        ff.FdChannel.listen(path),
        ControlClient(path) as client,
        pytest.raises(ControlError, match=r"status: no reply within 0\.01 s: the supervisor hangs"),
    ):
        client.request("status", timeout=0.01)


def test_a_bug_costs_the_client_its_request_and_nobody_else(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(service) as channel:
        reply = request(service, channel, do="restart", worker=1)  # raises an AssertionError
        assert reply["error"] == "AssertionError: no test requests this"
        assert "Traceback" in caplog.text
        assert request(service, channel, do="ping")["ok"]
