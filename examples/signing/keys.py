"""The only process that has the key: it signs what it is sent, a line each."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import signal
from contextlib import suppress
from pathlib import Path

from pyforkfd.supervisor import worker

KEY = Path("signing.key")


class Keys:
    """The key in use, and the file that it comes from."""

    def __init__(self) -> None:
        self._key = KEY.read_bytes()

    def load(self) -> None:
        """Take the new one; whatever is wrong with it, the old one goes on to serve."""
        try:
            self._key = KEY.read_bytes()
        except OSError as error:
            print(f"keys: the old key stays: {error}", flush=True)

    def sign(self, message: bytes) -> str:
        name = hashlib.sha256(self._key).hexdigest()[:8]
        return f"{name} {hmac.new(self._key, message, hashlib.sha256).hexdigest()}"


async def answer(keys: Keys, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(keys.sign(line.rstrip(b"\n")).encode() + b"\n")
            await writer.drain()
    writer.close()


async def run(me: worker.Worker) -> None:
    keys = Keys()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR2, keys.load)
    enough = asyncio.Event()
    for order in ("drain", "orphaned"):
        me.on(order, lambda _: enough.set())
    (listener,) = me.listeners().values()
    server = await asyncio.start_unix_server(lambda r, w: answer(keys, r, w), sock=listener)
    me.attach()
    me.ready()
    await enough.wait()
    server.close()
    me.detach()


if __name__ == "__main__":
    me = worker.current()
    assert me is not None, "run by a supervisor"
    asyncio.run(run(me))
