"""Parents of a given size and number of open descriptors, which measure the ways."""

from __future__ import annotations

import json
import mmap
import os
import random
import resource
import sys
from dataclasses import dataclass

from blocks import BlockProcess
from ways import FORKING, TRUE, all_ways

WARM_UP = 2  # rounds of each block that are not counted


@dataclass(frozen=True, slots=True)
class Parent:
    """A parent: touched memory in MB, extra open descriptors, and the program that it starts."""

    megabytes: int = 0
    descriptors: int = 0
    program: str = TRUE

    def __str__(self) -> str:
        return f"{self.megabytes} MB, {self.descriptors} descriptors"


def touch(megabytes: int) -> mmap.mmap | None:
    """Map private memory, and write every page once; none of them is huge."""
    if megabytes == 0:
        return None
    size = megabytes << 20
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    except OSError:
        pass  # a kernel without huge pages
    for offset in range(0, size, mmap.PAGESIZE):
        memory[offset] = 1
    return memory


def allow_descriptors(wanted: int) -> int:
    """Raise the limit for us and our children; return how many extra descriptors it allows."""
    spare = 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted + spare:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, wanted + spare))
            hard = wanted + spare
        except (OSError, ValueError):
            pass  # neither privileged nor below fs.nr_open
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, wanted + spare)), hard))
    return min(wanted, hard - spare)


def open_descriptors(count: int) -> None:
    """Open so many more descriptors, close-on-exec as all of Python's; they stay open."""
    for _ in range(count):
        os.open(os.devnull, os.O_RDONLY)


class Worker(BlockProcess):
    """A parent in a process of its own, which sleeps between blocks of rounds."""

    def __init__(self, parent: Parent) -> None:
        size = [str(parent.megabytes), str(parent.descriptors)]
        super().__init__([__file__, *size, parent.program])
        self.run(0)  # returns when the parent has its size

    def run(self, rounds: int) -> dict[str, list[int]]:
        """Run one block of rounds, and return the nanoseconds of each way."""
        times: dict[str, list[int]] = self.request(str(rounds))
        return times


def serve(parent: Parent) -> None:
    """Serve blocks, as the process of a Worker: a number of rounds in, their times out."""
    memory = touch(parent.megabytes)
    open_descriptors(parent.descriptors)
    ways = all_ways(parent.program)
    for line in sys.stdin:
        rounds = int(line)
        times: dict[str, list[int]] = {name: [] for name in ways}
        # Forks leave our pages write-protected for the next way: they come last.
        for group in (ways.keys() - FORKING, ways.keys() & FORKING):
            for number in range(rounds + WARM_UP if rounds else 0):
                for name in random.sample(sorted(group), len(group)):
                    taken = ways[name]()
                    if number >= WARM_UP:
                        times[name].append(taken)
        print(json.dumps(times), flush=True)
    del memory


if __name__ == "__main__":
    serve(Parent(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
