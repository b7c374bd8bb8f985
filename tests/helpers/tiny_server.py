"""A worker that uses only LISTEN_FDS and NOTIFY_SOCKET, and serves one request at a time.

Arguments: its answer before its pid; then any of: silent (does not notify its readiness), hangs
(blocks before it is ready), breaks (exits 3 before it is ready), speaks (takes orders from its
channel after all).
"""

import json
import os
import re
import select
import signal
import socket
import sys
import time

ANSWER, *HOW = sys.argv[1:]
START = int(os.environ.get("FIRST", "3"))
COUNT = int(os.environ.get("LISTEN_FDS", "1"))


def ready() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(os.environ["NOTIFY_SOCKET"])
        manager.send(f"READY=1\nSTATUS={ANSWER}".encode())


def serve(listener: socket.socket, answer: str) -> None:
    if listener.type == socket.SOCK_DGRAM:
        try:
            _, sender = listener.recvfrom(100)
        except BlockingIOError:
            return
        listener.sendto(f"{answer} {os.getpid()}".encode(), sender)
        return
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return  # another worker was faster
    connection.setblocking(True)
    with connection:
        if connection.recv(100):
            connection.sendall(f"{answer} {os.getpid()}".encode())


def hang_in_here() -> None:
    time.sleep(3600)


class Worker:
    def __init__(self) -> None:
        self.answer = ANSWER
        self.woken, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, lambda *_: None)
        self.poll = select.poll()
        self.poll.register(self.woken, select.POLLIN)
        numbers = range(START, START + COUNT)
        self.listeners = {number: socket.socket(fileno=number) for number in numbers}
        for listener in self.listeners.values():
            listener.setblocking(False)
        self.pause(False)
        self.channel: socket.socket | None = None

    def pause(self, on: bool) -> None:
        for number in self.listeners:
            if on:
                self.poll.unregister(number)
            else:
                self.poll.register(number, select.POLLIN)

    def speak(self) -> None:
        found = re.search(r"channel=(\d+)", os.environ["FORKFD_WORKER"])
        assert found is not None
        self.channel = socket.socket(fileno=int(found[1]))
        self.channel.send(json.dumps({"event": "ready"}).encode())
        self.poll.register(self.channel, select.POLLIN)

    def run(self) -> None:
        while True:
            found = [number for number, _ in self.poll.poll()]
            if self.woken in found:
                for sent in os.read(self.woken, 100):
                    if sent == signal.SIGTERM:
                        return  # nothing is begun
                    self.answer = f"signal-{sent}"
            if self.channel is not None and self.channel.fileno() in found:
                order = json.loads(self.channel.recv(4096))["order"]
                if order == "drain":
                    return
                self.pause(order == "pause")
                continue
            for number in found:
                if number in self.listeners:
                    serve(self.listeners[number], self.answer)


def main() -> None:
    if "breaks" in HOW:
        sys.exit(3)
    if "hangs" in HOW:
        hang_in_here()
    worker = Worker()
    if "speaks" in HOW:
        worker.speak()
    elif "silent" not in HOW:
        ready()
    worker.run()


main()
