"""Workers for tests of pyforkfd.supervisor.worker, driven in each of the three ways."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable

from pyforkfd.supervisor import worker
from pyforkfd.supervisor.worker import Order, Worker


def serve(way: str) -> None:
    """Answer each connection with the worker's identity; send each order back as a message."""
    me = worker.current()
    assert me is not None and me is worker.current()
    me.setup_logging()
    ended = threading.Event()
    own = list(me.listeners().values())

    def on_order(order: Order) -> None:
        details = {k: v for k, v in order.body.items() if k != "order"}
        me.send({"order": order.name, "accepting": me.accepting, **details})

    for name in ("pause", "resume", "drain", "peer", "message", "collect"):
        me.on(name, on_order)
    me.on("drain", lambda _: ended.set())
    me.on("orphaned", lambda _: ended.set())
    me.send({"order": "born", "pid": os.getpid()})
    WAYS[way](me, own, ended)


def greet(listener: socket.socket, me: Worker) -> None:
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return
    with connection:
        connection.sendall(f"{me.component} {me.position} {me.generation} {os.getpid()}".encode())


def by_poll(me: Worker, listeners: list[socket.socket], ended: threading.Event) -> None:
    for listener in listeners:
        listener.setblocking(False)
    me.ready("polling")
    while not ended.is_set():
        me.poll(timeout=0.01)
        if me.accepting:
            for listener in listeners:
                greet(listener, me)


def by_thread(me: Worker, listeners: list[socket.socket], ended: threading.Event) -> None:
    for listener in listeners:
        listener.setblocking(False)
    me.start_thread()
    me.ready("threaded")
    while not ended.wait(0.01):
        if me.accepting:
            for listener in listeners:
                greet(listener, me)
    me.detach()


def by_loop(me: Worker, listeners: list[socket.socket], ended: threading.Event) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        me.on("drain", lambda _: over.set())
        for listener in listeners:
            listener.setblocking(False)
            loop.add_reader(listener, greet, listener, me)

        def paused(_: Order) -> None:
            for listener in listeners:
                loop.remove_reader(listener)

        def resumed(_: Order) -> None:
            for listener in listeners:
                loop.add_reader(listener, greet, listener, me)

        me.on("pause", paused)
        me.on("resume", resumed)
        me.attach()
        me.ready("looping")
        await over.wait()
        me.detach()

    asyncio.run(run())


WAYS: dict[str, Callable[[Worker, list[socket.socket], threading.Event], None]] = {
    "poll": by_poll,
    "thread": by_thread,
    "loop": by_loop,
}


def stuck(then: str) -> None:
    """Become ready with a heartbeat, and then block for ever."""
    me = worker.current()
    assert me is not None
    me.attach(loop := asyncio.new_event_loop())
    me.ready()
    loop.call_soon(blocks_for_ever)
    loop.run_forever()


def blocks_for_ever() -> None:
    threading.Event().wait()
