"""Experiments: what fork and exec do to descriptors, open files, pipes and epolls."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pyforkfd._fd import Fd, cloexec, set_cloexec
from pyforkfd._spawn import spawn
from pyforkfd._types import DEVNULL

from ._children import errno_name, holding, in_exec, in_fork, open_in_exec, shell
from ._experiments import Impossible, Observation, Section

EXEC = Section("What exec closes")
FILES = Section("What is shared: open files")
EPOLL = Section("What is shared: epoll")


@contextmanager
def _null(count: int) -> Iterator[list[int]]:
    with ExitStack() as stack:
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        for fd in fds:
            stack.enter_context(Fd(fd))
        yield fds


@contextmanager
def _file(text: bytes = b"0123456789") -> Iterator[int]:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(text)
        file.seek(0)
        yield file.fileno()


def _reopened(fd: int, flags: int = os.O_RDWR) -> int:
    """Open the same file again by open(2), even one without a name."""
    if not os.path.exists("/proc/self/fd"):
        raise Impossible("/proc is not mounted")
    return os.open(f"/proc/self/fd/{fd}", flags)


def _offset(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_CUR)


def _where(held: bool) -> str:
    return "open in the program" if held else "closed in the program"


# exec


@EXEC.experiment(
    statement="exec closes the descriptors marked FD_CLOEXEC and no others",
    belief="exec closes everything above 2; or nothing",
    control="the marks are exchanged",
)
def exec_closes_the_marked(control: bool) -> Observation:
    with _null(4) as fds:
        unmarked, marked = fds[:2], fds[2:]
        for fd in marked if control else unmarked:
            set_cloexec(fd, False)
        found = open_in_exec(fds)
    seen = f"of {len(unmarked)} unmarked {sum(fd in unmarked for fd in found)} came through, "
    seen += f"of {len(marked)} marked {sum(fd in marked for fd in found)}"
    return Observation(found == unmarked, seen)


@EXEC.experiment(
    statement="fork closes nothing, marked or not",
    belief="a close-on-exec descriptor is gone in a forked child",
    control="exec follows",
)
def fork_closes_nothing(control: bool) -> Observation:
    with _null(1) as (fd,):
        held = open_in_exec([fd]) == [fd] if control else in_fork(lambda: cloexec(fd)) == "True"
    return Observation(held, f"marked, and {'open' if held else 'closed'} in the child")


@EXEC.experiment(
    statement="the mark belongs to the number: a duplicate has its own",
    belief="the mark is copied to duplicates, or cleared in all of them",
    control="the mark of the first number itself is examined",
)
def duplicates_have_their_own_mark(control: bool) -> Observation:
    with _null(1) as (fd,), Fd(os.dup(fd)) as copy:
        set_cloexec(fd, False)
        examined = fd if control else copy.fileno()
        found = open_in_exec([examined])
    return Observation(not found, f"mark cleared on the one; the other is {_where(bool(found))}")


@EXEC.experiment(
    statement="a forked child that changes a mark changes it for itself alone",
    belief="descriptors are shared after fork, so their flags are",
    control="the parent changes it",
)
def marks_are_per_process(control: bool) -> Observation:
    with _null(1) as (fd,):
        if control:
            set_cloexec(fd, False)
        else:
            in_fork(lambda: set_cloexec(fd, False))
        still = cloexec(fd)
    return Observation(still, f"cleared; in the parent it is {'still set' if still else 'clear'}")


@EXEC.experiment(
    statement="`subprocess` closes all but 0, 1, 2 and `pass_fds`, marked or not",
    belief="clearing the mark is enough for `subprocess`",
    control="`close_fds=False`",
)
def subprocess_closes_the_unmarked(control: bool) -> Observation:
    with _null(1) as (fd,):
        set_cloexec(fd, False)
        test = shell(f"[ -e /proc/self/fd/{fd} ]")
        held = subprocess.run(test, close_fds=not control, check=False).returncode == 0
    return Observation(not held, f"not marked, {_where(held)}")


@EXEC.experiment(
    statement="`pass_fds` of `subprocess` passes marked descriptors, and leaves our mark set",
    belief="the mark must be cleared first",
    control="without `pass_fds`",
)
def pass_fds_passes_the_marked(control: bool) -> Observation:
    with _null(1) as (fd,):
        test = shell(f"[ -e /proc/self/fd/{fd} ]")
        passed = () if control else (fd,)
        held = subprocess.run(test, pass_fds=passed, check=False).returncode == 0
        return Observation(held and cloexec(fd), f"{_where(held)}; our mark is set: {cloexec(fd)}")


@EXEC.experiment(
    statement="`pyforkfd.spawn` passes the descriptors in its map, marked or not, and no others",
    belief="all inheritable descriptors are inherited",
    control="`close_others=False`",
)
def spawn_passes_its_map(control: bool) -> Observation:
    with _null(2) as (named, unmarked):
        set_cloexec(unmarked, False)
        code = f"[ -e /proc/self/fd/{named} ] && ! [ -e /proc/self/fd/{unmarked} ]"
        with spawn(
            shell(code),
            fds={named: named, 1: DEVNULL},
            close_others=not control,
        ) as child:
            held = child.wait().success
    return Observation(
        held, "only what was named is open" if held else "what was not named is open"
    )


@EXEC.experiment(
    statement="POSIX_SPAWN_DUP2 of a number to itself passes it, marked or not",
    belief="a dup2 to the same number does nothing, so exec closes it",
    control="without the action",
)
def posix_spawn_dup2_to_itself(control: bool) -> Observation:
    with _null(1) as (fd,):
        test = shell(f"[ -e /proc/self/fd/{fd} ]")
        actions = [] if control else [(os.POSIX_SPAWN_DUP2, fd, fd)]
        pid = os.posix_spawn(test[0], test, os.environ, file_actions=actions)
        held = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return Observation(held, _where(held))


@EXEC.experiment(
    statement="a `#!` script that is executed by descriptor needs it unmarked",
    belief="exec has opened the program, so its descriptor may be closed",
    control="the mark is cleared",
)
def scripts_by_descriptor(control: bool) -> Observation:
    def execute() -> None:
        os.execve(script, ["script"], {})  # execveat(2), by its number

    with tempfile.TemporaryDirectory(prefix="pyforkfd-") as folder:
        path = os.path.join(folder, "script")
        with Fd(os.open(path, os.O_WRONLY | os.O_CREAT, 0o700)) as file:
            os.write(file.fileno(), b"#!/bin/sh\nexit 0\n")
        script = os.open(path, os.O_RDONLY)
        with Fd(script):
            set_cloexec(script, not control)
            result = in_fork(execute) or "it ran"
    if result not in ("ENOENT", "it ran"):
        raise Impossible(f"execveat of a descriptor: {result}")
    return Observation(result == "ENOENT", result)


# Open files


@FILES.experiment(
    statement="fork shares the open file: parent and child move one offset",
    belief="the child has a position of its own",
    control="the child opens the file once more",
)
def fork_shares_the_offset(control: bool) -> Observation:
    with _file() as fd:
        in_fork(lambda: os.read(_reopened(fd) if control else fd, 5))
        at = _offset(fd)
    return Observation(at == 5, f"the child read 5 bytes, the parent is at {at}")


@FILES.experiment(
    statement="exec keeps the open file: parent and program move one offset",
    belief="a new program starts at the beginning",
    control="the program opens the file once more",
)
def exec_keeps_the_offset(control: bool) -> Observation:
    with _file() as fd:
        set_cloexec(fd, False)
        number = "os.open(f'/proc/self/fd/{sys.argv[1]}', os.O_RDONLY)"
        in_exec(f"os.read({number if control else 'int(sys.argv[1])'}, 5)", fd)
        at = _offset(fd)
    return Observation(at == 5, f"the program read 5 bytes, the parent is at {at}")


@FILES.experiment(
    statement="two open(2) of one file are two open files, with an offset each",
    belief="the same path is the same file",
    control="dup(2) instead",
)
def two_opens_share_nothing(control: bool) -> Observation:
    with _file() as fd, Fd(os.dup(fd) if control else _reopened(fd)) as other:
        os.read(fd, 5)
        at = _offset(other.fileno())
    return Observation(at == 0, f"5 bytes read by one, the other is at {at}")


@FILES.experiment(
    statement="O_NONBLOCK belongs to the open file: set in a child, it is set in the parent",
    belief="it is the process's own setting",
    control="the child opens the file once more",
)
def nonblocking_is_shared(control: bool) -> Observation:
    with _pipe() as (reader, _):
        in_fork(lambda: os.set_blocking(_reopened(reader, 0) if control else reader, False))
        shared = not os.get_blocking(reader)
    return Observation(
        shared, f"set in the child; in the parent it is {'set' if shared else 'clear'}"
    )


@FILES.experiment(
    statement="close(2) in one process closes nothing in another",
    belief="the parent must keep it open until the child is done, or the other way round",
    control="shutdown(2), which acts on the socket itself",
)
def closing_is_local(control: bool) -> Observation:
    here, there = socket.socketpair()
    with here, there:
        in_fork(lambda: here.shutdown(socket.SHUT_RDWR) if control else os.close(here.fileno()))
        there.settimeout(10)
        try:
            here.sendall(b"x")
            alive = there.recv(1) == b"x"
        except BrokenPipeError:
            alive = False
    return Observation(alive, f"the parent's end is {'alive' if alive else 'dead'}")


@FILES.experiment(
    statement="a pipe ends when the last holder of its writing end closes it, a child included",
    belief="it ends when the parent closes its own",
    control="the child does not hold it",
)
def pipes_end_with_the_last_writer(control: bool) -> Observation:
    reader, writer = os.pipe()
    with Fd(reader), Fd(writer) as end:
        if control:
            end.close()
        with holding():
            end.close()
            ended = _ready(reader)
        later = _ready(reader)
    seen = f"end of file while the child lives: {ended}, after it: {later}"
    return Observation(not ended and later, seen)


@FILES.experiment(
    statement="flock(2) belongs to the open file: it holds until the last copy is closed",
    belief="a lock is released when the process that took it closes the file",
    control="lockf(3), a lock of the process",
)
def flock_is_shared(control: bool) -> Observation:
    lock = fcntl.lockf if control else fcntl.flock
    with _file() as fd, Fd(_reopened(fd)) as other:
        mine = os.dup(fd)
        lock(mine, fcntl.LOCK_EX)
        os.close(mine)  # fd is a copy that is still open
        result = in_fork(lambda: lock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB))
    held = result in ("EAGAIN", "EACCES")
    return Observation(held, f"a copy was closed, the lock is {'held' if held else 'free'}")


# Epoll


@EPOLL.experiment(
    statement="epoll_ctl in a forked child edits the parent's set: it is one epoll",
    belief="the child has a copy of the set",
    control="the child makes an epoll of its own",
)
def epoll_is_shared(control: bool) -> Observation:
    with _pipe() as (reader, writer), select.epoll() as epoll:
        epoll.register(reader, select.EPOLLIN)
        os.write(writer, b"x")

        def forget() -> None:
            mine = select.epoll() if control else epoll
            if control:
                mine.register(reader, select.EPOLLIN)
            mine.unregister(reader)

        in_fork(forget)
        events = epoll.poll(0)
    seen = f"the child unregistered; the parent sees {len(events)} events"
    return Observation(not events, seen)


@EPOLL.experiment(
    statement="a closed descriptor stays registered while another process holds the open file",
    belief="close(2) removes it from every epoll",
    control="no other process holds it",
)
def epoll_outlives_close(control: bool) -> Observation:
    with select.epoll() as epoll, ExitStack() as stack:
        reader, writer = os.pipe()
        stack.callback(os.close, writer)
        epoll.register(reader, select.EPOLLIN)
        os.write(writer, b"x")
        if not control:
            stack.enter_context(holding())
        os.close(reader)
        events = epoll.poll(0)
        try:
            epoll.unregister(reader)
            removed = "can be removed"
        except OSError as error:
            removed = f"cannot be removed ({errno_name(error)})"
    return Observation(bool(events), f"closed; {len(events)} events, and the entry {removed}")


@EPOLL.experiment(
    statement="an inherited listener works in the child's own epoll, once registered there",
    belief="it cannot be polled in the child; or the registration comes along",
    control="it is not registered",
)
def epoll_of_the_child(control: bool) -> Observation:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("")
        listener.listen()
        client.connect(listener.getsockname())
        set_cloexec(listener.fileno(), False)
        register = "" if control else "epoll.register(int(sys.argv[1]), select.EPOLLIN)\n"
        code = f"import select\nepoll = select.epoll()\n{register}print(len(epoll.poll(0)), end='')"
        result = in_exec(code, listener.fileno())
    return Observation(result == "1", f"the child's epoll reports {result} events")


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def _ready(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])
