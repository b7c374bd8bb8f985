"""From plain values to the dataclasses of a specification, by their annotations."""

from __future__ import annotations

import dataclasses
import functools
import os
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from ._bounds import LONGEST_TEXT, MOST_ELEMENTS, MOST_PROBLEMS, Bounds
from ._problems import Place, Problem
from ._units import MODE, Unit

_LONGEST_NAME = 64  # characters; the time for a comparison grows with the square
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


class _Wrong:
    """The stand-in for a value with a problem that was noted."""


WRONG = _Wrong()


@functools.cache
def fields_of(kind: type) -> Mapping[str, Any]:
    """Map the names of a dataclass's fields to their annotations, with units and bounds."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def check_fields(value: object) -> list[str]:
    """Check a dataclass's fields by their annotations, for its ``__post_init__``.

    Args:
        value: an instance of a dataclass.

    Returns:
        A line ``field: problem`` for each.
    """
    kind: type = type(value)
    reader = Reader(from_file=False)
    for name, annotation in fields_of(kind).items():
        reader.read(getattr(value, name), annotation, (name,))
    return [str(problem) for problem in reader.problems]


def metadata_of(annotation: Any) -> tuple[Unit | None, Bounds | None]:
    """Return the unit and the bounds of an ``Annotated`` number."""
    _, *metadata = get_args(annotation)
    return (
        next((one for one in metadata if isinstance(one, Unit)), None),
        next((one for one in metadata if isinstance(one, Bounds)), None),
    )


class Reader:
    """Reads values by annotations and collects the problems.

    Attributes:
        problems: every problem, in the order of the values.
        mistyped: places of the values that could not be read; those out of bounds are not
            among them.
    """

    def __init__(self, *, from_file: bool) -> None:
        """Start without problems.

        Args:
            from_file: strings stand for durations, sizes and signals, tables for
                dataclasses, and "none" for None.
        """
        self.problems: list[Problem] = []
        self.mistyped: list[Place] = []
        self._from_file = from_file

    def wrong(self, place: Place, text: str) -> _Wrong:
        """Note a value that cannot be read."""
        self.mistyped.append(place)
        return self._note(place, text)

    def _note(self, place: Place, text: str) -> _Wrong:
        self.problems.append(Problem(place=place, text=text))
        return WRONG

    @property
    def _full(self) -> bool:
        """Whether there are so many problems that nobody reads another."""
        return len(self.problems) >= MOST_PROBLEMS

    def read(self, value: Any, wanted: Any, place: Place) -> Any:
        """Convert a value to its annotation.

        Args:
            value: as the file or the caller has it.
            wanted: the annotation.
            place: keys that lead to the value.

        Returns:
            The converted value, or WRONG after noting a problem.
        """
        origin, arguments = get_origin(wanted), get_args(wanted)
        if wanted is Any:
            return self._any(value, place)
        if origin is Annotated:
            return self._number(value, wanted, place)
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

    def _any(self, value: Any, place: Place) -> Any:
        """Check a value of any kind, as far as it is known what becomes of it."""
        if not self._from_file:  # it is pickled, and may be anything
            return value
        items: Iterable[tuple[str | int, Any]] = ()
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list):
            items = enumerate(value)
        elif text := _unrepresentable(value, is_name=False):
            return self.wrong(place, text)
        for key, element in items:
            if not self._full:
                self._any(element, (*place, key))
        return value

    def _plain(self, value: Any, wanted: type, place: Place) -> Any:
        if text := _unrepresentable(value):
            return self.wrong(place, text)
        if wanted is float and type(value) is int:
            return float(value) if self._from_file else value
        # A bool is an int, which nobody means; signal.SIGTERM is one too, which is fine.
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            hint = ""
            if isinstance(value, str) and wanted in (int, float, bool):
                hint = "; write it without quotation marks"
            return self.wrong(place, f"{shown(value)} is not {_WORDS[wanted]}{hint}")
        return value

    def _number(self, value: Any, wanted: Any, place: Place) -> Any:
        kind = get_args(wanted)[0]
        unit, bounds = metadata_of(wanted)
        number = (
            self._plain(value, kind, place)
            if unit is None
            else self._measured(value, kind, unit, place)
        )
        if number is WRONG:
            return WRONG
        if bounds is not None and not bounds.contain(number):
            advice = self._advice(value, kind, unit, bounds)
        elif unit is not None and unit.most is not None and number > unit.most:
            name = unit.name if self._from_file else unit.plain
            advice = f"write {name}, at most {unit.show(unit.most)}"
        else:
            return number
        return self._note(place, f"{shown(value)} is out of range; {advice}")

    def _measured(self, value: Any, kind: type, unit: Unit, place: Place) -> Any:
        if self._from_file and isinstance(value, str) and unit.parse is not None:
            try:
                return self._plain(unit.read(value), kind, place)
            except ValueError as error:
                return self.wrong(place, str(error))
        if isinstance(value, str | bool) or not isinstance(value, int | kind):
            if self._from_file:
                return self.wrong(place, unit.refusal(shown(value)))
            return self.wrong(place, f"{shown(value)} is not {_WORDS[kind]}; write {unit.plain}")
        return self._plain(value, kind, place)

    def _advice(self, value: Any, kind: type, unit: Unit | None, bounds: Bounds) -> str:
        if unit is None:
            return f"write {_WORDS[kind]}, {bounds.text()}"
        if unit is MODE and set(str(value)) <= set("01234567") and len(str(value)) <= 3:
            return f"write 0o{value}"
        name = unit.name if self._from_file else unit.plain
        return f"write {name}, {bounds.text(unit.show)}"

    def _union(self, value: Any, members: Sequence[Any], place: Place) -> Any:
        if value is None and type(None) in members:
            return None
        rest = [member for member in members if member is not type(None)]
        if self._from_file and value == "none" and len(rest) < len(members) and str not in rest:
            return None
        if text := _unrepresentable(value):
            return self.wrong(place, text)
        if len(rest) == 1:
            return self.read(value, rest[0], place)
        attempts = [Reader(from_file=self._from_file) for _ in rest]
        for reader, member in zip(attempts, rest, strict=True):
            result = reader.read(value, member, place)
            if not reader.problems:
                return result
        # The member that was read furthest is the one that was meant.
        best = max(attempts, key=lambda reader: max(len(p.place) for p in reader.problems))
        if len(best.problems[0].place) > len(place):
            self.problems += best.problems
            self.mistyped += best.mistyped
            return WRONG
        return self.wrong(place, f"{shown(value)} is not {' or '.join(map(_words, rest))}")

    def _tuple(self, value: Any, members: Sequence[Any], place: Place) -> Any:
        if not isinstance(value, list | tuple):
            hint = f"; write [{shown(value)}]" if isinstance(value, str) else ""
            return self.wrong(place, f"{shown(value)} is not an array{hint}")
        if members[-1] is Ellipsis:
            if len(value) > MOST_ELEMENTS:
                return self.wrong(place, _too_many(len(value), "elements"))
            wanted = [members[0]] * len(value)
        elif len(value) != len(members):
            return self.wrong(place, f"{shown(value)} is not an array of {len(members)} elements")
        else:
            wanted = list(members)
        elements = [
            self.read(element, member, (*place, index))
            for index, (element, member) in enumerate(zip(value, wanted, strict=True))
            if not self._full
        ]
        return WRONG if any(element is WRONG for element in elements) else tuple(elements)

    def _mapping(self, value: Any, wanted: Any, place: Place) -> Any:
        if not isinstance(value, Mapping):
            return self.wrong(place, f"{shown(value)} is not a table")
        if len(value) > MOST_ELEMENTS:
            return self.wrong(place, _too_many(len(value), "keys"))
        result = {}
        for key, element in value.items():
            if self._full:
                break
            if not isinstance(key, str):
                self.wrong(place, f"the key {key!r} is not a string")
                continue
            if text := _unrepresentable(key):
                self.wrong((*place, key), f"the key {text}")
                continue
            if self._from_file and isinstance(element, dict) and dataclasses.is_dataclass(wanted):
                element = self._with_name(key, element, cast(type, wanted), (*place, key))
            converted = self.read(element, wanted, (*place, key))
            if converted is not WRONG:
                result[key] = converted
        return result

    def _with_name(
        self, key: str, table: dict[str, Any], wanted: type, place: Place
    ) -> dict[str, Any]:
        """Add the name of a component, listener or zygote: in a file, the key of its table."""
        if "name" not in fields_of(wanted):
            return table
        if "name" in table:
            self.wrong((*place, "name"), f'the table\'s key is the name, "{key}"; remove this')
        return table | {"name": key}

    def _dataclass(self, value: Any, wanted: type, place: Place) -> Any:
        fields = fields_of(wanted)
        if isinstance(value, wanted):
            for name, annotation in fields.items():
                self.read(getattr(value, name), annotation, (*place, name))
            return value
        if not (self._from_file and isinstance(value, dict)):
            what = "a table" if self._from_file else f"a {wanted.__name__}"
            return self.wrong(place, f"{shown(value)} is not {what}")
        arguments = {}
        for key, element in value.items():
            if self._full:
                return WRONG
            if key not in fields:
                self.wrong((*place, key), _unknown(key, wanted, fields))
                continue
            converted = self.read(element, fields[key], (*place, key))
            if converted is not WRONG:
                arguments[key] = converted
        for field in dataclasses.fields(wanted):
            if field.default is field.default_factory is dataclasses.MISSING:
                if field.name not in value:
                    self.wrong(place, f'has no "{field.name}", which is required')
                if field.name not in arguments:
                    return WRONG
        try:
            return wanted(**arguments)
        except ValueError as error:  # a line "field: text" each, from classes that check themselves
            for line in str(error).splitlines():
                name, colon, text = line.partition(": ")
                if colon and name in fields:
                    self._note((*place, name), text)
                else:
                    self._note(place, line)
            return WRONG


def _unrepresentable(value: Any, *, is_name: bool = True) -> str | None:
    """Return why no system call can take a value; None: one can.

    Args:
        value: any value.
        is_name: a string is a path, an argument or a variable; else only data.
    """
    if isinstance(value, str) and is_name:
        if "\0" in value:
            return "has a null byte"
        try:
            size = len(os.fsencode(value))
        except UnicodeEncodeError:
            return f"{value!a:.60} cannot be encoded"
        if size > LONGEST_TEXT:
            return f"{shown(value)} has {size} bytes; write at most {LONGEST_TEXT}"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"{shown(value)} has more than 64 bits"
    return None


def shown(value: Any) -> str:
    """Format a value for a message, cut to 60 characters."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = f'"{value}"' if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message that suggests a similar name, or an empty string."""
    if len(name) > _LONGEST_NAME:
        return ""
    import difflib  # for a message alone: describing a service does not load it

    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _too_many(count: int, what: str) -> str:
    return f"has {count} {what}; write at most {MOST_ELEMENTS}"


def _unknown(key: str, kind: type, fields: Mapping[str, Any]) -> str:
    for name, annotation in fields.items():
        for inner in (annotation, *get_args(annotation)):
            is_table = isinstance(inner, type) and dataclasses.is_dataclass(inner)
            if is_table and key in fields_of(inner):
                return f"no such key here; did you mean {name}.{key}?"
    return f"no such key{nearest(key, fields) or ' of ' + kind.__name__}"


def _none_of(value: Any, choices: Sequence[Any]) -> str:
    listed = ", ".join(f'"{choice}"' for choice in choices)
    return f"{shown(value)} is none of {listed}" + (
        nearest(value, choices) if isinstance(value, str) else ""
    )


def _words(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        unit, _ = metadata_of(annotation)
        return _WORDS[get_args(annotation)[0]] if unit is None else unit.name
    if get_origin(annotation) is tuple:
        arguments = get_args(annotation)
        if arguments[-1] is Ellipsis:
            return f"an array of which each is {_words(arguments[0])}"
        return f"an array of {len(arguments)}"
    return _WORDS.get(annotation, "a table")
