"""A worker that logs as fast as it can while one of its threads obeys the supervisor.

Arguments: the least number of records; how many turns to obey before the end.
"""

import json
import logging
import os
import sys
import threading

import pyforkfd as ff
from pyforkfd.supervisor import ForkfdHandler, RecordWriter, log_writer, obey

records, turns = int(sys.argv[1]), int(sys.argv[2])
values = dict(part.split("=") for part in os.environ["FORKFD_WORKER"].split())
enough = threading.Event()


def listen(channel: ff.FdChannel, writer: RecordWriter) -> None:
    turn = 0
    while turn < turns:
        with channel.recv() as received:
            done = obey(writer, json.loads(received.data), received.fds)
        assert done is not None
        turn = done["turn"]
        channel.send(json.dumps(done).encode())
    enough.set()


writer = log_writer()
assert writer is not None
with ff.FdChannel(int(values["channel"])) as channel:
    thread = threading.Thread(target=listen, args=(channel, writer))
    thread.start()
    log = logging.getLogger("work")
    log.setLevel(logging.INFO)
    log.addHandler(ForkfdHandler(writer))
    number = 0
    while number < records or not enough.is_set():
        log.info("record %d%s", number, "\nof two lines" * (number % 7 == 0))
        number += 1
    thread.join()
    channel.send(json.dumps({"wrote": number}).encode())
