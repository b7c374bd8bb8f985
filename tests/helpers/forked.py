"""Children of os.fork that return a result, or hold our descriptors."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from typing import TypeVar

from pyforkfd.doctor._children import holding
from pyforkfd.doctor._experiments import fork

__all__ = ["holding", "in_child"]

T = TypeVar("T")


def in_child(function: Callable[[], T], meanwhile: Callable[[], object] = int) -> T:
    """Call a function in a forked child, and return its result; its exception fails the test.

    Args:
        function: for the child.
        meanwhile: called in this process once the child is forked.
    """
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        status = 1
        try:
            result: tuple[bool, object] = (True, function())
            status = 0
        except BaseException:
            result = (False, traceback.format_exc())
        with open(writer, "wb") as file:
            pickle.dump(result, file)
        os._exit(status)
    os.close(writer)
    try:
        meanwhile()
        with open(reader, "rb", closefd=False) as file:
            data = file.read()
    finally:
        os.close(reader)
        os.waitpid(pid, 0)
    assert data, "the child ended without a result"
    good, value = pickle.loads(data)
    assert good, f"in the child:\n{value}"
    return value  # type: ignore[no-any-return]
