"""A service from a file: read by its annotations, every problem with its line."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import config_tables
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyforkfd.supervisor.spec import _spec
from pyforkfd.supervisor.spec._bounds import Bounds
from pyforkfd.supervisor.spec._reader import Reader, fields_of, metadata_of
from pyforkfd.supervisor.spec._spec import Limits, MemoryGuard, Pressure, Service, SpecError
from pyforkfd.supervisor.spec._toml import load, loads
from pyforkfd.supervisor.spec._validate import validate

PAGE = config_tables.PAGE.read_text()
TABLES: list[type] = [
    cast(type, kind)
    for kind in vars(_spec).values()
    if isinstance(kind, type)
    and dataclasses.is_dataclass(kind)
    and kind not in (Bounds, _spec.Problem)
]


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        loads(text, "shop.toml")
    assert all(problem.line for problem in caught.value.problems)
    return str(caught.value).splitlines()


SMALL = """\
[components.web]
command = ["/bin/true"]
"""

WRONG = {
    "syntax": ("a = \n", ["shop.toml:1: Invalid value, column 5"]),
    "unfinished": ("\na = [1,\n", ["shop.toml:2: Invalid value, at the end of the file"]),
    "unknown": (
        SMALL + "worker = 3",
        ["shop.toml:3: components.web.worker: no such key; did you mean workers?"],
    ),
    "elsewhere": (
        SMALL + 'user = "root"',
        ["shop.toml:3: components.web.user: no such key here; did you mean privileges.user?"],
    ),
    "unlike any": (
        SMALL + "[colour]\n",
        ["shop.toml:3: colour: no such key of Service"],
    ),
    "every type": (
        SMALL + 'workers = "4"\nclear_env = 1\nnice = true\nboot_timeout = [1]\nlisten = "http"\n'
        'env = { A = 5 }\ncgroup = "prefered"\numask = 1.5\nlimits = 7\ncwd = 5\n',
        [
            (
                'shop.toml:3: components.web.workers: "4" is not a whole number; write it without '
                "quotation marks"
            ),
            "shop.toml:4: components.web.clear_env: 1 is not true or false",
            "shop.toml:5: components.web.nice: true is not a whole number",
            (
                "shop.toml:6: components.web.boot_timeout: [1] is not a duration; write seconds, "
                'or "500ms", "30s", "5m", "2h"'
            ),
            'shop.toml:7: components.web.listen: "http" is not an array; write ["http"]',
            "shop.toml:8: components.web.env.A: 5 is not a string",
            (
                'shop.toml:9: components.web.cgroup: "prefered" is none of "prefer", "require", '
                '"off"; did you mean prefer?'
            ),
            (
                "shop.toml:10: components.web.umask: 1.5 is not permissions; write them in octal, "
                "0o660"
            ),
            "shop.toml:11: components.web.limits: 7 is not a table",
            "shop.toml:12: components.web.cwd: 5 is not a string",
        ],
    ),
    "units": (
        SMALL + 'boot_timeout = "30 sec"\nstop_signal = "SIGTREM"\n[components.web.limits]\n'
        'memory_max = "1X"\ncpu_max = "all"\n[components.web.rlimits]\nNOFILE = [1]\n',
        [
            (
                'shop.toml:3: components.web.boot_timeout: "30 sec" is not a duration; write '
                'seconds, or "500ms", "30s", "5m", "2h"'
            ),
            (
                'shop.toml:4: components.web.stop_signal: "SIGTREM" is not a signal; write a '
                'number, or "SIGTERM", "TERM", "SIGRTMIN+3"'
            ),
            (
                'shop.toml:6: components.web.limits.memory_max: "1X" is not a size; write bytes, '
                'or "64K", "512M", "2G"'
            ),
            'shop.toml:7: components.web.limits.cpu_max: "all" is not a number or an array of 2',
            "shop.toml:9: components.web.rlimits.NOFILE: [1] is not a limit or an array of 2",
        ],
    ),
    "an element": (
        '[components.web]\ncommand = [\n  "/bin/true",\n  80,\n]\n',
        ["shop.toml:4: components.web.command.1: 80 is not a string"],
    ),
    "missing": (
        SMALL + "[listeners.http]\nbacklog = 5\n[components.web.memory_guard]\n",
        [
            'shop.toml:3: listeners.http: has no "address", which is required',
            'shop.toml:5: components.web.memory_guard: has no "high", which is required',
        ],
    ),
    "a name": (
        SMALL + 'name = "web"',
        [('shop.toml:3: components.web.name: the table\'s key is the name, "web"; remove this')],
    ),
    # Neither the listener that could not be read nor its users are reported as missing.
    "no consequences": (
        SMALL + 'listen = ["http"]\n[listeners.http]\naddress = 80\n',
        ["shop.toml:5: listeners.http.address: 80 is not a string"],
    ),
    "read and checked at once": (
        SMALL + 'listen = ["htpp"]\nboot_timeout = 0\nworkers = "x"\n[listeners.http]\n'
        'address = "tcp://:0"\nmode = 0o600\n',
        [
            'shop.toml:3: components.web.listen.0: there is no listener "htpp"; did you mean http?',
            (
                "shop.toml:4: components.web.boot_timeout: 0 is out of range; write a duration, "
                "above 0"
            ),
            (
                'shop.toml:5: components.web.workers: "x" is not a whole number; write it without '
                "quotation marks"
            ),
            "shop.toml:8: listeners.http.mode: needs a path, and the address has none; remove it",
        ],
    ),
}


@pytest.mark.parametrize(("text", "lines"), WRONG.values(), ids=WRONG)
def test_problems_have_their_line(text: str, lines: list[str]) -> None:
    assert problems(text) == lines


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(
        SMALL
        + 'drain_timeout = "1m30s"\nstop_signal = "INT"\ndump_signal = "none"\ncpu_affinity=[0]\n'
        "[components.web.limits]\nmemory_max = '512M'\ncpu_max = [5_000, 100_000]\n"
        "[components.web.rlimits]\nnofile = 1024\ncore = [0, 'unlimited']\n"
    )
    service = load(path)
    assert service.name == "shop"
    web = service.components["web"]
    assert web.command == ("/bin/true",)
    assert web.drain_timeout == 90.0
    assert (web.stop_signal, web.dump_signal) == (signal.SIGINT, None)
    assert web.limits.memory_max == 512 * 1024 * 1024
    assert web.limits.cpu_max == (5_000, 100_000)
    assert web.rlimits == {"nofile": 1024, "core": (0, -1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strict:
    """Checks itself, as some parts of a specification do."""

    low: int
    high: int = 5

    def __post_init__(self) -> None:
        if self.low < 0:
            raise ValueError("low: is negative\nhigh: is too high\nall of it: is odd")


def test_a_problem_of_a_class_that_checks_itself_has_its_place() -> None:
    reader = Reader(from_file=True)
    reader.read({"a": {"low": -1}}, Mapping[str, Strict], ("top",))
    assert list(map(str, reader.problems)) == [
        "top.a.low: is negative",
        "top.a.high: is too high",
        "top.a: all of it: is odd",
    ]


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_bytes(b"# fine\n\xff")
    with pytest.raises(
        SpecError, match=r"shop.toml:2: not UTF-8: invalid start byte; write the file in UTF-8$"
    ):
        load(path)


def test_the_page_has_every_table_as_it_is() -> None:
    assert config_tables.renewed(PAGE) == PAGE
    shown = {m[1] for m in config_tables.MARK.findall(PAGE)}
    assert shown == {kind.__name__ for kind in TABLES}
    for kind in TABLES:
        assert list(config_tables.described(kind)) == list(fields_of(kind)), kind


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
def test_a_docstring_states_type_unit_bounds_and_default(kind: type) -> None:
    described, annotations = config_tables.described(kind), fields_of(kind)
    for field in dataclasses.fields(kind):
        stated = config_tables.stated(field, annotations[field.name])
        assert described[field.name][0] == stated, field.name


def test_the_example_of_the_page_can_be_read() -> None:
    example = PAGE.partition("```toml\n")[2].partition("```")[0]
    reader = Reader(from_file=True)
    reader.read(tomllib.loads(example), Service, ())
    assert reader.problems == []


def test_the_problems_of_the_page_are_those_of_its_file() -> None:
    text = """\
