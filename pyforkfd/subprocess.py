"""The standard module :mod:`subprocess` on our engine, and with our options.

``from pyforkfd import subprocess`` has the names, signatures and behaviour of the standard
module; Popen, run, call, check_call and check_output take our :class:`Options` as well.
:func:`install` puts the engine under the standard module instead, for a whole process.
"""

from __future__ import annotations

from subprocess import (
    DEVNULL,
    PIPE,
    STDOUT,
    CalledProcessError,
    CompletedProcess,
    SubprocessError,
    TimeoutExpired,
    list2cmdline,
)
from typing import Any, Unpack

from ._dropin._install import install, installed, uninstall
from ._dropin._popen import Popen, PopenOptions
from ._dropin._posix_spawn import posix_spawn, posix_spawnp
from ._dropin._seams import PreexecFnWarning, UnknownInterpreterError
from ._options import Options
from ._types import StrPath

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CalledProcessError",
    "CompletedProcess",
    "Options",
    "Popen",
    "PopenOptions",
    "PreexecFnWarning",
    "SubprocessError",
    "TimeoutExpired",
    "UnknownInterpreterError",
    "call",
    "check_call",
    "check_output",
    "getoutput",
    "getstatusoutput",
    "install",
    "installed",
    "list2cmdline",
    "posix_spawn",
    "posix_spawnp",
    "run",
    "uninstall",
]


def run(
    *popenargs: Any,
    input: Any = None,  # noqa: A002  (the standard's name)
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **kwargs: Unpack[PopenOptions],
) -> CompletedProcess[Any]:
    """Run a program to its end: :func:`subprocess.run`, with our options.

    Args:
        popenargs: as :class:`Popen`.
        input: the standard input of the child; bytes, or str in text mode.
        capture_output: capture stdout and stderr.
        timeout: seconds; then the child, and only it, is killed (:func:`pyforkfd.run` kills
            the whole tree).
        check: raise where the exit code is not 0.
        kwargs: as :class:`Popen`.

    Returns:
        The code and the output of the program.

    Raises:
        TimeoutExpired, CalledProcessError, OSError: as the standard function.
    """
    if input is not None:
        if kwargs.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        kwargs["stdin"] = PIPE
    if capture_output:
        if kwargs.get("stdout") is not None or kwargs.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        kwargs["stdout"] = kwargs["stderr"] = PIPE
    with Popen[Any](*popenargs, **kwargs) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except TimeoutExpired:
            process.kill()
            process.wait()  # communicate() has put the output so far into the exception
            raise
        except BaseException:  # KeyboardInterrupt too
            process.kill()
            raise
        code = process.poll()
    assert code is not None
    if check and code:
        raise CalledProcessError(code, process.args, output=stdout, stderr=stderr)
    return CompletedProcess(process.args, code, stdout, stderr)


def call(*popenargs: Any, timeout: float | None = None, **kwargs: Unpack[PopenOptions]) -> int:
    """Run a program to its end and return its code: :func:`subprocess.call`, with our options.

    Args:
        popenargs: as :class:`Popen`.
        timeout: seconds; then the child is killed.
        kwargs: as :class:`Popen`.

    Returns:
        The exit code, or minus the signal.

    Raises:
        TimeoutExpired, OSError: as the standard function.
    """
    with Popen[Any](*popenargs, **kwargs) as process:
        try:
            return process.wait(timeout=timeout)
        except BaseException:
            process.kill()
            raise


class _CheckCall(PopenOptions, total=False):
    timeout: float | None


class _CheckOutput(PopenOptions, total=False):
    input: Any


def check_call(*popenargs: Any, **kwargs: Unpack[_CheckCall]) -> int:
    """Run a program as :func:`call` does; raise where its code is not 0.

    With the signature of :func:`subprocess.check_call`.

    Raises:
        CalledProcessError, TimeoutExpired, OSError: as the standard function.
    """
    code = call(*popenargs, **kwargs)
    if code:
        raise CalledProcessError(code, kwargs.get("args") or popenargs[0])
    return 0


def check_output(
    *popenargs: Any, timeout: float | None = None, **kwargs: Unpack[_CheckOutput]
) -> Any:
    """Run a program, return its output: :func:`subprocess.check_output`, with our options.

    Args:
        popenargs: as :class:`Popen`.
        timeout: seconds; then the child is killed.
        kwargs: as :class:`Popen`, and ``input`` as :func:`run`.

    Returns:
        bytes, or str in text mode.

    Raises:
        CalledProcessError, TimeoutExpired, OSError: as the standard function.
    """
    for name in ("stdout", "check"):
        if name in kwargs:
            raise ValueError(f"{name} argument not allowed, it will be overridden.")
    text = any(kwargs.get(name) for name in ("text", "encoding", "errors", "universal_newlines"))
    if "input" in kwargs and kwargs["input"] is None:  # no input, as in the standard function
        kwargs["input"] = "" if text else b""
    kwargs["stdout"] = PIPE
    return run(*popenargs, timeout=timeout, check=True, **kwargs).stdout


def getstatusoutput(
    cmd: StrPath, *, encoding: str | None = None, errors: str | None = None
) -> tuple[int, str]:
    """Run a shell command; return its exit code and its output."""
    try:
        output = check_output(
            cmd, shell=True, text=True, stderr=STDOUT, encoding=encoding, errors=errors
        )
        code = 0
    except CalledProcessError as error:
        output, code = error.output, error.returncode
    return code, output.removesuffix("\n")


def getoutput(cmd: StrPath, *, encoding: str | None = None, errors: str | None = None) -> str:
    """Run a shell command; return its output."""
    return getstatusoutput(cmd, encoding=encoding, errors=errors)[1]
