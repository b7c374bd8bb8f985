"""What is sent to Loki's push endpoint, and what its answer means.  Pure."""

from __future__ import annotations

import email.utils
import gzip
import json
from collections.abc import Iterable
from dataclasses import asdict
from enum import Enum
from urllib.parse import urlsplit

from pyforkfd.supervisor.spec._spec import Loki

from ._records import Entry

PATH = "/loki/api/v1/push"
_LONGEST_WAIT = 300.0  # seconds; a Retry-After beyond that would only lose what waits


def target(config: Loki) -> str:
    """Path and query of the request."""
    url = urlsplit(config.url)
    path = url.path if url.path not in ("", "/") else PATH
    return f"{path}?{url.query}" if url.query else path


def to_json(config: Loki) -> str:
    """For the sender."""
    return json.dumps(asdict(config))


def from_json(text: str) -> Loki:
    """The inverse of :func:`to_json`."""
    body = json.loads(text)
    return Loki(**{**body, "labels": tuple(body["labels"])})


def item(entry: Entry, config: Loki) -> bytes:
    """An entry for the sender: one line of JSON, ``[time, {label: value}, line]``."""
    values = {
        "component": entry.origin.component,
        "worker": entry.origin.worker,
        "generation": entry.origin.generation,
        "stream": entry.stream,
        "level": entry.level,
    }
    # An empty value is to Loki as no label at all.
    labels = dict(config.static_labels)
    labels |= {k: str(values[k]) for k in config.labels if values[k] not in (None, "")}
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


def pause(config: Loki, tries: int, retry_after: str | None, now: float) -> float:
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
