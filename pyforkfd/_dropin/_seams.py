"""Replacements of the interpreter's own ways to start a child, and the checks of these.

The seams are ``subprocess.Popen._execute_child``, which every Popen of the process goes
through (asyncio's, trio's and anyio's too), and ``_posixsubprocess.fork_exec``, which
multiprocessing calls.  Both exist only inside the interpreter, so they are compared with
the known ones before they are replaced.
"""

from __future__ import annotations

import _posixsubprocess
import functools
import inspect
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

from pyforkfd import _core
from pyforkfd._errors import from_core
from pyforkfd._program import candidates, environment
from pyforkfd._types import StrPath

STOCK_EXECUTE_CHILD: Callable[..., None] = vars(subprocess.Popen).get(
    "_execute_child", lambda: None
)
STOCK_FORK_EXEC: Callable[..., int] = getattr(_posixsubprocess, "fork_exec", lambda: 0)

_EXECUTE_CHILD = (
    "self args executable preexec_fn close_fds pass_fds cwd env startupinfo creationflags shell "
    "p2cread p2cwrite c2pread c2pwrite errread errwrite restore_signals gid gids uid umask "
    "start_new_session process_group"
).split()
_FORK_EXEC = (
    "args executable_list close_fds pass_fds cwd env p2cread p2cwrite c2pread c2pwrite errread "
    "errwrite errpipe_read errpipe_write restore_signals call_setsid pgid_to_set gid "
    "extra_groups uid child_umask preexec_fn"
).split()
_MAYBE = ["allow_vfork"]  # until Python 3.14

INSTEAD_OF_PREEXEC_FN = (
    "preexec_fn runs Python between fork and exec, so this child is started the standard way: "
    "a fork that copies page tables, with locks of other threads held.  Options do the same "
    "as data: start_new_session, process_group, umask, user, group, extra_groups of "
    "subprocess; controlling_terminal, foreground, rlimits, nice, cpu_affinity, scheduler, "
    "chroot, capabilities, no_new_privs, parent_death_signal, namespaces, seccomp, cgroup, "
    "signal_mask, default_signals, ignore_signals of pyforkfd.subprocess (docs/drop-in.md)"
)


class PreexecFnWarning(RuntimeWarning):
    """A preexec_fn was delegated to the standard path; the text names the options to write."""


class UnknownInterpreterError(RuntimeError):
    """This Python starts children in a way that is not known here; nothing was installed."""


@functools.cache  # which does not record a refusal
def demand_known() -> None:
    """Raise an UnknownInterpreterError unless the seams are those that are replaced here."""
    popen = subprocess.Popen
    if popen.__module__ != "subprocess" or not hasattr(popen, "_close_pipe_fds"):
        raise UnknownInterpreterError(
            f"subprocess.Popen is {popen!r}: another library has replaced it"
        )
    method = list(inspect.signature(STOCK_EXECUTE_CHILD).parameters)
    if method != _EXECUTE_CHILD:
        raise UnknownInterpreterError(
            f"Python {sys.version.split()[0]}: Popen._execute_child takes {method}, "
            f"known is {_EXECUTE_CHILD}"
        )
    function = _parameters(STOCK_FORK_EXEC)
    if function not in (_FORK_EXEC, [*_FORK_EXEC, *_MAYBE]):
        raise UnknownInterpreterError(
            f"Python {sys.version.split()[0]}: _posixsubprocess.fork_exec takes {function}, "
            f"known is {[*_FORK_EXEC, *_MAYBE]} or without the last"
        )


def _parameters(function: Callable[..., int]) -> list[str]:
    """Return the names of the parameters; where Python 3.11 has none, as many known ones."""
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:
        pass
    try:
        function()
    except TypeError as error:
        count = re.search(r"(\d+) arguments", str(error))
        known = [*_FORK_EXEC, *_MAYBE]
        if count and int(count[1]) <= len(known):
            return known[: int(count[1])]
    return []


def standard_error(
    error: _core.SysError, executable: StrPath, program: StrPath, cwd: StrPath | None
) -> OSError:
    """Return the error that the standard module raises; its cause names the step.

    The standard module has errors of the program and of the directory alone; for all other
    steps this is the SpawnError.
    """
    found = from_core(os.fsdecode(program), error)
    if found.stage in ("exec", "working_directory"):
        known = OSError(found.errno, found.strerror, executable if found.stage == "exec" else cwd)
        known.__cause__ = found
        return known
    return found


