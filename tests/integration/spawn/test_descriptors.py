"""The child's descriptors: any number, any permutation, and nothing else."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Container, Iterator
from pathlib import Path

import pytest
from children import REPORT, Children, Seen, descriptors, identity, read_report
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import pyforkfd as ff

FIRST = 40  # sources and targets meet in [FIRST, FIRST + POOL)
POOL = 8


@pytest.fixture(scope="module")
def pool() -> Iterator[dict[int, tuple[int, int]]]:
    """Our descriptors FIRST..., each of a file of its own: number -> identity."""
    held = {}
    for number in range(FIRST, FIRST + POOL):
        fd = os.memfd_create(f"pool-{number}")
        os.dup2(fd, number, inheritable=False)
        os.close(fd)
        held[number] = identity(number)
    yield held
    for number in held:
        os.close(number)


NUMBERS = st.integers(FIRST, FIRST + POOL - 1)
TARGETS = st.one_of(st.integers(0, 5), NUMBERS, st.sampled_from([REPORT + 1, 700, 4000]))
SOURCES: st.SearchStrategy[ff.FdSource] = st.one_of(
    NUMBERS, st.sampled_from([ff.DEVNULL, ff.CLOSED, ff.PIPE_FROM_CHILD, ff.Open(os.devnull)])
)


def model(
    fds: dict[int, ff.FdSource], pool: dict[int, tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """What the child must have; pipes are looked at by the caller."""
    info = os.stat(os.devnull)
    null = info.st_dev, info.st_ino
    wanted = {fd: identity(fd) for fd in (0, 1, 2)}
    for target, source in fds.items():
        if source is ff.CLOSED:
            wanted.pop(target, None)
        elif isinstance(source, int):
            wanted[target] = pool.get(source) or identity(source)
        else:
            wanted[target] = null
    return wanted


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(fds=st.dictionaries(TARGETS, SOURCES, max_size=12))
@example(fds={FIRST + i: FIRST + (i + 1) % POOL for i in range(POOL)})  # one cycle
@example(fds={FIRST: FIRST + 1, FIRST + 1: FIRST, FIRST + 2: FIRST + 3, FIRST + 3: FIRST + 2})
@example(fds={FIRST + i: FIRST + i for i in range(POOL)})  # each where it is
@example(fds={0: FIRST, 1: FIRST, 2: FIRST, 4000: FIRST})  # one for all
@example(fds={0: ff.CLOSED, 1: ff.CLOSED, 2: ff.CLOSED})
@pytest.mark.parametrize("close_others", [True, False])
def test_any_map(
    children: Children,
    pool: dict[int, tuple[int, int]],
    close_others: bool,
    fds: dict[int, ff.FdSource],
) -> None:
    with children.start(
        [children.program, str(REPORT)],
        fds={**fds, REPORT: ff.PIPE_FROM_CHILD},
        close_others=close_others,
    ) as child:
        seen = descriptors(read_report(child))
        pipes = {t: identity(p.fileno()) for t, p in child.pipes.items() if t != REPORT}
    expected = {**model({t: s for t, s in fds.items() if t not in pipes}, pool), **pipes}
    assert pipes.keys() == {t for t, s in fds.items() if s is ff.PIPE_FROM_CHILD}
    if not close_others:
        expected = {**inheritable(fds), **expected}
    assert seen == expected


def inheritable(fds: Container[int]) -> dict[int, tuple[int, int]]:
    """What of ours lives on through an exec, and is not named in fds."""
    held = {}
    for name in os.listdir("/proc/self/fd"):
        if int(name) in fds:
            continue
        try:
            if not fcntl.fcntl(int(name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                held[int(name)] = identity(int(name))
        except OSError:
            pass  # the listing's own
    return held


def test_standard_descriptors_change_places(children: Children) -> None:
    ours = [identity(fd) for fd in (0, 1, 2)]
    seen = descriptors(children.look(fds={0: 1, 1: 0}))
    assert seen == {0: ours[1], 1: ours[0], 2: ours[2]}


def test_nothing_else_is_open(children: Children, other_fd: int) -> None:
    os.set_inheritable(other_fd, True)
    assert set(children.look()["fds"]) == {"0", "1", "2"}


def test_close_others_false_lets_inheritable_ones_through(
    children: Children, other_fd: int
) -> None:
    number = str(other_fd)
    assert number not in children.look(close_others=False)["fds"]
    os.set_inheritable(other_fd, True)
    assert number in children.look(close_others=False)["fds"]
    assert number not in children.look(close_others=False, fds={other_fd: ff.CLOSED})["fds"]


@pytest.mark.parametrize("close_others", [True, False])
def test_a_missing_standard_descriptor_stays_missing(
    children: Children, close_others: bool
) -> None:
    saved = os.dup(0)
    try:
        os.close(0)
        seen = children.look(close_others=close_others)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    assert descriptors(seen).keys() & {0, 1, 2} == {1, 2}


def test_the_parents_flags_are_left_alone(children: Children, other_fd: int) -> None:
    """The child marks its copy inheritable, not ours."""
    seen = children.look(fds={other_fd: other_fd, 7: other_fd})
    assert descriptors(seen)[other_fd] == descriptors(seen)[7] == identity(other_fd)
    assert not os.get_inheritable(other_fd)


def test_pipes(children: Children) -> None:
    with children.start(
        ["sh", "-c", "read a; echo got $a; echo bad >&2; read b <&5; echo five $b >&6"],
        fds={0: ff.PIPE, 1: ff.PIPE, 2: ff.PIPE, 5: ff.PIPE_TO_CHILD, 6: ff.PIPE},
    ) as child:
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        child.stdin.write(b"in\n")
        child.stdin.close()
        child.pipes[5].write(b"extra\n")
        child.pipes[5].close()
        assert child.stdout.read() == b"got in\n"
        assert child.stderr.read() == b"bad\n"
        assert child.pipes[6].read() == b"five extra\n"
        assert not any(os.get_inheritable(p.fileno()) for p in child.pipes.values() if not p.closed)


def test_devnull(children: Children) -> None:
    out = children.output(
        ["sh", "-c", "cat; echo lost >&2; echo kept"], fds={0: ff.DEVNULL, 2: ff.DEVNULL}
    )
    assert out == b"kept\n"


def test_inherit(children: Children, other_fd: int) -> None:
    seen = children.look(fds={other_fd: ff.INHERIT})
    assert descriptors(seen)[other_fd] == identity(other_fd)


def test_inherit_what_is_not_open(children: Children) -> None:
    with pytest.raises(
        ff.SpawnError, match="find descriptor to pass: 350 -> child's 350"
    ) as caught:
        children.start(["true"], fds={350: ff.INHERIT})
    assert caught.value.stage == "descriptor_source"


def test_open(children: Children, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with children.start(
        ["sh", "-c", "echo line; echo line >&2"],
        fds={1: ff.Open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640), 2: ff.STDOUT},
        umask=0o777,  # the spawner's applies to what Open creates
    ):
        pass
    assert log.read_text() == "line\nline\n"
    assert log.stat().st_mode & 0o777 == 0o640 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_open_is_as_the_flags_say(children: Children, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fds = {
        3 + mode: ff.Open(tmp_path / "file", mode) for mode in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
    }
    seen = children.look(fds=fds)
    assert [seen["fds"][str(fd)][2:] for fd in fds] == [[0, 0], [1, 0], [2, 0]]


def test_open_what_is_missing(children: Children, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        children.start(["true"], fds={4: ff.Open(tmp_path / "missing")})
    assert str(caught.value) == (
        f"spawn true: open file: {tmp_path}/missing -> child's 4: No such file or directory"
    )


@pytest.mark.parametrize("source", [ff.PIPE, ff.DEVNULL, ff.Open("/dev/null", os.O_WRONLY)])
def test_same_as(children: Children, source: ff.FdSource) -> None:
    seen = children.look(fds={1: source, 2: ff.STDOUT, 9: ff.SameAs(1)})
    held = descriptors(seen)
    assert held[1] == held[2] == held[9] != identity(1)
    assert seen["fds"]["2"] == seen["fds"]["1"]


def test_same_as_what_is_inherited(children: Children, other_fd: int) -> None:
    held = descriptors(children.look(fds={2: ff.STDOUT, 5: ff.SameAs(6), 6: other_fd}))
    assert held[2] == held[1] == identity(1) and held[5] == identity(other_fd)


class Changing:
    """An object whose descriptor is another every time."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        return self.number


