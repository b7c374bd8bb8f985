"""A service from a TOML file; every problem with its line."""

from __future__ import annotations

import os
import re
import tomllib
from typing import cast

from ._reader import WRONG, Reader
from ._spec import Problem, Service, SpecError
from ._toml_lines import line_of, locate
from ._validate import validate


def load(path: str | os.PathLike[str]) -> Service:
    """Read a service from a file, and check it whole.

    Args:
        path: UTF-8, TOML 1.0; docs/supervisor-config.md has all tables and keys.

    Raises:
        SpecError: it makes no sense; all problems, each with its line.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError(
            (Problem(place=(), text=f"not UTF-8: {error.reason}", line=line),), os.fspath(path)
        ) from None
    return loads(text, os.fspath(path))


def loads(text: str, name: str) -> Service:
    """Read a service from a document.

    Args:
        text: the document.
        name: the file's, for messages; its last part without the extension is the name of
            a service that has no ``name`` of its own.

    Raises:
        SpecError: as :func:`load`.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError((_syntax(text, str(error)),), name) from None
    reader = Reader(units=True)
    stem = os.path.splitext(os.path.basename(name))[0]
    service = reader.read({"name": stem, "components": {}} | document, Service, ())
    said = list(reader.problems)
    if service is not WRONG:
        # What was left out because it could not be read is not to be missed as well.
        unread = frozenset(str(p.place[1]) for p in said if len(p.place) > 1)
        wrong = {problem.place for problem in said}
        said += [
            problem
            for problem in validate(cast(Service, service), unread=unread)
            if not _is_consequence(problem, wrong)
        ]
    if said:
        lines = locate(text)
        found = [Problem(place=p.place, text=p.text, line=line_of(lines, p.place)) for p in said]
        found.sort(key=lambda p: p.line or 0)
        raise SpecError(tuple(found), name)
    return cast(Service, service)


def _is_consequence(problem: Problem, wrong: set[tuple[str | int, ...]]) -> bool:
    """It is about, in or around a value that could not be read."""
    place = problem.place
    return any(place[: len(w)] == w or w[: len(place)] == place for w in wrong)


def _syntax(text: str, message: str) -> Problem:
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message)
    if match is None:
        return Problem(place=(), text=message)
    if match[2] is None:
        line = text.rstrip("\n").count("\n") + 1
        return Problem(place=(), text=f"{match[1]}, at the end of the file", line=line)
    return Problem(place=(), text=f"{match[1]}, column {match[3]}", line=int(match[2]))
