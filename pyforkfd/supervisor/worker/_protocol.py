"""The encoding of messages between a supervisor and its workers: JSON, with a version.

A message is one packet of the worker's channel: a JSON object in UTF-8 of at most
:data:`MAX_MESSAGE` bytes.  It has its name, ``"order"`` from the supervisor or ``"event"`` from
the worker; the fields of its type; ``"version"``; and ``"fds"``, the names of the descriptors
that come with it.  Other members are ignored.  A message without a version is of version 1, so
that a worker in another language need not state it.

Both ends of the channel import this module, and nothing else spells the name of a message.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ._messages import (
    Accept,
    BufferLogs,
    Collect,
    Drain,
    EventMessage,
    FlushLogs,
    Listeners,
    LogSwitched,
    Message,
    OrderMessage,
    Pause,
    Peer,
    Ready,
    Resume,
    ResumeAccepting,
    Return,
    Status,
    StopAccepting,
    Stopping,
    SwitchLog,
)

if TYPE_CHECKING:
    from pyforkfd._fd import Fd
    from pyforkfd._passing import Received

VERSION = 1
"""Raised when an end of the last version would misunderstand; new messages need no other."""

MAX_MESSAGE = 65536
"""The longest message, in bytes: as much as an :class:`~pyforkfd.FdChannel` receives."""

ORPHANED = "orphaned"
"""The order that a worker delivers to its own callbacks when the supervisor is gone."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may have it, UTF-8 may not

M = TypeVar("M", bound=OrderMessage | EventMessage)


class ProtocolError(ValueError):
    """A message that is malformed, unknown, of another version, or did not arrive whole."""


_ORDERS: dict[str, type[OrderMessage]] = {
    "drain": Drain,
    "pause": Pause,
    "resume": Resume,
    "stop_accepting": StopAccepting,
    "resume_accepting": ResumeAccepting,
    "accept": Accept,
    "return": Return,
    "listeners": Listeners,
    "collect": Collect,
    "buffer_logs": BufferLogs,
    "flush_logs": FlushLogs,
    "log": SwitchLog,
    "peer": Peer,
    "message": Message,
}
_EVENTS: dict[str, type[EventMessage]] = {
    "ready": Ready,
    "stopping": Stopping,
    "status": Status,
    "log": LogSwitched,
    "message": Message,
}
_ORDER_NAMES = {kind: name for name, kind in _ORDERS.items()}
_EVENT_NAMES = {kind: name for name, kind in _EVENTS.items()}
_WITH_DESCRIPTORS = (Accept, Return, Listeners, SwitchLog)

ORDER_NAMES = frozenset({*_ORDERS, ORPHANED})
"""The orders that a callback of a worker can be registered for."""


@dataclass(frozen=True, slots=True)
class Order:
    """An order as the callbacks of a worker receive it.

    Attributes:
        name: "drain", "pause", ...
        body: the whole message.
        fds: name -> descriptor that came with it.  Closed when all callbacks have returned;
            ``detach()`` those that are to stay open.
    """

    name: str
    body: Mapping[str, Any]
    fds: Mapping[str, Fd]


def order(name: str) -> OrderMessage:
    """Return the order of a name, for orders without fields.

    Raises:
        ProtocolError: there is no such order.
    """
    return order_of({"order": name})


def order_name(message: OrderMessage) -> str:
    """Return the name of an order."""
    return _ORDER_NAMES[type(message)]


def encode_order(message: OrderMessage, fds: Collection[str] = ()) -> bytes:
    """Encode an order.

    Args:
        message: the order.
        fds: names of the descriptors that go with it, in their order.

    Raises:
        ValueError: the data of the message is no JSON, or the message is longer than
            MAX_MESSAGE.
    """
    names = {"fds": list(fds)} if fds else {}
    return _encode("order", order_name(message), {**_values(message), **names})


def encode_event(message: EventMessage) -> bytes:
    """Encode an event.

    Raises:
        ValueError: the data of the message is no JSON, or the message is longer than
            MAX_MESSAGE.
    """
    return _encode("event", _EVENT_NAMES[type(message)], _values(message))


