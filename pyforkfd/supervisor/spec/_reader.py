"""From plain values to the dataclasses of a specification, by their annotations."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from . import _units
from ._spec import Bytes, Limits, MemoryGuard, Problem, Seconds

_UNITS: dict[str, Callable[[str], float]] = {
    "seconds": _units.seconds,
    "bytes": _units.size,
    "limit": _units.limit,
    "signal": _units.signal_number,
}
# Plain numbers to those who use them; here they have a unit.
_MEASURED: dict[type, dict[str, Any]] = {
    Limits: {"memory_max": Bytes, "memory_high": Bytes, "swap_max": Bytes},
    MemoryGuard: {
        "high": Bytes,
        "low": Bytes,
        "seconds": Seconds,
        "recycle": Bytes,
        "recycle_after": Seconds,
    },
}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
_MEASURES = {
    "seconds": "a duration",
    "bytes": "a size",
    "limit": "a limit",
    "signal": "a signal",
}


class _Wrong:
    """Stands for a value that could not be read; what is wrong has been said."""


WRONG = _Wrong()


@functools.cache
def fields_of(kind: type) -> Mapping[str, Any]:
    """Name -> annotation of a dataclass's fields, units included."""
    hints = get_type_hints(kind, include_extras=True)
    found = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    for name, unit in _MEASURED.get(kind, {}).items():
        if name in found:
            optional = type(None) in get_args(found[name])
            found[name] = unit | None if optional else unit
    return found


