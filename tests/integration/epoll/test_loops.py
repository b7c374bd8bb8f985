"""asyncio in the child of a fork: what reinit_loop makes usable, and what it says of the rest."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from forked import in_child

import pyforkfd as ff

Make = Callable[[], asyncio.AbstractEventLoop]


def stock() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.EpollSelector())


@pytest.fixture(params=[ff.new_event_loop, stock])
def loop(request: pytest.FixtureRequest) -> Iterator[Any]:
    with closing(request.param()) as made:
        yield made


def woken(loop: Any) -> bool:
    """Whether the loop's self-pipe wakes it."""
    loop._write_to_self()
    seen = bool(loop._selector.select(0))
    loop._read_from_self()
    return seen


def test_a_runner_on_our_loop() -> None:
    async def main() -> tuple[str, str]:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
        selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
        return type(selector).__name__, await asyncio.to_thread(lambda: "thread")

    with asyncio.Runner(loop_factory=ff.new_event_loop) as runner:
        assert runner.run(main()) == ("ForkSafeSelector", "thread")


def test_without_it_child_and_parent_share_the_self_pipe() -> None:
    """The story: a byte that is meant for the parent is read by the child."""
    made: Any = ff.new_event_loop()
    with closing(made) as loop:
        loop._write_to_self()
        in_child(loop._read_from_self)  # as it does when it runs
        assert not loop._selector.select(0), "stolen"


def test_an_idle_loop_goes_on_in_both(loop: Any) -> None:
    one, other = socket.socketpair()
    with one, other:
        heard: list[bytes] = []

        def hear() -> None:
            heard.append(one.recv(1))
            loop.stop()

        loop.add_reader(one, hear)

        def child() -> tuple[object, ...]:
            same = ff.reinit_loop(loop) is loop
            threading.Thread(target=loop.call_soon_threadsafe, args=[loop.stop]).start()
            loop.run_forever()
            drift = ff.audit(loop)
            loop.remove_reader(one)
            loop.close()
            return same, drift

        assert in_child(child) == (True, [])
        other.send(b"x")
        loop.run_forever()
        assert heard == [b"x"] and ff.audit(loop) == [] and woken(loop)
        loop.remove_reader(one)


def test_the_childs_wake_ups_are_its_own(loop: Any) -> None:
    loop._write_to_self()

    def child() -> tuple[bool, ...]:
        ff.reinit_loop(loop)
        calm = not loop._selector.select(0)
        return calm, woken(loop)

    assert in_child(child) == (True, True)
    assert loop._selector.select(0), "still ours to read"
    loop._read_from_self()


def test_from_the_coroutine_that_forked(loop: Any) -> None:
    """It goes on in both processes, each on its own."""

    async def main() -> str:
        def child() -> str:
            ff.reinit_loop()
            assert asyncio.get_running_loop() is loop
            return "child"

        # What in_child() runs cannot await; the fork below returns into the coroutine.
        told = in_child(child)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                ff.reinit_loop()
                await asyncio.sleep(0.001)
                value = await loop.run_in_executor(None, lambda: "threads")
                os.write(writer, f"{told} goes on with {value}".encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader) as file:
            said = await loop.run_in_executor(None, file.read)
        os.waitpid(pid, 0)
        return str(said)

    assert loop.run_until_complete(main()) == "child goes on with threads"
    loop.run_until_complete(loop.shutdown_default_executor())


def test_the_default_executor_is_not_waited_for(loop: Any) -> None:
    """Its threads are the parent's; a stock loop hands work to nobody."""

    def work() -> object:
        return loop.run_until_complete(loop.run_in_executor(None, os.getpid))

    assert work() == os.getpid()
    assert in_child(lambda: ff.reinit_loop(loop) is loop and work() == os.getpid())
    assert isinstance(loop._default_executor, ThreadPoolExecutor)
    loop.run_until_complete(loop.shutdown_default_executor())


def test_signals_wake_the_loop_of_the_process_that_got_them(loop: Any) -> None:
    seen: list[int] = []

    def handler() -> None:
        seen.append(os.getpid())
        loop.stop()

    loop.add_signal_handler(signal.SIGUSR1, handler)
    try:

        def child() -> bool:
            ff.reinit_loop(loop)
            os.kill(os.getpid(), signal.SIGUSR1)
            loop.run_forever()
            return seen == [os.getpid()]

        assert in_child(child)
        assert not loop._selector.select(0) and seen == []
        os.kill(os.getpid(), signal.SIGUSR1)
        loop.run_forever()
        assert seen == [os.getpid()]
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


def test_somebody_elses_wake_up_descriptor_stays(loop: Any) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)

        def child() -> bool:
            signal.set_wakeup_fd(one.fileno())
            ff.reinit_loop(loop)
            return signal.set_wakeup_fd(-1) == one.fileno()

        assert in_child(child)