def test_objects_are_asked_at_every_spawn(
    children: Children, pool: dict[int, tuple[int, int]]
) -> None:
    changing = Changing(FIRST)
    command = ff.Command(
        [children.program, str(REPORT)],
        fds={3: FIRST + 5, 4: changing, 5: FIRST + 6, REPORT: ff.PIPE_FROM_CHILD},
    )
    for number in (FIRST + 1, FIRST + 2, FIRST):
        changing.number = number
        with command.spawn() as child:
            held = descriptors(read_report(child))
        assert (held[3], held[4], held[5]) == (pool[FIRST + 5], pool[number], pool[FIRST + 6])


def test_an_object_closed_since_is_named(children: Children) -> None:
    with open(os.devnull) as file:
        command = ff.Command(["true"], fds={3: file})
    with pytest.raises(ValueError, match="closed file"):
        command.spawn()


def test_a_number_closed_since_is_named(children: Children) -> None:
    fd = os.memfd_create("closed")
    command = ff.Command(["true"], fds={3: fd})
    os.close(fd)
    with pytest.raises(ff.SpawnError) as caught:
        command.spawn()
    assert str(caught.value) == (
        f"spawn true: find descriptor to pass: {fd} -> child's 3: Bad file descriptor"
    )


def test_a_number_above_the_limit_is_named(children: Children, other_fd: int) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with pytest.raises(ff.SpawnError) as caught:
        children.start(["true"], fds={limit: other_fd})
    assert f"child's {limit} is not below RLIMIT_NOFILE {limit}" in str(caught.value)
    assert str(limit - 1) in children.look(fds={limit - 1: other_fd})["fds"]


def test_many_of_ours_are_open(children: Children, other_fd: int) -> None:
    ours = [os.dup(other_fd) for _ in range(1000)]
    for fd in ours[::2]:
        os.set_inheritable(fd, True)
    try:
        seen: Seen = children.look(fds={3: ours[-1], 4: ours[0]})
    finally:
        for fd in ours:
            os.close(fd)
    assert set(seen["fds"]) == {"0", "1", "2", "3", "4"}
