"""Requests and answers of the metrics page: the part of HTTP/1.1 that a scraper needs.  Pure."""

from __future__ import annotations

from dataclasses import dataclass

MAX_HEAD = 8192
"""Bound in bytes of a request up to its empty line."""

_PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A parsed request.

    Attributes:
        method: as it was sent.
        path: without its query.
        accept: the header Accept, empty if there is none.
    """

    method: str
    path: str
    accept: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer to a request.

    Attributes:
        status: a status code of RFC 9110.
        body: the text.
        content_type: of the body.
    """

    status: int
    body: bytes
    content_type: str = _TEXT

    @classmethod
    def of_text(cls, status: int, text: str = "") -> Answer:
        """Make an answer of one line; without a text, of the status in words."""
        return cls(status=status, body=f"{text or _PHRASES[status]}\n".encode())

    def wire(self, method: str) -> bytes:
        """Encode the answer; the connection ends with it.

        Args:
            method: of the request; HEAD gets no body.
        """
        lines = [
            f"HTTP/1.1 {self.status} {_PHRASES[self.status]}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Connection: close",
        ]
        if self.status == 405:
            lines.append("Allow: GET, HEAD")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        return head if method == "HEAD" else head + self.body


def parse(received: bytes | bytearray) -> Request | Answer | None:
    """Parse the bytes received so far.

    Returns:
        The request; the answer that refuses it; or None: more must arrive.
    """
    head, end, _ = bytes(received[: MAX_HEAD + 1]).partition(b"\r\n\r\n")
    if not end:
        return Answer.of_text(431) if len(received) > MAX_HEAD else None
    first, *headers = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not all(words) or not words[2].startswith("HTTP/1."):
        return Answer.of_text(400)
    accept = []
    for line in headers:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            return Answer.of_text(400)
        if name.lower() == "accept":
            accept.append(value.strip())
    return Request(method=words[0], path=words[1].partition("?")[0], accept=",".join(accept))
