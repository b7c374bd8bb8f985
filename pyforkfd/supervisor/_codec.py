"""The supervisor's values as JSON, and back: what a program writes the next one reads."""

from __future__ import annotations

import base64
import enum
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import MappingProxyType, ModuleType
from typing import Any

from . import _events, _model, _spec


class CodecError(ValueError):
    """A value cannot be written, or what was written cannot be read here."""


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


def encode(value: object) -> Any:
    """A value as what :mod:`json` writes.

    An object is a value with its kind: ``{"Worker": {...}}``, ``{"tuple": [...]}``.  Fields of
    dataclasses that have their default are left out.  What has no kind, such as an argument of
    a worker's function, is pickled.

    Raises:
        CodecError: that is impossible.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    ours = _CLASSES.get(type(value).__name__) is type(value)
    if ours and isinstance(value, enum.Enum):
        return {type(value).__name__: value.name}
    if ours and is_dataclass(value):
        told = ((field, getattr(value, field.name)) for field in fields(value))
        body = {field.name: encode(v) for field, v in told if not _is_default(field, v)}
        return {type(value).__name__: body}
    if type(value) in (tuple, list, frozenset, set):
        assert isinstance(value, Iterable)
        return {type(value).__name__: [encode(item) for item in value]}
    if type(value) in (dict, MappingProxyType):
        assert isinstance(value, Mapping)
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
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


def decode(plain: Any) -> Any:
    """The value that was encoded; equal to it, with plain dicts for mappings.

    Fields that are not known here are of a newer program, and are left out.

    Raises:
        CodecError: an object is of no kind that is known here, or lacks what it needs.
    """
    if not isinstance(plain, dict):
        return plain
    if len(plain) != 1:
        raise CodecError(f"an object of {len(plain)} kinds")
    ((kind, body),) = plain.items()
    match kind:
        case "tuple" | "list" | "frozenset" | "set":
            collection = {"tuple": tuple, "list": list, "frozenset": frozenset, "set": set}[kind]
            return collection(map(decode, body))
        case "dict":
            return {decode(key): decode(item) for key, item in body}
        case "pickle":
            return pickle.loads(base64.b64decode(body))
    cls = _CLASSES.get(kind)
    if cls is None:
        raise CodecError(f"there is no {kind} here")
    try:
        if issubclass(cls, enum.Enum):
            return cls[body]
        assert is_dataclass(cls)
        known = {field.name for field in fields(cls)}
        return cls(**{name: decode(item) for name, item in body.items() if name in known})
    except (KeyError, TypeError) as error:
        raise CodecError(f"not a {kind} as it is here: {error}") from None
