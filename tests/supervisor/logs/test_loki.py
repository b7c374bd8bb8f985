"""The Loki sink: what is sent, and the fate of entries when Loki is slow, refuses or is down."""

import base64
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from loki_server import LokiServer, serving
from tools import tool

import pyforkfd as ff
from pyforkfd.supervisor import Loki
from pyforkfd.supervisor.logs._loki_push import Verdict, from_json, judge, pause, target, to_json
from pyforkfd.supervisor.logs._loki_sink import LokiSink
from pyforkfd.supervisor.logs._records import Entry, Origin, captured

NOW = time.time_ns()


def entry(text: str, component: str = "web", ns: int = NOW) -> Entry:
    origin = Origin(component=component, worker=12, generation=4)
    return captured(origin, "stdout", ns, text.encode())


def config(loki: LokiServer, **options: object) -> Loki:
    quick = {"batch_seconds": 0.01, "backoff": 0.01, "retries": 5}
    return Loki(url=loki.url, **{**quick, **options})  # type: ignore[arg-type]


@pytest.fixture
def loki() -> Iterator[LokiServer]:
    with serving() as server:
        yield server


def turn(sink: LokiSink, until: Callable[[], bool]) -> None:
    """Run the sink as the loop does, until a condition holds."""
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline, (sink.sent, sink.dropped, sink.waiting, sink.error)
        select.select([sink], [sink] if sink.wants_write else [], [], 1)
        sink.handle()
        assert not sink.down or until(), sink.error


def end(sink: LokiSink) -> None:
    """End the sink in order: pass everything to the sender, await its last reports and its end."""
    turn(sink, lambda: not sink.wants_write)
    sink.finish()
    while not sink.down:
        select.select([sink], [], [], 60)
        sink.handle()
    assert sink.process.wait(timeout=60).code == 0
    sink.close()


def test_entries_arrive_by_stream_in_order_of_time(loki: LokiServer) -> None:
    sink = LokiSink(config(loki, static_labels={"host": "a"}))
    sent = [entry("2", ns=NOW + 2), entry("1", ns=NOW + 1), entry("3", "db", ns=NOW + 3)]
    for one in sent:
        sink.add(one)
    end(sink)
    assert (sink.sent, sink.dropped, sink.waiting) == (3, 0, 0)
    web = {"host": "a", "component": "web", "stream": "stdout"}
    assert sorted(loki.streams, key=lambda one: one[1]) == [
        (web, NOW + 1, sent[1].line.decode()),
        (web, NOW + 2, sent[0].line.decode()),
        ({**web, "component": "db"}, NOW + 3, sent[2].line.decode()),
    ]
    assert loki.requests[0][0]["Content-Encoding"] == "gzip"


def test_labels_are_those_that_are_wanted(loki: LokiServer) -> None:
    sink = LokiSink(config(loki, labels=("worker", "generation", "level")))
    sink.add(entry("x"))
    end(sink)
    assert loki.streams[0][0] == {"worker": "12", "generation": "4"}


def test_a_batch_ends_by_size_or_by_age(loki: LokiServer) -> None:
    sink = LokiSink(config(loki, batch_bytes=1000, batch_seconds=3600))
    for number in range(100):
        sink.add(entry(f"{number:0300}"))
    turn(sink, lambda: sink.sent > 0)
    end(sink)  # what is left is younger, and is sent at the end
    assert sink.sent == 100
    sink = LokiSink(config(loki, batch_seconds=0.2))
    sink.add(entry("x"))
    turn(sink, lambda: sink.sent == 1)
    end(sink)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_transient_refusal_is_tried_again(loki: LokiServer, status: int) -> None:
    loki.script = [(status, {})] * 3
    sink = LokiSink(config(loki))
    sink.add(entry("x"))
    turn(sink, lambda: sink.sent == 1)
    assert sink.retries == 3 and str(status) in sink.error
    assert [body for _, body in loki.requests] == [loki.requests[0][1]] * 4
    end(sink)


