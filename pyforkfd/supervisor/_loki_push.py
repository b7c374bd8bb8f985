"""What is sent to Loki's push endpoint, and what its answer means.  Pure."""

from __future__ import annotations

import email.utils
import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from urllib.parse import urlsplit

from ._records import Entry

PATH = "/loki/api/v1/push"
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_KNOWN = ("component", "worker", "generation", "stream", "level")
_LONGEST_WAIT = 300.0  # seconds; a Retry-After beyond that would only lose what waits


@dataclass(frozen=True, slots=True, kw_only=True)
class LokiConfig:
    """Where Loki is, and how it is to be talked to.

    Attributes:
        url: http or https; without a path, /loki/api/v1/push is meant.
        labels: fields that are labels: of component, worker, generation, stream, level.
            Loki keeps one stream for each combination of values, and a worker's number is
            never used again, so that worker and generation are for small installations;
            the line has them in any case.
        static_labels: further labels with fixed values.
        tenant: X-Scope-OrgID.
        user: of basic authentication, with password_file.
        password_file: path; read before each request, so that a secret may be changed.
        token_file: path of a bearer token; not beside user.
        ca_file: path of certificates to trust instead of the system's.
        batch_bytes: bytes of lines after which a batch is sent.
        batch_seconds: age of its first line after which it is sent.
        timeout: seconds for connecting, and for each wait for the other end.
        retries: tries after the first before a batch is dropped.
        backoff: seconds before the second try; then twice that, and so on.
        backoff_cap: seconds; the most between two tries, less what Retry-After asks for.

    Raises:
        ValueError: something makes no sense; all of it is said.
    """

    url: str
    labels: tuple[str, ...] = ("component", "stream", "level")
    static_labels: Mapping[str, str] = field(default_factory=dict)
    tenant: str | None = None
    user: str | None = None
    password_file: str | None = None
    token_file: str | None = None
    ca_file: str | None = None
    batch_bytes: int = 1 << 20
    batch_seconds: float = 1.0
    timeout: float = 10.0
    retries: int = 10
    backoff: float = 0.5
    backoff_cap: float = 30.0

    def __post_init__(self) -> None:
        wrong = []
        try:
            url = urlsplit(self.url)
            _ = url.port
        except ValueError as error:
            wrong.append(f"url {self.url!r}: {error}")
        else:
            if url.scheme not in ("http", "https") or not url.hostname:
                wrong.append(f"url {self.url!r}: it is http://HOST or https://HOST")
            if url.username is not None or url.password is not None:
                wrong.append("url: no password belongs in there; user and password_file have it")
        if unknown := [name for name in self.labels if name not in _KNOWN]:
            wrong.append(f"labels {unknown}: known are {', '.join(_KNOWN)}")
        if bad := [name for name in self.static_labels if not _LABEL.fullmatch(name)]:
            wrong.append(f"static_labels {bad}: a name is a letter or _, then those and digits")
        if not self.labels and not self.static_labels:
            wrong.append("labels: a stream has at least one")
        if (self.user is None) != (self.password_file is None):
            wrong.append("user and password_file belong together")
        if self.user is not None and self.token_file is not None:
            wrong.append("either user or token_file")
        for text in (self.tenant, self.user):
            if text is not None and not (text.isascii() and text.isprintable()):
                wrong.append(f"{text!r}: printable ASCII, as it goes into a header")
        if self.batch_bytes < 1 or self.retries < 0:
            wrong.append("batch_bytes is at least 1, retries at least 0")
        if min(self.batch_seconds, self.backoff) < 0 or self.timeout <= 0:
            wrong.append("batch_seconds and backoff are not negative, timeout is above 0")
        if wrong:
            raise ValueError("loki: " + "; ".join(wrong))

    @property
    def path(self) -> str:
        """Path and query of the request."""
        url = urlsplit(self.url)
        path = url.path if url.path not in ("", "/") else PATH
        return f"{path}?{url.query}" if url.query else path

    def to_json(self) -> str:
        """For the sender."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LokiConfig:
        """The inverse of :meth:`to_json`."""
        body = json.loads(text)
        return cls(**{**body, "labels": tuple(body["labels"])})


def item(entry: Entry, config: LokiConfig) -> bytes:
    """An entry for the sender: one line of JSON, ``[time, {label: value}, line]``."""
    values = {
        "component": entry.origin.component,
        "worker": entry.origin.worker,
        "generation": entry.origin.generation,
        "stream": entry.stream,
        "level": entry.level,
    }
    # An empty value is to Loki as no label at all.
    labels = {k: str(values[k]) for k in config.labels if values[k] not in (None, "")}
    labels = {**config.static_labels, **labels}
    if not labels:
        labels["component"] = entry.origin.component
    line = entry.line.decode("utf-8", "backslashreplace")
    return json.dumps([str(entry.time), labels, line], separators=(",", ":")).encode() + b"\n"


def body(items: Iterable[bytes]) -> bytes:
    """The body of a push: streams with their values in order of time, gzip."""
    streams: dict[tuple[tuple[str, str], ...], list[list[str]]] = {}
    for one in items:
        ns, labels, line = json.loads(one)
        streams.setdefault(tuple(sorted(labels.items())), []).append([ns, line])
    data = {
        "streams": [
            {"stream": dict(labels), "values": sorted(values, key=lambda value: int(value[0]))}
            for labels, values in streams.items()
        ]
    }
    # Level 1: a third of the time of 6 for a tenth more bytes, on lines that are so alike.
    return gzip.compress(json.dumps(data, separators=(",", ":")).encode(), 1)


class Verdict(Enum):
    """What is to become of a batch."""

    SENT = "sent"
    RETRY = "retry"
    DROP = "drop"


def judge(status: int) -> Verdict:
    """By the status of the answer: 2xx has it; 429, 408 and 5xx may have it later.

    Everything else is about the batch itself, and a second try would say the same.
    """
    if 200 <= status < 300:
        return Verdict.SENT
    return Verdict.RETRY if status in (408, 429) or status >= 500 else Verdict.DROP


def pause(config: LokiConfig, tries: int, retry_after: str | None, now: float) -> float:
    """Seconds until the next try.

    Args:
        config: has the back-off.
        tries: how many there were.
        retry_after: the header: seconds, or a date.
        now: time.time().
    """
    wait = min(config.backoff * 2.0 ** min(tries - 1, 30), config.backoff_cap)
    asked = 0.0
    if retry_after is not None:
        if retry_after.strip().isdigit():
            asked = float(retry_after)
        else:
            try:
                asked = email.utils.parsedate_to_datetime(retry_after).timestamp() - now
            except ValueError:
                pass  # no date: as if not there
    return min(max(wait, asked), max(_LONGEST_WAIT, config.backoff_cap))
