"""What importing us gives, and what it leaves to those who ask for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pyforkfd as ff


def run(code: str) -> str:
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_who_imports_us_does_not_pay_for_asyncio() -> None:
    code = "import sys, pyforkfd; print(*sys.modules)"
    assert not {"asyncio", "ssl", "subprocess", "logging"} & set(run(code).split())


def test_neither_does_a_zygote_whose_workers_would_all_have_it() -> None:
    code = "import sys, pyforkfd.zygote._serve; print(*sys.modules)"
    assert not {"asyncio", "ssl", "logging"} & set(run(code).split())


def test_what_is_on_asyncio_comes_when_it_is_asked_for() -> None:
    code = "from pyforkfd import *; import sys; print('asyncio' in sys.modules, new_event_loop)"
    assert run(code).startswith("True <function new_event_loop")
    assert set(ff.__all__) <= set(dir(ff))
    for name in ff.__all__:
        assert getattr(ff, name) is vars(ff)[name]


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match=r"'pyforkfd' has no attribute 'no_such_name'"):
        _ = ff.no_such_name  # type: ignore[attr-defined]


def test_a_child_may_be_the_first_to_ask() -> None:
    """What a loop needs in the child of a fork knows a child from who imported us."""
    code = """
import asyncio, os, pyforkfd
async def main():
    if os.fork() == 0:
        print(pyforkfd.reinit_loop() is asyncio.get_running_loop(), flush=True)
        os._exit(0)
    os.wait()
asyncio.run(main())
"""
    assert run(code) == "True\n"