def warn_of_preexec_fn() -> None:
    """Warn, with the line that called subprocess, or asyncio, as the origin."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _is_ours_or_standard(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(INSTEAD_OF_PREEXEC_FN, PreexecFnWarning, stacklevel=level)


def _is_ours_or_standard(frame: Any) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] in ("pyforkfd", "subprocess", "asyncio")


def execute_child(
    self: Any,
    args: Any,
    executable: Any,
    preexec_fn: Any,
    close_fds: Any,
    pass_fds: Any,
    cwd: Any,
    env: Any,
    startupinfo: Any,
    creationflags: Any,
    shell: Any,
    p2cread: int,
    p2cwrite: int,
    c2pread: int,
    c2pwrite: int,
    errread: int,
    errwrite: int,
    restore_signals: Any,
    gid: Any,
    gids: Any,
    uid: Any,
    umask: int,
    start_new_session: Any,
    process_group: int,
) -> None:
    """Start a child in the place of Popen._execute_child.

    The standard method serves the calls that are not ours: with preexec_fn, with _USE_VFORK =
    False, and with a _fork_exec that other code has replaced.
    """
    if (
        preexec_fn is not None
        or subprocess._fork_exec is not STOCK_FORK_EXEC  # type: ignore[attr-defined]
        or not getattr(subprocess, "_USE_VFORK", True)
    ):
        if preexec_fn is not None:
            warn_of_preexec_fn()
        STOCK_EXECUTE_CHILD(
            self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env,
            startupinfo, creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite,
            errread, errwrite, restore_signals, gid, gids, uid, umask, start_new_session,
            process_group,
        )  # fmt: skip
        return
    if isinstance(args, (str, bytes)):
        args = [args]
    elif isinstance(args, os.PathLike):
        if shell:
            raise TypeError("path-like args is not allowed when shell is true")
        args = [args]
    else:
        args = list(args)
    if shell:
        args = ["/bin/sh", "-c", *args]
        if executable:
            args[0] = executable
    if executable is None:
        executable = args[0]
    sys.audit("subprocess.Popen", executable, args, cwd, env)
    options = getattr(self, "_forkfd_options", None)
    try:
        self.pid, pidfd, pipes = _core.fork_exec(
            args,
            candidates(os.fsencode(executable), env),
            bool(close_fds),
            tuple(sorted(set(map(int, pass_fds)))) if pass_fds else (),
            cwd,
            None if env is None else environment(env.items(), nameless=True),
            p2cread,
            c2pwrite,
            errwrite,
            -1,
            bool(restore_signals),
            bool(start_new_session),
            process_group,
            gid,
            gids,
            uid,
            umask,
            options,
        )
    except _core.SysError as error:
        failed = standard_error(error, executable, executable, cwd)
        raise failed from failed.__cause__
    self._child_created = True
    if options is not None:
        self._started(pidfd, pipes)  # our own Popen
    self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def fork_exec(
    args: Any,
    executable_list: Any,
    close_fds: Any,
    pass_fds: Any,
    cwd: Any,
    env: Any,
    p2cread: int,
    p2cwrite: int,
    c2pread: int,
    c2pwrite: int,
    errread: int,
    errwrite: int,
    errpipe_read: int,
    errpipe_write: int,
    restore_signals: Any,
    call_setsid: Any,
    pgid_to_set: int,
    gid: Any,
    extra_groups: Any,
    uid: Any,
    child_umask: int,
    preexec_fn: Any,
    *allow_vfork: Any,
) -> int:
    """Start a child in the place of _posixsubprocess.fork_exec.

    A child that cannot become its program is an OSError at once; the standard function leaves
    a zombie and a message in the pipe, which multiprocessing does not read.
    """
    if preexec_fn is not None or not all(allow_vfork):
        if preexec_fn is not None:
            warn_of_preexec_fn()
        return STOCK_FORK_EXEC(
            args, executable_list, close_fds, pass_fds, cwd, env, p2cread, p2cwrite,
            c2pread, c2pwrite, errread, errwrite, errpipe_read, errpipe_write,
            restore_signals, call_setsid, pgid_to_set, gid, extra_groups, uid, child_umask,
            preexec_fn, *allow_vfork,
        )  # fmt: skip
    if close_fds and errpipe_write < 3:
        raise ValueError("errpipe_write must be >= 3")
    try:
        pid, _, _ = _core.fork_exec(
            args,
            executable_list,
            bool(close_fds),
            pass_fds,
            cwd,
            env,
            p2cread,
            c2pwrite,
            errwrite,
            errpipe_write,
            bool(restore_signals),
            bool(call_setsid),
            pgid_to_set,
            gid,
            extra_groups,
            uid,
            child_umask,
            None,
        )
    except _core.SysError as error:
        failed = standard_error(error, executable_list[-1], executable_list[-1], cwd)
        raise failed from failed.__cause__
    return pid
