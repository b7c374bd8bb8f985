"""A server with Loki's push endpoint, which takes and refuses the same requests as Loki."""

from __future__ import annotations

import gzip
import json
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PUSH = "/loki/api/v1/push"
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")  # Prometheus: a label's name


@dataclass
class LokiServer:
    """The requests that arrived, and the answers to the next ones.

    Attributes:
        url: of the server.
        script: status and headers of the first answers; the status of the others is 204.
        requests: headers and body of each request, taken or not.
        streams: (labels, time, line) of the requests that were taken.
        hold: set: requests are answered; clear: they wait.
    """

    url: str = ""
    script: list[tuple[int, Mapping[str, str]]] = field(default_factory=list)
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    streams: list[tuple[dict[str, str], int, str]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)


def problem(path: str, headers: Mapping[str, str], data: bytes) -> tuple[str, dict[str, Any]]:
    """Return why Loki would answer 400 (pkg/loghttp/push and its limits), and the body."""
    if path != PUSH:
        return f"no such path: {path}", {}
    if headers.get("Content-Type") != "application/json":
        return "not JSON", {}
    if headers.get("Content-Encoding") == "gzip":
        data = gzip.decompress(data)
    body = json.loads(data)
    if not isinstance(body.get("streams"), list) or not body["streams"]:
        return "no streams", body
    seen = set()
    for one in body["streams"]:
        labels, values = one["stream"], one["values"]
        if not labels or not all(isinstance(v, str) for v in labels.values()):
            return "a stream needs labels, which are text", body
        if not all(_LABEL.fullmatch(name) for name in labels):
            return "name of a label", body
        key = tuple(sorted(labels.items()))
        if key in seen:
            return "a stream twice", body
        seen.add(key)
        times = [ns for ns, _ in values]
        if not values or not all(isinstance(ns, str) and ns.isdecimal() for ns in times):
            return "a time is text of nanoseconds", body
        if times != sorted(times, key=int):
            return "out of order", body
        if not all(isinstance(line, str) and len(line) <= 262144 for _, line in values):
            return "line too long", body
    return "", body


@contextmanager
def serving(tls: Path | None = None) -> Iterator[LokiServer]:
    """Serve on a free port.

    Args:
        tls: file with key and certificate, for https.
    """
    loki = LokiServer()
    loki.hold.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            loki.hold.wait(60)
            why, body = problem(self.path, dict(self.headers.items()), data)
            loki.requests.append((dict(self.headers.items()), body))
            status, headers = loki.script.pop(0) if loki.script else (204, {})
            if why and status == 204:
                status = 400
            text = b"" if status == 204 else (why or "scripted").encode()
            if status == 204:
                for one in body["streams"]:
                    loki.streams += [(one["stream"], int(ns), line) for ns, line in one["values"]]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Print nothing: the requests are in the list."""

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # joined at the end

    server = Server(("127.0.0.1", 0), Handler)
    scheme = "http"
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    loki.url = f"{scheme}://127.0.0.1:{server.server_port}"
    try:
        yield loki
    finally:
        loki.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()
