"""A wrong value, whatever it is: an error that begins with the option's name, and no child."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

import pyforkfd as ff
from pyforkfd import subprocess as drop_in
from pyforkfd.zygote import WorkerOptions, Zygote

FIELDS = [f.name for f in dataclasses.fields(ff.Command) if not f.name.startswith("_")]
ERRORS = (TypeError, ValueError, LookupError)


class Raising:
    """Each way in which an option's value is read fails, and its repr() as well."""

    def fail(self, *args: object) -> Any:
        raise RuntimeError("this object fails")

    __repr__ = __iter__ = __len__ = fileno = items = keys = __index__ = __eq__ = fail
    __hash__ = object.__hash__


class RaisingPath(os.PathLike[str]):
    def __fspath__(self) -> str:
        raise RuntimeError("this path fails")


class StringFileno:
    def fileno(self) -> str:
        return "1"


def closed_file() -> io.IOBase:
    with open(os.devnull) as file:
        return file


def raising() -> Iterator[int]:
    yield 1
    raise RuntimeError("this generator fails")


class RaisingMapping(Mapping[Any, Any]):
    def __getitem__(self, key: object) -> Any:
        raise RuntimeError("this mapping fails")

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        return iter([1])


# What no option takes, and what only some take.
VALUES: dict[str, Callable[[], Any]] = {
    "float": lambda: 1.5,
    "object": object,
    "class": lambda: dict,
    "huge": lambda: 1 << 200,
    "endless digits": lambda: 1 << 100_000,
    "nested list": lambda: [[[]]],
    "nested dict": lambda: {"a": {"b": object()}},
    "raising": Raising,
    "raising path": RaisingPath,
    "raising generator": raising,
    "raising mapping": RaisingMapping,
    "endless": lambda: itertools.count(-1, -1),
    "closed file": closed_file,
    "string fileno": StringFileno,
    "surrogate": lambda: "\ud800",
    "null byte": lambda: "a\0",
    "list of None": lambda: [None],
    "list of float": lambda: [0.5],
    "list of bool": lambda: [True],
    "list of huge": lambda: [1 << 200],
    "list of raising": lambda: [Raising()],
    "None": lambda: None,
    "True": lambda: True,
    "zero": lambda: 0,
    "negative": lambda: -7,
    "string": lambda: "no such thing",
    "bytes": lambda: b"no such thing",
    "empty": lambda: "",
    "list of strings": lambda: ["no such thing"],
    "empty list": list,
}
ANY_FD = {"zero"}
ANY_PATH = {"string", "bytes"}
OPTIONAL = {"None"}
SIGNALS = {"empty list"}
# Those that an option takes, as far as can be known before there is a child.
ACCEPTED: dict[str, set[str]] = {
    "args": {"list of strings"},
    "executable": OPTIONAL | ANY_PATH | ANY_FD,
    "argv0": OPTIONAL | ANY_PATH | {"empty"},
    "env": OPTIONAL,
    "cwd": OPTIONAL | ANY_PATH | ANY_FD,
    "fds": OPTIONAL,
    "close_others": {"True"},
    "listen": OPTIONAL,
    "new_session": {"True"},
    "process_group": OPTIONAL | {"zero"},
    "controlling_terminal": OPTIONAL | ANY_PATH | ANY_FD,
    "foreground": ANY_FD | {"True"},
    "umask": OPTIONAL | {"zero"},
    "rlimits": OPTIONAL,
    "nice": OPTIONAL | {"zero", "negative"},
    "cpu_affinity": OPTIONAL,
    "scheduler": OPTIONAL,
    "user": OPTIONAL | {"zero"},
    "group": OPTIONAL | {"zero"},
    "extra_groups": OPTIONAL | {"empty list"},
    "capabilities": OPTIONAL,
    "no_new_privs": {"True"},
    "parent_death_signal": OPTIONAL,
    "parent_death_scope": set(),
    "chroot": OPTIONAL | ANY_PATH,
    "namespaces": {"empty list"},
    "uid_map": {"empty list"},
    "gid_map": {"empty list"},
    "seccomp": OPTIONAL,
    "cgroup": OPTIONAL | ANY_PATH | ANY_FD,
    "signal_mask": OPTIONAL | SIGNALS,
    "default_signals": SIGNALS,
    "ignore_signals": SIGNALS,
}
# What an option needs beside it.
BESIDE: dict[str, dict[str, Any]] = {
    "controlling_terminal": {"new_session": True},
    "uid_map": {"namespaces": ["user"]},
    "gid_map": {"namespaces": ["user"]},
}
# Where a value is within the option's, and which of VALUES are right there.
WITHIN: list[tuple[str, str, Callable[[Any], Any], set[str]]] = [
    ("args", "an argument", lambda v: ["true", v], ANY_PATH | {"empty"}),
    ("env", "a name", lambda v: {v: "x"}, ANY_PATH),
    ("env", "a value", lambda v: {"A": v}, ANY_PATH | {"empty"}),
    ("fds", "a number", lambda v: {v: ff.DEVNULL}, ANY_FD),
    ("fds", "a source", lambda v: {5: v}, ANY_FD),
    ("fds", "a standard source", lambda v: {1: v}, ANY_FD),
    ("fds", "a path", lambda v: {5: ff.Open(v)}, ANY_PATH | {"empty"}),
    ("fds", "flags", lambda v: {5: ff.Open("x", v)}, {"zero"}),
    ("fds", "a mode", lambda v: {5: ff.Open("x", 0, v)}, {"zero"}),
    ("fds", "the same as", lambda v: {5: ff.SameAs(v)}, ANY_FD),
    ("listen", "a name", lambda v: {v: 0}, {"string", "empty"}),
    ("listen", "a source", lambda v: {"web": v}, ANY_FD),
    ("rlimits", "a resource", lambda v: {v: (9, 9)}, {"zero"}),
    ("rlimits", "a pair", lambda v: {resource.RLIMIT_CORE: v}, set()),
    ("rlimits", "a limit", lambda v: {resource.RLIMIT_CORE: (v, 9)}, {"zero"}),
    ("cpu_affinity", "a processor", lambda v: [v], {"zero"}),
    ("scheduler", "a policy", lambda v: ff.Scheduler(v), {"zero", "negative"}),
    ("scheduler", "a priority", lambda v: ff.Scheduler(0, v), {"zero", "negative"}),
    ("extra_groups", "a group", lambda v: [v], {"zero"}),
    ("capabilities", "a set", lambda v: ff.Capabilities(bounding=v), OPTIONAL | {"empty list"}),
    ("capabilities", "a capability", lambda v: ff.Capabilities(ambient=[v]), {"zero"}),
    ("namespaces", "a name", lambda v: [v], set()),
    ("uid_map", "a line", lambda v: [v], set()),
    ("gid_map", "an id", lambda v: [(0, v, 1)], {"zero"}),
    ("signal_mask", "a signal", lambda v: [v], set()),
    ("default_signals", "a signal", lambda v: [v], set()),
    ("ignore_signals", "a signal", lambda v: [v], set()),
]


def unhashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return True
    return False


def cases() -> Iterator[tuple[str, str, Any]]:
    """Option, what is wrong, and its value; a new one each time, for iterators are read."""
    for option in FIELDS:
        for label, make in VALUES.items():
            if label not in ACCEPTED[option]:
                yield option, label, make()
    for option, place, within, accepted in WITHIN:
        for label, make in VALUES.items():
            if label not in accepted and not (
                place in ("a name", "a number", "a resource") and unhashable(make())
            ):
                yield option, f"{place}: {label}", within(make())


def refused(take: Callable[..., object], option: str, label: str, value: Any) -> str | None:
    """What is wrong with the refusal."""
    try:
        take(**{**BESIDE.get(option, {}), option: value})
    except ERRORS as error:
        if str(error).startswith(option) and len(str(error)) < 400:
            return None
        return f"{option}, {label}: {type(error).__name__}: {str(error)[:200]}"
    except Exception as error:
        return f"{option}, {label}: {type(error).__name__}: {str(error)[:200]}"
    return f"{option}, {label}: accepted"


def command(**options: Any) -> object:
    return ff.Command(**{"args": ["true"], **options})


def test_there_is_a_row_for_every_option() -> None:
    assert ACCEPTED.keys() == set(FIELDS)
    assert {option for option, *_ in WITHIN} <= set(FIELDS)


