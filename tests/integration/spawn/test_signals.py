"""Mask and dispositions that the child begins with."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Children, bits

import pyforkfd as ff

REAL_TIME = 40
ALL = range(1, 65)
PYTHONS = bits([signal.SIGPIPE, signal.SIGXFSZ])


@pytest.fixture
def ours() -> Iterator[None]:
    """We handle USR1, ignore USR2 and a real-time signal, and block WINCH."""
    saved = {s: signal.getsignal(s) for s in (signal.SIGUSR1, signal.SIGUSR2, REAL_TIME)}
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(REAL_TIME, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for sig, handler in saved.items():
        signal.signal(sig, handler)


def our_status(field: str) -> int:
    """SigBlk or SigIgn: whoever started the tests may have left us some."""
    status = Path("/proc/thread-self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0], 16)


@pytest.mark.usefixtures("ours")
def test_as_we_have_them(children: Children) -> None:
    seen = children.look()
    assert seen["handled"] == 0
    # Python ignores PIPE and XFSZ; a fresh program expects neither.
    assert our_status("SigIgn") & PYTHONS == PYTHONS
    assert seen["ignored"] == our_status("SigIgn") & ~PYTHONS
    assert seen["ignored"] & bits([signal.SIGUSR2, REAL_TIME]) == bits([signal.SIGUSR2, REAL_TIME])
    assert seen["blocked"] == our_status("SigBlk")
    assert seen["blocked"] & bits([signal.SIGWINCH])


@pytest.mark.usefixtures("ours")
def test_reset_to_default(children: Children) -> None:
    assert children.look(default_signals=ALL)["ignored"] == 0
    seen = children.look(default_signals=[signal.SIGUSR2])
    assert seen["ignored"] == our_status("SigIgn") & ~bits([signal.SIGUSR2])
    assert seen["ignored"] & PYTHONS == PYTHONS


@pytest.mark.usefixtures("ours")
def test_ignored(children: Children) -> None:
    wanted = [signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE, 33]
    seen = children.look(ignore_signals=wanted, default_signals=ALL)
    assert seen["ignored"] == bits(wanted)


@pytest.mark.usefixtures("ours")
def test_mask(children: Children) -> None:
    assert children.look(signal_mask=[])["blocked"] == 0
    wanted = [signal.SIGTERM, 32, 33, 64]
    assert children.look(signal_mask=wanted)["blocked"] == bits(wanted)
    unmaskable = bits([signal.SIGKILL, signal.SIGSTOP])
    assert children.look(signal_mask=ALL)["blocked"] == bits(ALL) & ~unmaskable


def test_a_handler_of_c_is_reset(children: Children) -> None:
    """Also one that Python knows nothing of."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: None)
    before = libc.signal(signal.SIGURG, ctypes.cast(handler, ctypes.c_void_p))
    try:
        assert children.look()["handled"] == 0
    finally:
        libc.signal(signal.SIGURG, before)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP])
def test_what_cannot_be_ignored(sig: int) -> None:
    with pytest.raises(ValueError, match="SIGKILL and SIGSTOP cannot be ignored"):
        ff.Command(["true"], ignore_signals=[sig])
