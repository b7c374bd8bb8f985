"""The reader of TOML files; every problem has its line."""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from typing import cast

from ._problems import Place
from ._reader import WRONG, Reader
from ._spec import Problem, Service, SpecError
from ._toml_lines import line_of, locate
from ._validate import validate


def load(path: str | os.PathLike[str]) -> Service:
    """Read a service from a file and check all of it.

    Args:
        path: UTF-8, TOML 1.0; docs/supervisor-config.md has all tables and keys.

    Raises:
        SpecError: the service is wrong; all problems, each with its line.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError(
            (
                Problem(
                    place=(), text=f"not UTF-8: {error.reason}; write the file in UTF-8", line=line
                ),
            ),
            os.fspath(path),
        ) from None
    return loads(text, os.fspath(path))


def loads(text: str, name: str) -> Service:
    """Read a service from the text of a file and check all of it.

    Args:
        text: TOML 1.0.
        name: name of the file, for messages; its last part without the extension is the name
            of a service that has no ``name`` of its own.

    Raises:
        SpecError: as :func:`load`.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError((_syntax_problem(text, str(error)),), name) from None
    reader = Reader(from_file=True)
    stem = os.path.splitext(os.path.basename(name))[0]
    service = reader.read({"name": stem, "components": {}} | document, Service, ())
    problems = list(reader.problems)
    if service is not WRONG:
        # A value that could not be read is left out; it is not missing as well.
        unread = frozenset(str(place[1]) for place in reader.mistyped if len(place) > 1)
        wrong = {problem.place for problem in problems}
        problems += [
            problem
            for problem in validate(cast(Service, service), unread=unread)
            if not _is_consequence(problem, wrong)
        ]
    if problems:
        lines = locate(text)
        located = [
            dataclasses.replace(problem, line=line_of(lines, problem.place)) for problem in problems
        ]
        located.sort(key=lambda problem: problem.line or 0)
        raise SpecError(tuple(located), name)
    return cast(Service, service)


def _is_consequence(problem: Problem, wrong: set[Place]) -> bool:
    """Whether a problem is that of a wrong value, or of one in or around it."""
    place = problem.place
    return any(place[: len(w)] == w or w[: len(place)] == place for w in wrong)


def _syntax_problem(text: str, message: str) -> Problem:
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message)
    if match is None:
        return Problem(place=(), text=message)
    if match[2] is None:
        line = text.rstrip("\n").count("\n") + 1
        return Problem(place=(), text=f"{match[1]}, at the end of the file", line=line)
    return Problem(place=(), text=f"{match[1]}, column {match[3]}", line=int(match[2]))
