"""The only process that has the key: signs each line that it receives."""

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
    """The key in use, read from a file."""

    def __init__(self) -> None:
        self._key = KEY.read_bytes()

    def load(self) -> None:
        """Read the new key; retain the old one if that fails."""
        try:
            self._key = KEY.read_bytes()
        except OSError as error:
            print(f"keys: {error}: the old key stays in use", flush=True)

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
    stop = asyncio.Event()
    for order in ("drain", "orphaned"):
        me.on(order, lambda _: stop.set())
    (listener,) = me.listeners().values()
    server = await asyncio.start_unix_server(lambda r, w: answer(keys, r, w), sock=listener)
    me.attach()
    me.ready()
    await stop.wait()
    server.close()
    me.detach()


if __name__ == "__main__":
    me = worker.current()
    assert me is not None, "run by a supervisor"
    asyncio.run(run(me))