def test_every_wrong_value_of_a_command() -> None:
    found = [refused(command, option, label, value) for option, label, value in cases()]
    assert len(found) > 1200
    assert [problem for problem in found if problem] == []


def test_every_value_that_is_accepted_is_a_right_one() -> None:
    """The other half: none of the checks refuses all."""
    for option, labels in ACCEPTED.items():
        if option not in ("controlling_terminal", "process_group"):
            for label in labels - {"True"}:
                command(**{**BESIDE.get(option, {}), option: VALUES[label]()})
    for option, _, within, labels in WITHIN:
        for label in labels:
            command(**{**BESIDE.get(option, {}), option: within(VALUES[label]())})


def popen(**options: Any) -> object:
    session = options.pop("new_session", False)
    return drop_in.Popen(["true"], start_new_session=session, **options)


@pytest.mark.parametrize(
    ("take", "options"),
    [
        (lambda **o: ff.spawn(**{"args": ["true"], **o}), set(FIELDS)),
        (lambda **o: ff.run(["true"], **o), set(FIELDS) - {"args"}),
        (popen, set(drop_in.Options.__optional_keys__)),
    ],
    ids=["spawn", "run", "Popen"],
)
def test_those_who_pass_it_on_start_nothing(take: Callable[..., object], options: set[str]) -> None:
    """That nothing is left is what the guards around each test see."""
    found = [refused(take, *case) for case in cases() if case[0] in options]
    assert len(found) > 600
    assert [problem for problem in found if problem] == []


def test_a_zygote_is_not_even_started() -> None:
    zygote = Zygote()

    def take(**options: Any) -> object:
        return zygote.spawn("os:getpid", **options)

    kinds = WorkerOptions.__optional_keys__
    found = [refused(take, option, *case) for option, *case in cases() if option in kinds]
    for label, make in VALUES.items():
        if label not in ("None", "nested dict"):
            found.append(refused(take, "kwargs", label, make()))
        if not label.startswith(("list of", "nested list", "empty list")):
            found.append(refused(take, "args", label, make()))
    found.append(refused(take, "args", "no pickle", [raising()]))
    found.append(refused(take, "kwargs", "no pickle", {"a": raising()}))
    assert len(found) > 900
    assert [problem for problem in found if problem] == []
    assert zygote.pid is None


def test_of_run_itself() -> None:
    accepted = {
        "input": {"None", "string", "bytes", "empty", "null byte"},
        "capture": {"True"},
        "check": {"True"},
        "text": {"True"},
        "timeout": {"None", "float", "zero", "negative", "huge", "endless digits"},
        "max_output": {"None", "zero"},
    }
    found = []
    for option, labels in accepted.items():
        for label, make in VALUES.items():
            if label not in labels:
                found.append(refused(lambda **o: ff.run(["true"], **o), option, label, make()))
    found.append(refused(lambda **o: ff.run(["true"], **o), "timeout", "nan", float("nan")))
    assert [problem for problem in found if problem] == []
    for endless in (float("inf"), 1e300, 1 << 100_000):
        assert ff.run(["true"], timeout=endless).status.success


def test_of_fork_and_clone() -> None:
    cgroups = VALUES.keys() - ANY_PATH - ANY_FD - OPTIONAL
    numbers = VALUES.keys() - {"zero"}
    found = [refused(ff.fork, "cgroup", label, VALUES[label]()) for label in cgroups]
    for option, labels in (("cgroup", cgroups), ("flags", numbers), ("exit_signal", numbers)):
        found += [refused(ff.clone, option, label, VALUES[label]()) for label in labels]
    assert [problem for problem in found if problem] == []


def test_what_is_closed_since_is_named(other_fd: int) -> None:
    closed = os.dup(other_fd)
    os.close(closed)
    for option, value in (
        ("fds", {5: closed}),
        ("listen", {"web": closed}),
        ("cwd", closed),
        ("cgroup", closed),
        ("executable", closed),
        ("foreground", closed),
    ):
        with pytest.raises(ff.SpawnError, match=rf"\b{closed}\b"):
            ff.spawn(**{"args": ["true"], option: value})  # type: ignore[arg-type]
