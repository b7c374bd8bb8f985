"""The supervisor's values as JSON, and back: written by one program, read by its successor."""

from __future__ import annotations

import base64
import enum
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from types import MappingProxyType, ModuleType
from typing import Any

from pyforkfd.supervisor.spec import _spec
from pyforkfd.supervisor.spec._spec import Component
from pyforkfd.supervisor.state import _events, _model
from pyforkfd.supervisor.state._persistent import Table


class CodecError(ValueError):
    """A value cannot be encoded, or an encoded one cannot be decoded by this program."""


def _values(modules: Iterable[ModuleType]) -> dict[str, type]:
    found = {}
    for module in modules:
        for name, value in vars(module).items():
            known = is_dataclass(value) or (
                isinstance(value, type) and issubclass(value, enum.Enum)
            )
            if known and value.__module__ == module.__name__:
                found[name] = value
    return found


_CLASSES = _values((_spec, _model, _events))
_FIELDS: dict[type, tuple[Field[Any], ...]] = {
    cls: tuple(field for field in fields(cls) if field.init)  # the others are derived from these
    for cls in _CLASSES.values()
    if is_dataclass(cls)
}
_PLAIN = frozenset({type(None), bool, int, float, str})


class Specs:
    """Components that are written once each, and referred to by number.

    Attributes:
        all: the components, by number.
    """

    def __init__(self) -> None:
        self.all: list[Component] = []
        self._numbers: dict[int, int] = {}  # id() -> number: all of them are held

    def number(self, spec: Component) -> int:
        """Return the number of a component; a new one is added."""
        if (number := self._numbers.get(id(spec))) is None:
            number = self._numbers[id(spec)] = len(self.all)
            self.all.append(spec)
        return number


def encode(value: object, specs: Specs | None = None) -> Any:
    """Encode a value for :mod:`json`.

    An object is a value with its kind: ``{"Worker": {...}}``, ``{"tuple": [...]}``.  Fields of
    dataclasses that have their default are left out.  A value without a kind, such as an
    argument of a worker's function, is pickled.

    Args:
        value: any value.
        specs: components that were encoded so far: all workers of one share it.  New ones are
            added.  None: each is written where it occurs.

    Raises:
        CodecError: the value cannot be pickled.
    """
    cls = type(value)
    if cls in _PLAIN:
        return value
    if specs is not None and isinstance(value, Component):
        return {"spec": specs.number(value)}
    if (known := _FIELDS.get(cls)) is not None:
        pairs = ((field, getattr(value, field.name)) for field in known)
        body = {field.name: encode(v, specs) for field, v in pairs if not _is_default(field, v)}
        return {cls.__name__: body}
    if isinstance(value, enum.Enum) and _CLASSES.get(cls.__name__) is cls:
        return {cls.__name__: value.name}
    if cls in (tuple, list, frozenset, set):
        assert isinstance(value, Iterable)
        return {cls.__name__: [encode(item, specs) for item in value]}
    if cls in (dict, MappingProxyType, Table):
        assert isinstance(value, Mapping)
        return {"dict": [[encode(k, specs), encode(item, specs)] for k, item in value.items()]}
    try:
        return {"pickle": base64.b64encode(pickle.dumps(value)).decode()}
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise CodecError(f"{value!r} cannot be pickled: {error}") from None


def _is_default(field: Field[Any], value: object) -> bool:
    if field.default is not MISSING:
        return type(field.default) is type(value) and field.default == value
    if field.default_factory is not MISSING:
        return bool(field.default_factory() == value)
    return False


def decode(plain: Any, specs: Sequence[Component] = ()) -> Any:
    """Decode a value: equal to the encoded one, with plain dicts for mappings.

    Unknown fields are those of a newer program, and are left out.

    Args:
        plain: the value that :mod:`json` has read.
        specs: the components that :func:`encode` has added.

    Raises:
        CodecError: an object's kind is unknown, or a required field is missing.
    """
    if not isinstance(plain, dict):
        return plain
    if len(plain) != 1:
        raise CodecError(f"an object of {len(plain)} kinds")
    ((kind, body),) = plain.items()
    match kind:
        case "tuple" | "list" | "frozenset" | "set":
            collection = {"tuple": tuple, "list": list, "frozenset": frozenset, "set": set}[kind]
            return collection(decode(item, specs) for item in body)
        case "dict":
            return {decode(key, specs): decode(item, specs) for key, item in body}
        case "spec":
            return specs[body]
        case "pickle":
            return pickle.loads(base64.b64decode(body))
    cls = _CLASSES.get(kind)
    if cls is None:
        raise CodecError(f"there is no {kind} here")
    try:
        if issubclass(cls, enum.Enum):
            return cls[body]
        known = {field.name for field in _FIELDS[cls]}
        return cls(**{name: decode(item, specs) for name, item in body.items() if name in known})
    except (KeyError, TypeError) as error:
        raise CodecError(f"not a {kind} as it is here: {error}") from None
