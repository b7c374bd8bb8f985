"""The process that sends to Loki, started by LokiSink.

A process and not a thread: TLS, name resolution and a slow peer all wait, and the forks of
the supervisor are safe because it has one thread.  If this process hangs or is killed for
its memory, lines are lost and counted, and no worker notices.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import select
import socket
import ssl
import threading
import time
from urllib.parse import urlsplit

from pyforkfd._trusted_files import read_file
from pyforkfd.supervisor.spec._spec import Loki

from ._loki_push import Verdict, body, from_json, judge, pause, target

_CHUNK = 1 << 16
_LONGEST_SECRET = 1 << 16  # bytes
_DRAIN = 5.0  # seconds for the rest once the supervisor has closed its end
_GRACE = 2.0  # seconds more for a batch whose time-outs end with the drain


class Sender:
    """A loop that reads items from the supervisor, sends them in batches, reports their fate.

    While a batch waits for its next try nothing is read: further items are queued by the
    supervisor, where one bound holds for all of them.

    Args:
        link: connected stream socket; borrowed.
        config: the section ``[log.loki]``.
        rest: bytes that were read from the link already.
    """

    def __init__(self, link: socket.socket, config: Loki, rest: bytes = b"") -> None:
        self._link, self._config, self._rest = link, config, rest
        self._batch: list[bytes] = []
        self._bytes = 0
        self._first = 0.0  # time.monotonic() of the first item of the batch
        self._ended = False  # the supervisor's end is closed
        self._deadline: float | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._hung_up = select.poll()
        self._hung_up.register(link, select.POLLRDHUP)

    def run(self) -> None:
        """Serve until the supervisor closes its end, and what was read is sent or dropped."""
        self._take(b"")
        while True:
            left = self._first + self._config.batch_seconds - time.monotonic()
            full = self._bytes >= self._config.batch_bytes or self._ended
            if self._batch and (full or left <= 0):
                self._send()
            elif self._ended:
                break
            else:
                self._wait(left if self._batch else None)
        self._disconnect()

    def _wait(self, timeout: float | None) -> None:
        if not select.select([self._link], [], [], timeout)[0]:
            return
        try:
            data = self._link.recv(_CHUNK)
        except ConnectionError:
            data = b""
        self._ended = not data
        self._take(data)

    def _take(self, data: bytes) -> None:
        *items, self._rest = (self._rest + data).split(b"\n")
        if items and not self._batch:
            self._first = time.monotonic()
        self._batch += items
        self._bytes += sum(map(len, items))

    def _send(self) -> None:
        content = body(self._batch)
        tries = 0
        while True:
            tries += 1
            after: str | None = None
            try:
                status, after, why = self._post(content)
                verdict = judge(status)
            except (OSError, http.client.HTTPException) as error:  # ssl's are OSErrors
                self._disconnect()
                verdict, why = Verdict.RETRY, f"{type(error).__name__}: {error}"
            if verdict is Verdict.RETRY and tries <= self._config.retries:
                # Many hosts that lost the same Loki must not all come back at once.
                wait = pause(self._config, tries, after, time.time()) * random.uniform(1, 1.25)
                if self._sleep(wait):
                    self._report(retries=1, why=why)
                    continue
            if verdict is Verdict.SENT:
                self._report(sent=len(self._batch))
            else:
                self._report(dropped=len(self._batch), why=why)
            self._batch, self._bytes = [], 0
            return

    def _post(self, content: bytes) -> tuple[int, str | None, str]:
        """Send one batch; return status, Retry-After, and the answer in words."""
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        headers["User-Agent"] = "pyforkfd"
        if self._config.tenant is not None:
            headers["X-Scope-OrgID"] = self._config.tenant
        if self._config.token_file is not None:
            headers["Authorization"] = f"Bearer {_secret(self._config.token_file)}"
        elif self._config.user is not None and self._config.password_file is not None:
            pair = f"{self._config.user}:{_secret(self._config.password_file)}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        connection = self._connect()
        connection.request("POST", target(self._config), content, headers)
        answer = connection.getresponse()
        text = answer.read(_CHUNK)
        if not answer.isclosed():  # longer than is worth reading
            self._disconnect()
        words = " ".join(text[:200].decode("utf-8", "replace").split())
        return answer.status, answer.headers["Retry-After"], f"{answer.status} {words}"

    def _connect(self) -> http.client.HTTPConnection:
        timeout = self._config.timeout
        if self._hung_up.poll(0):
            timeout = max(min(timeout, self._left()), 0.1)
        if self._connection is None:
            url = urlsplit(self._config.url)
            host = url.hostname or ""
            if url.scheme == "https":
                trusted = ssl.create_default_context(cafile=self._config.ca_file)
                self._connection = http.client.HTTPSConnection(
                    host, url.port, timeout=timeout, context=trusted
                )
            else:
                self._connection = http.client.HTTPConnection(host, url.port, timeout=timeout)
        elif self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _sleep(self, seconds: float) -> bool:
        """Wait for the next try; return False if that would come after the drain's end."""
        until = time.monotonic() + seconds
        if self._hung_up.poll(seconds * 1000):
            if until - time.monotonic() > self._left():
                return False
            time.sleep(max(0.0, until - time.monotonic()))
        return True

    def _left(self) -> float:
        """Return the seconds left of the drain, which begins with the first call."""
        if self._deadline is None:
            self._deadline = time.monotonic() + _DRAIN
        return self._deadline - time.monotonic()

    def _report(self, **fields: object) -> None:
        try:
            self._link.sendall(json.dumps(fields).encode() + b"\n")
        except ConnectionError:  # the supervisor has ended, and with it the counters
            pass


def _secret(path: str) -> str:
    return read_file(path, _LONGEST_SECRET).decode().strip()


def _end_late(fd: int) -> None:
    """End the process when it outlives its drain, whatever it waits for.

    A time-out of a socket holds for each read alone: a server that sends a byte now and then, or
    the resolution of a name, would keep a sender that nobody waits for.
    """
    hung_up = select.poll()
    hung_up.register(fd, select.POLLRDHUP)
    hung_up.poll()
    time.sleep(_DRAIN + _GRACE)
    os._exit(1)


def main() -> None:
    """Run the sender on descriptor 0, the link, whose first line is the configuration."""
    with socket.socket(fileno=0) as link:
        threading.Thread(target=_end_late, args=[link.fileno()], daemon=True).start()
        data = b""
        while b"\n" not in data:
            piece = link.recv(_CHUNK)
            if not piece:
                return
            data += piece
        config, _, rest = data.partition(b"\n")
        Sender(link, from_json(config.decode()), rest).run()
