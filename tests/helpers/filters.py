"""Seccomp filters that refuse what a sandbox may refuse."""

from __future__ import annotations

import struct

CLOSE_RANGE = 436  # on every architecture


def refuse(numbers: list[int], err: int) -> bytes:
    """A BPF program: these system calls return err, all others are allowed."""
    code = [(0x20, 0, 0, 0)]  # load the system call's number
    for i, number in enumerate(numbers):
        code.append((0x15, len(numbers) - i, 0, number))
    code += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | err)]
    return b"".join(struct.pack("=HBBI", *line) for line in code)
