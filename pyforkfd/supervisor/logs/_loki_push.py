"""Requests to Loki's push endpoint, and the meaning of its answers.  Pure."""

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
_LONGEST_WAIT = 300.0  # seconds; a longer Retry-After would only lose what is queued


def target(config: Loki) -> str:
    """Return the path and query of the request."""
    url = urlsplit(config.url)
    path = url.path if url.path not in ("", "/") else PATH
    return f"{path}?{url.query}" if url.query else path


def to_json(config: Loki) -> str:
    """Encode the configuration for the sender."""
    return json.dumps(asdict(config))


def from_json(text: str) -> Loki:
    """Decode a configuration that :func:`to_json` made."""
    body = json.loads(text)
    return Loki(**{**body, "labels": tuple(body["labels"])})


def item(entry: Entry, config: Loki) -> bytes:
    """Encode an entry for the sender: one line of JSON, ``[time, {label: value}, line]``."""
    values = {
        "component": entry.origin.component,
        "worker": entry.origin.worker,
        "generation": entry.origin.generation,
        "stream": entry.stream,
        "level": entry.level,
    }
    # Loki takes a label with an empty value for no label.
    labels = dict(config.static_labels)
    labels |= {k: str(values[k]) for k in config.labels if values[k] not in (None, "")}
    if not labels:
        labels["component"] = entry.origin.component
    line = entry.line.decode("utf-8", "backslashreplace")
    return json.dumps([str(entry.time), labels, line], separators=(",", ":")).encode() + b"\n"


def body(items: Iterable[bytes]) -> bytes:
    """Make the body of a push: streams with their values in order of time, gzip."""
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
    # Level 1: a third of the time of level 6 for a tenth more bytes, as log lines are alike.
    return gzip.compress(json.dumps(data, separators=(",", ":")).encode(), 1)


class Verdict(Enum):
    """The fate of a batch."""

    SENT = "sent"
    RETRY = "retry"
    DROP = "drop"


def judge(status: int) -> Verdict:
    """Return the fate of a batch by the status of the answer.

    2xx has taken it; 429, 408 and 5xx may take it later.  Any other status refuses the batch
    itself, and a second try would be refused as well.
    """
    if 200 <= status < 300:
        return Verdict.SENT
    return Verdict.RETRY if status in (408, 429) or status >= 500 else Verdict.DROP


def pause(config: Loki, tries: int, retry_after: str | None, now: float) -> float:
    """Return the seconds until the next try.

    Args:
        config: has the back-off.
        tries: count of the tries so far.
        retry_after: the header: seconds, or a date.
        now: time.time().
    """
    wait = min(config.backoff * 2.0 ** min(tries - 1, 30), config.backoff_cap)
    requested = 0.0
    if retry_after is not None:
        if retry_after.strip().isdigit():
            requested = float(retry_after)
        else:
            try:
                requested = email.utils.parsedate_to_datetime(retry_after).timestamp() - now
            except ValueError:
                pass  # not a date: ignored
    return min(max(wait, requested), max(_LONGEST_WAIT, config.backoff_cap))
