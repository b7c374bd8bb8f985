"""Children of os.fork that tell what they saw, or just hold what they have."""

from __future__ import annotations

import contextlib
import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # beside threads
        return os.fork()


def in_child(look: Callable[[], T], meanwhile: Callable[[], object] = int) -> T:
    """What `look` returns in a forked child; its error is ours.  We do `meanwhile`."""
    reader, writer = os.pipe()
    pid = _fork()
    if pid == 0:
        status = 1
        try:
            said: tuple[bool, object] = (True, look())
            status = 0
        except BaseException:
            said = (False, traceback.format_exc())
        with open(writer, "wb") as file:
            pickle.dump(said, file)
        os._exit(status)
    os.close(writer)
    try:
        meanwhile()
        with open(reader, "rb", closefd=False) as file:
            told = file.read()
    finally:
        os.close(reader)
        os.waitpid(pid, 0)
    assert told, "the child ended without a word"
    good, value = pickle.loads(told)
    assert good, f"in the child:\n{value}"
    return value  # type: ignore[no-any-return]


@contextlib.contextmanager
def holding() -> Iterator[int]:
    """A fork of this process, its pid, that holds what we held until the block's end."""
    reader, writer = os.pipe()
    pid = _fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        yield pid
    finally:
        os.close(writer)
        os.waitpid(pid, 0)