def test_retry_after_is_honoured(loki: LokiServer) -> None:
    loki.script = [(429, {"Retry-After": "1"})]
    sink = LokiSink(config(loki))
    sink.add(entry("x"))
    before = time.monotonic()
    turn(sink, lambda: sink.sent == 1)
    assert time.monotonic() - before >= 1
    end(sink)


def test_a_refused_batch_is_dropped_with_its_reason_and_the_next_is_sent(loki: LokiServer) -> None:
    loki.script = [(400, {})]
    sink = LokiSink(config(loki))
    sink.add(entry("refused"))
    turn(sink, lambda: sink.dropped == 1)
    assert sink.error == "400 scripted" and sink.retries == 0
    sink.add(entry("next"))
    end(sink)
    assert [line for _, _, line in loki.streams] == [entry("next").line.decode()]


def test_a_batch_is_not_tried_for_ever(loki: LokiServer) -> None:
    loki.script = [(500, {})] * 3
    sink = LokiSink(config(loki, retries=2))
    sink.add(entry("lost"))
    turn(sink, lambda: sink.dropped == 1)
    assert (sink.retries, loki.script) == (2, [])
    end(sink)


def test_a_refused_connection_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    sink = LokiSink(Loki(url=f"http://127.0.0.1:{port}", backoff=0, retries=1))
    sink.add(entry("x"))
    turn(sink, lambda: sink.dropped == 1)
    assert "ConnectionRefusedError" in sink.error
    end(sink)


def test_memory_is_bounded_while_loki_hangs_and_nothing_waits(loki: LokiServer) -> None:
    loki.hold.clear()
    bound = 100_000
    sink = LokiSink(config(loki, batch_bytes=10_000, buffer=bound))
    total, slowest = 5_000, 0.0
    for number in range(total):
        before = time.monotonic()
        sink.add(entry(f"{number:0100}"))
        sink.handle()
        slowest = max(slowest, time.monotonic() - before)
        assert sink._bytes <= bound
    assert slowest < 5  # of a server that would hang for a minute
    assert sink.dropped > 0
    loki.hold.set()
    turn(sink, lambda: sink.waiting == 0)
    end(sink)
    assert sink.sent + sink.dropped == total
    assert len(loki.streams) == sink.sent
    last = entry(f"{total - 1:0100}").line.decode()
    assert last in {line for _, _, line in loki.streams}, "the oldest are dropped"


