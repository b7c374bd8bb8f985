"""Sign the path of a request: by the keys component, or by a local key while that is down.

A local signature is marked as such: a service may prefer a weaker answer to waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pyforkfd.supervisor import worker

PATIENCE = 1.0

Message = MutableMapping[str, Any]


class Signer:
    """One connection to the keys component, made again whenever the component is up again."""

    def __init__(self, me: worker.Worker) -> None:
        self._me = me
        self._own_key = os.urandom(32)
        self._lock = asyncio.Lock()  # one request at a time on the connection
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        me.on("peer", lambda order: self._disconnect())

    def _disconnect(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None

    async def sign(self, message: str) -> str:
        if self._me.peers.get("keys", 0):
            try:
                async with self._lock, asyncio.timeout(PATIENCE):
                    return await self._request(message)
            except (OSError, EOFError, TimeoutError):
                self._disconnect()  # it has just died, and the order "peer" has not come yet
        signature = hmac.new(self._own_key, message.encode(), hashlib.sha256).hexdigest()
        return f"local {signature}"

    async def _request(self, message: str) -> str:
        if self._stream is None:
            self._stream = await asyncio.open_unix_connection(os.environ["SIGNING_SOCKET"])
        reader, writer = self._stream
        writer.write(message.encode() + b"\n")
        line = await reader.readline()
        if not line:
            raise EOFError("the keys component has closed the connection")
        return line.decode().rstrip()


signer: Signer | None = None


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    assert signer is not None
    body = (await signer.sign(scope["path"])).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def lifespan(
    receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    global signer
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            me = worker.current()
            assert me is not None, "run by a supervisor"
            signer = Signer(me)
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
