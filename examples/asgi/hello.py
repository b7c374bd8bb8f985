"""Answer with the worker's identity; /block blocks the loop, and the supervisor evicts it."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pyforkfd.supervisor import worker

Message = MutableMapping[str, Any]


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    if scope["path"] == "/block":
        time.sleep(3600)  # blocks the loop, as no coroutine should
    me = worker.current()
    who = "no supervisor" if me is None else f"worker {me.number}, generation {me.generation}"
    body = f"hello from {who}, pid {os.getpid()}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