def event_body(message: EventMessage) -> dict[str, Any]:
    """Return an event as plain values, for a program that encodes by itself."""
    return {"event": _EVENT_NAMES[type(message)], **_values(message)}


def order_of(body: Mapping[str, Any]) -> OrderMessage:
    """Decode an order whose JSON is parsed already.

    Raises:
        ProtocolError: the order is malformed, unknown or of another version.
    """
    return _build(_ORDERS, body, "order")


def is_order(body: Mapping[str, Any]) -> bool:
    """Whether a parsed message has the name of an order that is known here."""
    return isinstance(name := body.get("order"), str) and name in _ORDERS


def decode_order(received: Received) -> tuple[OrderMessage, Order]:
    """Decode an order.

    Returns:
        The order as a typed value, and as callbacks receive it; its descriptors stay owned by
        the message.

    Raises:
        ProtocolError: the message is malformed, unknown or of another version, or came with
            other descriptors than the order has.
    """
    body = _parse(received.data)
    message = _build(_ORDERS, body, "order")
    names, count = body.get("fds", []), len(received.fds)
    expected = len(names) if isinstance(names, list) else -1
    if expected != count or not all(isinstance(name, str) for name in names):
        raise ProtocolError(f"order {body['order']}: {count} descriptors for {reprlib.repr(names)}")
    if count and not isinstance(message, _WITH_DESCRIPTORS):
        raise ProtocolError(f"order {body['order']}: {count} descriptors: it has none")
    if isinstance(message, SwitchLog) and count != 1:
        raise ProtocolError(f"order {body['order']}: {count} descriptors: it has one")
    fds = dict(zip(names, received.fds, strict=True))
    return message, Order(body["order"], body, fds)


def decode_event(received: Received) -> EventMessage:
    """Decode an event.

    Raises:
        ProtocolError: the message is malformed, unknown or of another version, or came with
            descriptors.
    """
    body = _parse(received.data)
    message = _build(_EVENTS, body, "event")
    if received.fds:
        count = len(received.fds)
        raise ProtocolError(f"event {body['event']}: {count} descriptors: it has none")
    return message


def orphaned() -> Order:
    """Return the order for a worker's own callbacks when the supervisor is gone."""
    return Order(ORPHANED, {"order": ORPHANED}, {})


def demand_version(version: object) -> None:
    """Check the version that the other end states.

    Raises:
        ProtocolError: it is not the version of this module.
    """
    if type(version) is not int or version != VERSION:
        raise ProtocolError(
            f"the other end has version {reprlib.repr(version)} of the protocol, this end "
            f"{VERSION}: supervisor and worker need the same pyforkfd"
        )


def _values(message: OrderMessage | EventMessage) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in fields(message)}


def _encode(key: str, name: str, values: Mapping[str, Any]) -> bytes:
    body = {key: name, **values, "version": VERSION}
    try:
        data = json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{key} {name}: cannot be sent as JSON: {error}") from None
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"{key} {name}: {len(data)} bytes: at most {MAX_MESSAGE} can be sent")
    return data


def _parse(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data.decode(), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ProtocolError(f"not JSON: {data[:80]!r}: {error!s:.80}") from None
    if not isinstance(body, dict):
        raise ProtocolError(f"not an object: {data[:80]!r}")
    return body


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is too large")
    return number


def _build(kinds: Mapping[str, type[M]], body: Mapping[str, Any], key: str) -> M:
    demand_version(body.get("version", 1))
    name = body.get(key)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError(f"unknown {key}: {reprlib.repr(name)}")
    values = {}
    for field in fields(kind):
        if field.name not in body:
            raise ProtocolError(f"{key} {name}: {field.name} is missing")
        values[field.name] = value = body[field.name]
        if not _is_of(value, str(field.type)):
            found = f"{field.name}={reprlib.repr(value)}"
            raise ProtocolError(f"{key} {name}: {found} is not of type {field.type}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ProtocolError(f"{key} {name}: {error}") from None


def _is_of(value: object, kind: str) -> bool:
    if kind == "int":  # all are counts; a bool is none
        return type(value) is int and 0 <= value < 1 << 63
    if kind == "str":
        return isinstance(value, str) and _LONE_SURROGATE.search(value) is None
    return True
