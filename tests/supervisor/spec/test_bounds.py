"""Whatever a file has for any key is read, or is a problem: never an accident, never a wait."""

from __future__ import annotations

import dataclasses
import math
import os
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyforkfd.supervisor.spec import _spec
from pyforkfd.supervisor.spec._bounds import (
    DEEPEST,
    LARGEST_FILE,
    MOST_PROBLEMS,
    WORKERS,
    Bounds,
)
from pyforkfd.supervisor.spec._privileges import read_filter
from pyforkfd.supervisor.spec._reader import fields_of, metadata_of
from pyforkfd.supervisor.spec._spec import Service, SpecError
from pyforkfd.supervisor.spec._toml import load, loads
from pyforkfd.supervisor.spec._units import LIMIT, SIGNAL
from pyforkfd.supervisor.spec._validate import validate
from pyforkfd.supervisor.succession._handover import check_savable

BASE: dict[str, dict[str, str]] = {
    "": {},
    "listeners.http": {"address": '"tcp://127.0.0.1:0"'},
    "components.web": {"command": '["/bin/true"]', "listen": '["http"]'},
    "zygotes.py": {},
}
TABLES: dict[str, type] = {
    "": _spec.Service,
    "listeners.http": _spec.Listener,
    "components.web": _spec.Component,
    "components.web.restart": _spec.Restart,
    "components.web.recycle": _spec.Recycle,
    "components.web.heartbeat": _spec.Heartbeat,
    "components.web.privileges": _spec.Privileges,
    "components.web.limits": _spec.Limits,
    "components.web.memory_guard": _spec.MemoryGuard,
    "components.web.pressure": _spec.Pressure,
    "zygotes.py": _spec.ZygoteSpec,
    "control": _spec.Control,
    "log": _spec.Log,
    "log.loki": _spec.Loki,
    "metrics": _spec.Metrics,
}
KEYS = [(table, key) for table, kind in TABLES.items() for key in fields_of(kind)]
VALUES = {
    "minus one": "-1",
    "zero": "0",
    "a billion": "1_000_000_000",
    "2**40": str(2**40),
    "2**63": str(2**63),
    "5,000 digits": "9" * 5000,
    "4,000 digits": "9" * 4000,
    "5,000 hexadecimal digits": "0x" + "f" * 5000,
    "an exponent": "1e300",
    "a larger one": "1e999",
    "infinity": "inf",
    "minus infinity": "-inf",
    "not a number": "nan",
    "yes": "true",
    "empty": '""',
    "a null byte": '"a\\u0000b"',
    "long": f'"{"x" * 140_000}"',
    "long number": f'"{"9" * 5000}s"',
    "a size beyond floats": f'"{"9" * 400}T"',
    "blanks": f'"1s{" " * 50_000}x"',
    "a duration": '"1e9s"',
    "a signal": f'"SIGRTMIN+{"9" * 5000}"',
    "not ASCII": '"☃..a"',
    "an address": '"tcp://☃..a:80"',
    "a port of 5,000 digits": f'"tcp://:{"9" * 5000}"',
    "a long path": f'"unix:/{"x" * 200}"',
    "a function": '"no.such.module:at_all"',
    "a date": "1979-05-27T07:32:00Z",
    "no elements": "[]",
    "an empty element": '[""]',
    "5,000 elements": f"[{'1,' * 5000}]",
    "5,000 texts": "[" + '"a",' * 5000 + "]",
    "huge elements": f'[{2**64}, 0x{"f" * 5000}, inf, "a\\u0000"]',
    "nested": "[" * 30 + "]" * 30,
    "nested too deeply": "[" * 200 + "]" * 200,
    "nested beyond Python": "[" * 5000 + "]" * 5000,
    "nested tables": "{a=" * 300 + "1" + "}" * 300,
    "no keys": "{}",
    "2,000 keys": "{" + ", ".join(f"k{i} = 1" for i in range(2000)) + "}",
    "an empty key": '{"" = 1}',
    "a long key": f'{{{"k" * 70_000} = "1"}}',
    "a key of 20,000 parts": f"{{{'a.' * 20_000}b = 1}}",
}


def document(table: str, key: str, value: str) -> str:
    """A service with one value of our choice."""
    tables = {name: dict(keys) for name, keys in BASE.items()}
    tables.setdefault(table, {})[key] = value
    lines = []
    for name, keys in tables.items():
        lines += [f"[{name}]"] if name else []
        lines += [f"{name} = {text}" for name, text in keys.items()]
    return "\n".join(lines)


def read(text: str) -> Service | None:
    """Read a service as a reload does; None: it has problems."""
    try:
        service = loads(text, "shop.toml")
    except SpecError as error:
        assert 0 < len(error.problems) <= MOST_PROBLEMS
        assert all(problem.text for problem in error.problems)
        assert len(str(error)) < 100_000
        return None
    assert validate(service) == []
    check_savable(service)  # what a keeper is to have
    for number in numbers(service):
        assert math.isfinite(number)
        assert abs(number) < 2**63
    return service


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        value = [v for name, v in pairs if name not in ("args", "kwargs")]
    if isinstance(value, list | tuple):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield value


def test_the_service_that_is_changed_is_right() -> None:
    assert read(document("components.web", "workers", "3")) is not None


