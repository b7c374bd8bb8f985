"""The options of a child: named once, and the same for all who take them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import types
import typing
from collections.abc import Callable
from typing import Any

import pytest

import pyforkfd as ff
from pyforkfd import subprocess as drop_in
from pyforkfd._options import WorkerOptions
from pyforkfd.zygote import Zygote

FIELDS = {f.name: f for f in dataclasses.fields(ff.Command) if not f.name.startswith("_")}
OPTIONS = FIELDS.keys() - {"args"}


def described(thing: object) -> set[str]:
    """The arguments that a docstring describes."""
    return set(re.findall(r"^    (\w+): ", inspect.getdoc(thing) or "", re.M))


def test_fields_types_and_description_of_a_command_agree() -> None:
    fields = typing.get_type_hints(ff.Command)
    assert typing.get_type_hints(ff.CommandOptions) == {name: fields[name] for name in OPTIONS}
    assert described(ff.Command) == FIELDS.keys()


def test_a_worker_has_the_same_options_but_those_of_a_program() -> None:
    ours, commands = typing.get_type_hints(WorkerOptions), typing.get_type_hints(ff.CommandOptions)
    assert commands.keys() - ours.keys() == {
        "executable", "argv0", "close_others", "parent_death_scope", "uid_map", "gid_map"
    }  # fmt: skip
    assert {name: commands[name] for name in ours if name != "env"} == {
        name: ours[name] for name in ours if name != "env"
    }


@pytest.mark.parametrize(
    ("function", "options", "others", "returns"),
    [
        (ff.Command, OPTIONS, ["args"], None),
        (ff.spawn, OPTIONS, ["args"], "Process"),
        (ff.run, OPTIONS, "command input capture timeout check text max_output".split(), None),
        (
            Zygote.spawn,
            WorkerOptions.__optional_keys__,
            ["self", "target", "args", "kwargs"],
            "Process",
        ),
    ],
    ids=["Command", "spawn", "run", "Zygote.spawn"],
)
def test_a_signature_lists_the_options_by_name(
    function: Callable[..., object], options: set[str], others: list[str], returns: str | None
) -> None:
    signature = inspect.signature(function)
    found = list(signature.parameters)
    assert found[: len(others)] == others
    assert found[len(others) :] == [name for name in FIELDS if name in options]
    for name in options:
        parameter = signature.parameters[name]
        assert parameter.kind is parameter.KEYWORD_ONLY
        if (function, name) != (Zygote.spawn, "default_signals"):  # those of the zygote stay
            assert parameter.default == FIELDS[name].default
    if returns is not None:
        assert signature.return_annotation == returns


def zygote_spawn(**options: Any) -> object:
    return Zygote().spawn("os:getpid", **options)


TAKE_OPTIONS: dict[str, Callable[..., object]] = {
    "Command": lambda **options: ff.Command(["true"], **options),
    "spawn": lambda **options: ff.spawn(["true"], **options),
    "run": lambda **options: ff.run(["true"], **options),
    "Zygote.spawn": zygote_spawn,
    "Popen": lambda **options: drop_in.Popen(["true"], **options),
}


def names_of_subprocess() -> set[str]:
    names = {*inspect.signature(subprocess.run).parameters, "universal_newlines"}
    names |= inspect.signature(subprocess.Popen.__init__).parameters.keys()
    return names - {"popenargs", "kwargs", "self", "args"}


@pytest.mark.parametrize("function", ["Command", "spawn", "run", "Zygote.spawn"])
def test_a_name_of_subprocess_is_answered_by_the_one_to_write(function: str) -> None:
    take = TAKE_OPTIONS[function]
    known = WorkerOptions.__optional_keys__ if function == "Zygote.spawn" else OPTIONS
    if function == "run":
        known = known | {"input", "timeout", "check", "text"}
    foreign = names_of_subprocess() - known
    assert len(foreign) > 14
    for name in foreign:
        with pytest.raises(TypeError, match=rf"^{function}: {name}: no such option: \w") as caught:
            take(**{name: None})
        advised = re.findall(r"write (?:\w+\()?(\w+)=?", str(caught.value))
        assert function == "run" or not advised or {*advised} & {*known, "args", "pyforkfd", "io"}


@pytest.mark.parametrize("function", TAKE_OPTIONS)
def test_what_nobody_has_is_compared_with_what_there_is(function: str) -> None:
    with pytest.raises(TypeError, match=rf"^{function}: nonsense: no such option$"):
        TAKE_OPTIONS[function](nonsense=1)
    with pytest.raises(TypeError, match=r"rlimit: no such option: did you mean rlimits\?$"):
        TAKE_OPTIONS[function](rlimit=1)


def test_the_standard_names_of_ours_are_answered_by_popen() -> None:
    with pytest.raises(TypeError, match="new_session: no such option: write start_new_session"):
        drop_in.Popen(["true"], new_session=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["PIPE", "DEVNULL", "STDOUT"])
def test_a_constant_of_subprocess_is_answered_by_ours(name: str) -> None:
    constant = getattr(subprocess, name)
    with pytest.raises(ValueError, match=rf"^fds: child's descriptor 1: .* write pyforkfd\.{name}"):
        ff.Command(["true"], fds={1: constant})
    assert hasattr(ff, name)


def test_iterators_are_read_once_and_kept() -> None:
    command = ff.Command(
        ["true"],
        ignore_signals=iter([1, 2]),
        cpu_affinity=iter([0]),
        capabilities=ff.Capabilities(bounding=iter(["CHOWN"])),
    )
    same = dataclasses.replace(command, umask=0)
    assert (same.ignore_signals, same.cpu_affinity) == ((1, 2), (0,))
    assert same._plan.ignore_signals == command._plan.ignore_signals == 3
    assert same._plan.bounding == command._plan.bounding == 1


def test_an_exit_status_is_no_truth_value_and_no_number() -> None:
    status = ff.ExitStatus(code=0, signal=None)
    with pytest.raises(TypeError, match=r"^exit code 0: .*: write \.success$"):
        assert status
    with pytest.raises(TypeError, match=r"\.success, \.code or \.returncode"):
        _ = status == 0
    with pytest.raises(TypeError, match=r"\.success"):
        _ = status != 1
    assert status == ff.ExitStatus(code=0, signal=None) != ff.ExitStatus(code=1, signal=None)
    assert hash(status) == hash(ff.ExitStatus(code=0, signal=None))
    assert status not in (None, "0")


@pytest.mark.parametrize(
    "fds",
    [
        None,
        {},
        {0: ff.DEVNULL},
        {0: ff.PIPE, 1: ff.PIPE, 2: ff.DEVNULL},
        {2: ff.CLOSED, 7: 0, 5: ff.PIPE_TO_CHILD},
        {9: ff.PIPE_FROM_CHILD, 1: 2},
    ],
)
def test_the_plain_way_describes_what_the_general_way_does(fds: dict[int, Any] | None) -> None:
    class Word(str):
        """No plain str."""

    plain = ff.Command(["/bin/echo", "word"], fds=fds, cwd="/")
    general = ff.Command(
        [Word("/bin/echo"), "word"],
        fds=None if fds is None else types.MappingProxyType(fds),
        cwd="/",
    )
    assert plain._plan.state() == general._plan.state()
    assert plain._writable == general._writable


def test_what_is_not_plain_is_checked() -> None:
    for fds in ({True: 0}, {0: True}, {2**40: 0}, {0: 2**40}, {0: -1}):
        with pytest.raises((TypeError, ValueError), match="fds"):
            ff.Command(["/bin/true"], fds=fds)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="null byte"):
        ff.Command(["/bin/true", "a\0b"])
    assert list(map(str, ff.Command(["/bin/\u00e4"])._plan.argv)) == ["/bin/\u00e4"]
