"""os.fork by ff.fork, and the marks of descriptors by ours."""

import os

import pyforkfd as ff

_calls = 0


def fork() -> int:
    global _calls
    _calls += 1
    child = ff.fork()
    if child is None:
        return 0
    child.close()  # these tests wait by pid
    return child.pid


def get_inheritable(fd: int) -> bool:
    global _calls
    _calls += 1
    return not ff.cloexec(fd)


def set_inheritable(fd: int, inheritable: bool) -> None:
    global _calls
    _calls += 1
    ff.set_cloexec(fd, not inheritable)


def calls() -> int:
    return _calls


os.fork = fork
os.get_inheritable = get_inheritable
os.set_inheritable = set_inheritable