@pytest.mark.parametrize(("table", "key"), KEYS, ids=[f"{t}.{k}" for t, k in KEYS])
def test_any_value_for_any_key_is_read_or_refused(table: str, key: str) -> None:
    if key == "name" and table:
        pytest.skip("the key of the table")
    slowest = 0.0
    for value in VALUES.values():
        begin = time.process_time()
        read(document(table, key, value))
        slowest = max(slowest, time.process_time() - begin)
    assert slowest < 5.0  # seconds of our own: the loop waits for it


@given(
    st.sampled_from(KEYS),
    st.recursive(
        st.sampled_from(list(VALUES.values())) | st.integers().map(str) | st.floats().map(repr),
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
            | st.lists(inner, max_size=3).map(
                lambda parts: "{" + ", ".join(f"k{i} = {p}" for i, p in enumerate(parts)) + "}"
            )
        ),
        max_leaves=5,
    ),
)
def test_any_value_within_others(place: tuple[str, str], value: str) -> None:
    read(document(*place, value))


@given(st.text(max_size=200) | st.text("[]{}=\".'\\#\n a1", max_size=200))
def test_any_text_is_a_service_or_a_problem(text: str) -> None:
    read(text.encode(errors="replace").decode())


# The kinds of bounds


def bounded(wanted: Any) -> bool:
    """Whether a number of an annotation can be only so large, or is checked by its kind."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        unit, bounds = metadata_of(wanted)
        if unit in (SIGNAL, LIMIT):
            return True  # valid_signals(); 64 bits, as the kernel has them
        most = None if bounds is None else bounds.most
        if most is None and unit is not None:
            most = unit.most
        return most is not None and math.isfinite(most)
    if origin in (Union, types.UnionType):
        return all(map(bounded, arguments))
    return wanted not in (int, float)


# Each of these has a check of its own, of which the second test shows that it is there.
CHECKED = {
    "components.web.limits.cpu_max": ["8193", "1e9", "[1_000, 10_000_000]"],
    "components.web.privileges.user": ["5_000_000_000", "-2"],
    "components.web.privileges.group": ["5_000_000_000", "-2"],
    "components.web.privileges.extra_groups": ["[5_000_000_000]"],
    "components.web.cpu_affinity": ["[1_000_000_000]"],
    "components.web.numbers": ["{ http = 1_000_000 }"],
    "control.allow_users": ["[5_000_000_000]", "[-2]"],
}


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_every_number_has_an_upper_bound(table: str, key: str) -> None:
    if f"{table}.{key}" not in CHECKED:
        assert bounded(fields_of(TABLES[table])[key])


@pytest.mark.parametrize("place", CHECKED)
def test_a_number_without_an_annotation_is_checked(place: str) -> None:
    table, _, key = place.rpartition(".")
    kind = fields_of(TABLES[table])[key]
    assert get_origin(kind) is not Literal
    for value in CHECKED[place]:
        text = document(table, key, value)
        if key == "numbers":
            text = text.replace("[zygotes.py]", 'give = "numbers"\n[zygotes.py]')
        with pytest.raises(SpecError, match=key):
            loads(text, "shop.toml")


def test_the_table_of_tables_is_complete() -> None:
    kinds = {
        kind
        for kind in vars(_spec).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    } - {Bounds, _spec.Problem}
    assert kinds == set(TABLES.values())


def test_workers_are_bounded_together() -> None:
    half = int(WORKERS.most or 0) // 2 + 1
    text = "".join(
        f'[components.{name}]\ncommand = ["/bin/true"]\nworkers = {half}\n' for name in "ab"
    )
    with pytest.raises(SpecError, match=f"components: have {2 * half} workers together"):
        loads(text, "shop.toml")


def test_problems_have_their_line_where_the_parser_has_none() -> None:
    for bad, text in {
        "[" * 5000 + "]" * 5000: f"nested too deeply; write at most {DEEPEST} levels",
        "9" * 5000: "a number cannot be read: ",
        "{" + "a." * 200 + "b = 1}": "a key of more than 100 parts",
    }.items():
        with pytest.raises(SpecError, match=rf"^shop.toml:2: .*{text}"):
            loads(f"# a comment\nx = {bad}\n", "shop.toml")


def test_many_problems_are_cut() -> None:
    text = "".join(f"[components.c{i}]\nworker = {i}\n" for i in range(900))
    begin = time.process_time()
    with pytest.raises(SpecError) as caught:
        loads(text, "shop.toml")
    assert len(caught.value.problems) == MOST_PROBLEMS
    assert time.process_time() - begin < 5.0


# Files


def fifo(path: Path) -> None:
    os.mkfifo(path)


def too_long(path: Path) -> None:
    path.write_bytes(b"#" * (LARGEST_FILE + 1))


PLACES = {
    "a directory": (Path.mkdir, "is a directory; write the path of a regular file"),
    "a pipe": (fifo, "is a pipe; write the path of a regular file"),
    "a device": (lambda p: p.symlink_to("/dev/zero"), "is a character device; write"),
    "too long": (too_long, f"has more than {LARGEST_FILE} bytes"),
    "a link to itself": (lambda p: p.symlink_to(p), "Too many levels of symbolic links"),
    "nothing": (lambda p: None, "No such file or directory"),
}


@pytest.mark.parametrize(("make", "why"), PLACES.values(), ids=PLACES)
def test_a_place_that_is_no_file(make: Any, why: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(OSError, match=why) as caught:
        load(tmp_path / "x")
    assert caught.value.filename == str(tmp_path / "x")


def test_a_filter_is_a_regular_file_too(tmp_path: Path) -> None:
    fifo(tmp_path / "x")
    with pytest.raises(OSError, match="is a pipe"):
        read_filter(str(tmp_path / "x"))