class Reader:
    """Reads values by annotations and collects what is wrong with them.

    Args:
        units: strings stand for durations, sizes and signals, tables for dataclasses, and
            "none" for None, as in a file.
    """

    def __init__(self, *, units: bool) -> None:
        """Nothing is wrong yet."""
        self.problems: list[Problem] = []
        self._units = units

    def wrong(self, place: tuple[str | int, ...], text: str) -> _Wrong:
        """Note a problem."""
        self.problems.append(Problem(place=place, text=text))
        return WRONG

    def read(self, value: Any, wanted: Any, place: tuple[str | int, ...]) -> Any:
        """The value as the annotation wants it, or WRONG."""
        origin, arguments = get_origin(wanted), get_args(wanted)
        if wanted is Any:
            return value
        if origin is Annotated:
            return self._measured(value, arguments[0], arguments[1], place)
        if origin in (Union, types.UnionType):
            return self._union(value, arguments, place)
        if origin is Literal:
            if value in arguments and isinstance(value, str):
                return value
            return self.wrong(place, _none_of(value, arguments))
        if origin is tuple:
            return self._tuple(value, arguments, place)
        if origin is not None and issubclass(origin, Mapping):
            return self._mapping(value, arguments[1], place)
        if dataclasses.is_dataclass(wanted):
            return self._dataclass(value, cast(type, wanted), place)
        return self._plain(value, wanted, place)

    def _plain(self, value: Any, wanted: type, place: tuple[str | int, ...]) -> Any:
        if text := _impossible(value):
            return self.wrong(place, text)
        if wanted is float and type(value) is int:
            return float(value) if self._units else value
        # A bool is an int, which nobody means; signal.SIGTERM is one too, which is fine.
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            hint = ""
            if isinstance(value, str) and wanted in (int, float, bool):
                hint = ": write it without quotation marks"
            return self.wrong(place, f"{shown(value)} is not {_WORDS[wanted]}{hint}")
        return value

    def _measured(self, value: Any, wanted: type, unit: str, place: tuple[str | int, ...]) -> Any:
        if self._units and isinstance(value, str):
            try:
                return _UNITS[unit](value)
            except ValueError as error:
                return self.wrong(place, str(error))
        if isinstance(value, str | bool) or not isinstance(value, int | wanted):
            what = _MEASURES[unit] if self._units else f"a number ({unit})"
            return self.wrong(place, f"{shown(value)} is not {what}")
        return self._plain(value, wanted, place)

    def _union(self, value: Any, members: Sequence[Any], place: tuple[str | int, ...]) -> Any:
        if value is None and type(None) in members:
            return None
        rest = [member for member in members if member is not type(None)]
        if self._units and value == "none" and len(rest) < len(members) and str not in rest:
            return None
        if text := _impossible(value):
            return self.wrong(place, text)
        if len(rest) == 1:
            return self.read(value, rest[0], place)
        tried = [Reader(units=self._units) for _ in rest]
        for reader, member in zip(tried, rest, strict=True):
            read = reader.read(value, member, place)
            if not reader.problems:
                return read
        # The one that came furthest is the one that was meant.
        best = max(tried, key=lambda reader: max(len(p.place) for p in reader.problems))
        if len(best.problems[0].place) > len(place):
            self.problems += best.problems
            return WRONG
        return self.wrong(place, f"{shown(value)} is not {' or '.join(map(_words, rest))}")

    def _tuple(self, value: Any, members: Sequence[Any], place: tuple[str | int, ...]) -> Any:
        if not isinstance(value, list | tuple):
            hint = f": write [{shown(value)}]" if isinstance(value, str) else ""
            return self.wrong(place, f"{shown(value)} is not an array{hint}")
        if members[-1] is Ellipsis:
            wanted = [members[0]] * len(value)
        elif len(value) != len(members):
            return self.wrong(place, f"{shown(value)} has not {len(members)} elements")
        else:
            wanted = list(members)
        read = [
            self.read(element, member, (*place, index))
            for index, (element, member) in enumerate(zip(value, wanted, strict=True))
        ]
        return WRONG if any(element is WRONG for element in read) else tuple(read)

    def _mapping(self, value: Any, wanted: Any, place: tuple[str | int, ...]) -> Any:
        if not isinstance(value, Mapping):
            return self.wrong(place, f"{shown(value)} is not a table")
        found = {}
        for key, element in value.items():
            if not isinstance(key, str):
                self.wrong(place, f"the key {key!r} is not a string")
                continue
            if text := _impossible(key):
                self.wrong((*place, key), f"the key {text}")
                continue
            if self._units and isinstance(element, dict) and dataclasses.is_dataclass(wanted):
                element = self._named(key, element, cast(type, wanted), (*place, key))
            read = self.read(element, wanted, (*place, key))
            if read is not WRONG:
                found[key] = read
        return found

    def _named(
        self, key: str, table: dict[str, Any], wanted: type, place: tuple[str | int, ...]
    ) -> dict[str, Any]:
        """In a file a thing's name is its key."""
        if "name" not in fields_of(wanted):
            return table
        if "name" in table:
            self.wrong((*place, "name"), f'the name is that of the table, "{key}"')
        return table | {"name": key}

    def _dataclass(self, value: Any, wanted: type, place: tuple[str | int, ...]) -> Any:
        fields = fields_of(wanted)
        if isinstance(value, wanted):
            for name, annotation in fields.items():
                self.read(getattr(value, name), annotation, (*place, name))
            return value
        if not (self._units and isinstance(value, dict)):
            what = "a table" if self._units else f"a {wanted.__name__}"
            return self.wrong(place, f"{shown(value)} is not {what}")
        read = {}
        for key, element in value.items():
            if key not in fields:
                self.wrong((*place, key), _unknown(key, wanted, fields))
                continue
            got = self.read(element, fields[key], (*place, key))
            if got is not WRONG:
                read[key] = got
        for field in dataclasses.fields(wanted):
            if field.default is field.default_factory is dataclasses.MISSING:
                if field.name not in value:
                    self.wrong(place, f"has no {field.name}")
                if field.name not in read:
                    return WRONG
        try:
            return wanted(**read)
        except ValueError as error:  # "field: text" a line, from classes that check themselves
            for line in str(error).splitlines():
                name, colon, text = line.partition(": ")
                if colon and name in fields:
                    self.wrong((*place, name), text)
                else:
                    self.wrong(place, line)
            return WRONG


def _impossible(value: Any) -> str | None:
    """What no system call can be given."""
    if isinstance(value, str):
        if "\0" in value:
            return "has a null byte"
        try:
            os.fsencode(value)
        except UnicodeEncodeError:
            return f"{value!a} cannot be encoded"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"{shown(value)} has more than 64 bits"
    return None


def shown(value: Any) -> str:
    """A value as a message has it: not longer than that it can be read."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """A question to end a message with, or nothing."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _unknown(key: str, kind: type, fields: Mapping[str, Any]) -> str:
    for name, annotation in fields.items():
        for inner in (annotation, *get_args(annotation)):
            if dataclasses.is_dataclass(inner) and key in fields_of(cast(type, inner)):
                return f"no such key here; did you mean {name}.{key}?"
    return f"no such key{nearest(key, fields) or ' of ' + kind.__name__}"


def _none_of(value: Any, choices: Sequence[Any]) -> str:
    listed = ", ".join(f'"{choice}"' for choice in choices)
    return f"{shown(value)} is none of {listed}" + (
        nearest(value, choices) if isinstance(value, str) else ""
    )


def _words(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _MEASURES[get_args(annotation)[1]]
    if get_origin(annotation) is tuple:
        arguments = get_args(annotation)
        if arguments[-1] is Ellipsis:
            return f"an array of which each is {_words(arguments[0])}"
        return f"an array of {len(arguments)}"
    return _WORDS.get(annotation, "a table")