def test_listeners_stay_and_connections_are_named(loop: Any) -> None:
    class Echo(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data + b" from " + str(os.getpid()).encode())

    server = loop.run_until_complete(loop.create_server(Echo, "127.0.0.1", 0))
    address = server.sockets[0].getsockname()

    def turn(client: socket.socket) -> bytes:
        client.send(b"hello")
        return bytes(loop.run_until_complete(loop.run_in_executor(None, client.recv, 100)))

    with socket.create_connection(address) as client:
        assert turn(client).startswith(b"hello from")

        def refused() -> str:
            with pytest.raises(RuntimeError) as error:
                ff.reinit_loop(loop)
            return str(error.value)

        assert "is the parent's connection too" in in_child(refused)

        def closes() -> tuple[bytes, int]:
            ff.reinit_loop(loop, transports="close")
            with socket.create_connection(address) as mine:
                return turn(mine), len(loop._transports)

        assert in_child(closes)[0].startswith(b"hello from")
        assert turn(client) == b"hello from %d" % os.getpid(), "the peer has not noticed"

        def keeps() -> bytes:
            ff.reinit_loop(loop, transports="keep")
            return turn(client)

        assert in_child(keeps).startswith(b"hello from")
    server.close()
    loop.run_until_complete(server.wait_closed())
    loop.run_until_complete(loop.shutdown_default_executor())


def test_children_that_are_waited_for_are_named(loop: Any) -> None:
    async def main() -> str:
        process = await asyncio.create_subprocess_exec("sleep", "60")
        try:

            def child() -> str:
                with pytest.raises(RuntimeError) as error:
                    ff.reinit_loop(loop)
                ff.reinit_loop(loop, transports="close")
                return str(error.value)

            return in_child(child)
        finally:
            process.kill()
            await process.wait()

    asyncio.set_event_loop(loop)  # the child watchers of 3.11 look there
    try:
        assert "of the parent" in loop.run_until_complete(main())
    finally:
        asyncio.set_event_loop(None)


# What cannot be.


def refusal(child: Callable[[], object]) -> str:
    def look() -> str:
        with pytest.raises((RuntimeError, TypeError)) as error:
            child()
        return f"{type(error.value).__name__}: {error.value}"

    return in_child(look)


def test_only_in_a_child(loop: Any) -> None:
    with pytest.raises(RuntimeError, match="this process was not forked"):
        ff.reinit_loop(loop)


def test_nobodys_loop_a_closed_loop_and_others_loops(loop: Any) -> None:
    foreign: Any = type("Foreign", (asyncio.AbstractEventLoop,), {"is_closed": lambda self: False})
    closed = ff.new_event_loop()
    closed.close()
    assert "no loop ran on the thread that forked" in refusal(ff.reinit_loop)
    assert "is closed" in refusal(lambda: ff.reinit_loop(closed))
    assert "Foreign is none of asyncio's" in refusal(lambda: ff.reinit_loop(foreign()))
    with pytest.raises(ValueError, match="refuse, close, keep"):
        ff.reinit_loop(loop, transports="drop")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Foreign does not show its selector"):
        ff.audit(foreign())


@pytest.mark.parametrize("name", ["_csock", "_make_self_pipe", "_internal_fds"])
def test_an_interpreter_that_is_not_known(loop: Any, name: str) -> None:
    def child() -> None:
        if name == "_make_self_pipe":
            delattr(type(loop).__mro__[1], name)
        else:
            setattr(loop, name, None)
        ff.reinit_loop(loop)

    assert f"has no {name} that is known here" in refusal(child)


def test_a_loop_of_another_thread(loop: Any) -> None:
    running = threading.Event()
    loop.call_soon(running.set)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    running.wait()
    try:
        assert "it ran on another thread" in refusal(lambda: ff.reinit_loop(loop))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_a_descriptor_that_was_closed_on_a_stock_loop() -> None:
    with closing(stock()) as loop:
        one, other = socket.socketpair()
        with other:
            loop.add_reader(one, int)
            number = one.fileno()
            one.close()
            wanted = f"descriptor {number} is registered, but closed"

            def child() -> None:
                os.dup2(0, number)  # what tells of it has taken the number
                os.close(number)
                ff.reinit_loop(loop)

            assert wanted in refusal(child)
            loop.remove_reader(number)


def test_a_loop_on_poll_needs_no_other_selector() -> None:
    with closing(asyncio.SelectorEventLoop(selectors.PollSelector())) as loop:

        def child() -> tuple[str, bool]:
            ff.reinit_loop(loop)
            return type(loop._selector).__name__, woken(loop)  # type: ignore[attr-defined]

        assert in_child(child) == ("PollSelector", True)
        with pytest.raises(TypeError, match="PollSelector has no watch set in the kernel"):
            ff.audit(loop)