def test_tenant_and_password(loki: LokiServer, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("first\n")
    sink = LokiSink(config(loki, tenant="shop", user="me", password_file=str(secret)))
    for word in ("first", "second"):
        secret.write_text(word + "\n")
        sink.add(entry(word))
        turn(sink, lambda: sink.waiting == 0)
    end(sink)
    sent = [(h["X-Scope-OrgID"], h["Authorization"]) for h, _ in loki.requests]
    assert sent == [
        ("shop", "Basic " + base64.b64encode(f"me:{word}".encode()).decode())
        for word in ("first", "second")
    ]


def test_token(loki: LokiServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("T0\n")
    sink = LokiSink(config(loki, token_file=str(token)))
    sink.add(entry("x"))
    end(sink)
    assert loki.requests[0][0]["Authorization"] == "Bearer T0"
    token.unlink()
    sink = LokiSink(config(loki, token_file=str(token), retries=1))
    sink.add(entry("x"))
    turn(sink, lambda: sink.dropped == 1)
    assert str(token) in sink.error
    end(sink)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl = tool("openssl", "openssl")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {path} -out {path}.crt"
    subprocess.run(command.split(), check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def test_https_is_verified(certificate: Path) -> None:
    with serving(certificate) as loki:
        sink = LokiSink(config(loki, ca_file=f"{certificate}.crt"))
        sink.add(entry("x"))
        turn(sink, lambda: sink.sent == 1)
        end(sink)
        sink = LokiSink(config(loki, retries=0))
        sink.add(entry("x"))
        turn(sink, lambda: sink.dropped == 1)
        assert "CERTIFICATE_VERIFY_FAILED" in sink.error
        end(sink)


def test_a_sender_that_dies_is_replaced_and_its_entries_are_counted(loki: LokiServer) -> None:
    loki.hold.clear()
    sink = LokiSink(config(loki))
    with pytest.raises(ValueError, match="has not died"):
        sink.restart()
    added = 0
    while not sink._at:  # until one is half in the socket
        added += 1
        sink.add(entry(f"{added} " + "x" * 50_000))
        sink.handle()
    sink.process.send_signal(signal.SIGKILL)
    while not sink.down:
        select.select([sink], [], [], 60)
        sink.handle()
    assert sink.dropped >= 1 and sink.waiting == added - sink.dropped >= 1
    left = sink.waiting
    loki.hold.set()
    sink.restart()
    end(sink)
    assert sink.sent == left
    last = entry(f"{added} " + "x" * 50_000).line.decode()
    assert last in {line for _, _, line in loki.streams}


def test_the_sender_ends_with_the_supervisor(loki: LokiServer) -> None:
    code = (
        "import sys, time\n"
        "from pyforkfd.supervisor.logs._loki_sink import LokiSink\n"
        "from pyforkfd.supervisor import Loki\n"
        "sink = LokiSink(Loki(url=sys.argv[1], batch_seconds=3600))\n"
        "print(sink.process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with ff.spawn(
        [sys.executable, "-P", "-c", code, loki.url],
        fds={0: ff.PIPE_TO_CHILD, 1: ff.PIPE},
    ) as child:
        assert child.stdout is not None
        pidfd = os.pidfd_open(int(child.stdout.readline()))
        try:
            child.kill()
            assert select.select([pidfd], [], [], 60)[0], "an orphan"
        finally:
            os.close(pidfd)


def test_signals_of_a_terminal_do_not_end_the_sender(loki: LokiServer) -> None:
    sink = LokiSink(config(loki))
    sink.process.send_signal(signal.SIGINT)
    sink.process.send_signal(signal.SIGTERM)
    sink.add(entry("last words"))
    end(sink)
    assert sink.sent == 1


def test_closing_at_once_leaves_nothing(loki: LokiServer) -> None:
    loki.hold.clear()
    sink = LokiSink(config(loki))
    sink.add(entry("x"))
    sink.close()
    assert (sink.dropped, sink.waiting) == (1, 0)
    sink.add(entry("late"))
    assert sink.dropped == 2


def test_at_the_end_the_wait_for_a_hanging_loki_is_short(loki: LokiServer) -> None:
    loki.script = [(503, {"Retry-After": "300"})] * 10
    sink = LokiSink(config(loki))
    sink.add(entry("x"))
    turn(sink, lambda: len(loki.requests) == 1)
    before = time.monotonic()
    end(sink)
    assert time.monotonic() - before < 5, "the next try would come too late"
    assert (sink.sent, sink.dropped) == (0, 1)


def test_verdicts() -> None:
    assert {s: judge(s) for s in (200, 204)} == dict.fromkeys((200, 204), Verdict.SENT)
    later = (408, 429, 500, 502, 503, 599)
    assert {s: judge(s) for s in later} == dict.fromkeys(later, Verdict.RETRY)
    never = (301, 400, 401, 403, 404, 413)
    assert {s: judge(s) for s in never} == dict.fromkeys(never, Verdict.DROP)


def test_pauses() -> None:
    c = Loki(url="http://x", backoff=0.5, backoff_cap=30)
    assert [pause(c, n, None, 0) for n in (1, 2, 3, 7, 99)] == [0.5, 1, 2, 30, 30]
    assert pause(c, 1, "7", 0) == 7
    assert pause(c, 5, "1", 0) == 8, "never earlier than the back-off"
    assert pause(c, 1, formatdate(1_700_000_009, usegmt=True), 1_700_000_000) == 9
    assert pause(c, 1, "soon", 0) == 0.5
    assert pause(c, 1, "999999", 0) == 300


def test_the_configuration_that_the_sender_receives() -> None:
    full = Loki(url="https://x/other?a=b", labels=("worker",), static_labels={"a": "b"})
    assert from_json(to_json(full)) == full
    assert target(full) == "/other?a=b"
    assert target(Loki(url="http://x/")) == "/loki/api/v1/push"