[listeners.http]
address = "tcp://:8080"

[components.web]
command = ["/bin/true"]
workers = 4
listen = ["htpp"]

boot_timeout = "30 sec"


user = "www"
"""
    shown = PAGE.partition("```\n")[2].partition("```")[0]
    assert problems(text) == shown.splitlines()


# There and back: any service, written as a document, is read as the same.

# No system call takes a null byte, so no specification has one.
NAMES = st.text(min_size=1, max_size=4).map(lambda text: text.replace("\0", "0"))
TEXTS = st.one_of(
    st.text(max_size=4).map(lambda text: text.replace("\0", "0")),
    st.sampled_from(["root", "/", "/tmp/x", "a:b", "tcp://:80", "unix:/tmp/x", "udp://:1", "true"]),
)


def values(wanted: Any, within: bool) -> st.SearchStrategy[Any]:
    """Make values of an annotation; ``within`` its bounds, else also others."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        unit, bounds = metadata_of(wanted)
        if bounds is None or not within:
            return values(arguments[0], within)
        most = bounds.most
        if most is None:
            assert unit is not None and unit.most is not None, "every number has an upper bound"
            most = unit.most
        if arguments[0] is int:
            return st.integers(int(bounds.least), int(most)).filter(bounds.contain)
        return st.floats(bounds.least, most).filter(bounds.contain)
    if wanted is type(None):
        return st.none()
    if origin in (Union, types.UnionType):
        return st.one_of([values(a, within) for a in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(values(arguments[0], within), max_size=2).map(tuple)
        return st.tuples(*(values(a, within) for a in arguments))
    if wanted is Any:
        return st.integers(-(2**63), 2**63 - 1) | st.text()
    if wanted is float:
        return st.floats(min_value=0, max_value=1e9)
    if dataclasses.is_dataclass(wanted):
        return things(cast(type, wanted), within)
    if origin is not None:
        return st.dictionaries(NAMES, values(arguments[1], within), max_size=2)
    return {int: st.integers(1, 2**40), str: TEXTS, bool: st.booleans()}[wanted]


def things(kind: type, within: bool, **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    checks_itself = kind in (Limits, MemoryGuard, Pressure)
    required = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is field.default_factory is dataclasses.MISSING
    }
    parts = {
        name: values(annotation, within or checks_itself)
        for name, annotation in fields_of(kind).items()
    } | fixed
    optional = {name: parts[name] for name in parts if name not in required}
    found = st.fixed_dictionaries({name: parts[name] for name in required}, optional=optional)
    if checks_itself:  # what they refuse is nothing
        return found.map(lambda values: made(kind, values)).filter(lambda thing: thing is not None)
    return found.map(lambda values: kind(**values))


def made(kind: type, values: Mapping[str, Any]) -> Any:
    try:
        return kind(**values)
    except ValueError:
        return None


def named(kind: type, within: bool) -> st.SearchStrategy[Any]:
    return st.dictionaries(NAMES, things(kind, within), max_size=2).map(
        lambda found: {n: dataclasses.replace(thing, name=n) for n, thing in found.items()}
    )


def text_of(value: Any) -> str:
    """A value as a document has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(text_of, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{text_of(k)} = {text_of(v)}' for k, v in value.items())}}}"
    if dataclasses.is_dataclass(value):
        return text_of(pairs(value))
    if value is None:
        return '"none"'
    return str(int(value)) if isinstance(value, int) else repr(value)


def pairs(thing: Any) -> dict[str, Any]:
    """Return the fields that have not their default; the key has the name."""
    found = {}
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        named_by_key = field.name == "name" and not isinstance(thing, Service)
        if not named_by_key and (default is dataclasses.MISSING or value != default):
            found[field.name] = value
    return found


def services(*, within: bool) -> st.SearchStrategy[Any]:
    return things(
        Service,
        within,
        components=named(_spec.Component, within),
        listeners=named(_spec.Listener, within),
        zygotes=named(_spec.ZygoteSpec, within),
    )


@given(services(within=True))
def test_any_service_is_read_as_it_was_written(service: Service) -> None:
    document = "".join(f"{key} = {text_of(value)}\n" for key, value in pairs(service).items())
    reader = Reader(from_file=True)
    read = reader.read(tomllib.loads(document), Service, ())
    assert reader.problems == []
    assert read == service


@given(services(within=False))
def test_whatever_is_wrong_is_a_problem_and_no_accident(service: Service) -> None:
    for problem in validate(service):
        assert problem.text
        assert problem.place


@given(st.floats(0, 8000), st.sampled_from([("ms", 1e-3), ("s", 1), ("m", 60), ("h", 3600)]))
def test_durations(number: float, unit: tuple[str, float]) -> None:
    text = f'{SMALL}drain_timeout = "{number:f}{unit[0]}"'
    document = tomllib.loads(text)
    read = Reader(from_file=True).read(document["components"], Mapping[str, _spec.Component], ())
    assert math.isclose(
        read["web"].drain_timeout, number * unit[1], rel_tol=1e-3, abs_tol=1e-3 * unit[1]
    )


def test_a_duration_has_an_end_and_a_size_too() -> None:
    text = SMALL + 'drain_timeout = "366d"\n[log]\npath = "/tmp/log"\nmax_bytes = "1025T"\n'
    assert problems(text) == [
        (
            'shop.toml:3: components.web.drain_timeout: "366d" is out of range; write a duration, '
            "at most 365d"
        ),
        'shop.toml:6: log.max_bytes: "1025T" is out of range; write a size, at most 1024T',
    ]
