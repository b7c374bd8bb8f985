"""The reader of TOML files; every problem has its line."""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, cast

from pyforkfd._trusted_files import read_file

from ._bounds import DEEPEST, LARGEST_FILE, MOST_PROBLEMS
from ._problems import Place
from ._reader import WRONG, Reader
from ._spec import Problem, Service, SpecError
from ._toml_lines import line_of, locate
from ._validate import validate

Examine: TypeAlias = Callable[[Service], Iterable[Problem]]

_MOST_PARTS = 100
_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
# Of one part as well, so that no text is tried twice: the time is that of one reading.
_KEY = re.compile(rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*")
_MANY_DIGITS = re.compile(r"[0-9][0-9_]{3000,}")


def load(path: str | os.PathLike[str], *, examine: Examine | None = None) -> Service:
    """Read a service from a file and check all of it.

    Args:
        path: a regular file of at most 256 KiB, UTF-8, TOML 1.0; docs/supervisor-config.md has
            all tables and keys.
        examine: as for :func:`loads`.

    Raises:
        SpecError: the service is wrong; all problems, each with its line.
        OSError: the file cannot be read, or is none.
    """
    data = read_file(path, LARGEST_FILE)
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
    directory = os.path.dirname(os.path.abspath(os.fspath(path)))
    return loads(text, os.fspath(path), examine=examine, directory=directory)


def loads(
    text: str, name: str, *, examine: Examine | None = None, directory: str | None = None
) -> Service:
    """Read a service from the text of a file and check all of it.

    Args:
        text: TOML 1.0.
        name: name of the file, for messages; its last part without the extension is the name
            of a service that has no ``name`` of its own.
        examine: finds further problems of the service, of which some values may be wrong.
        directory: absolute path of the file's directory: the default of ``app_dir``, and where a
            relative one begins; None: there is no file.

    Raises:
        SpecError: as :func:`load`.
    """
    reader = Reader(from_file=True)
    stem = os.path.splitext(os.path.basename(name))[0]
    document = {"name": stem, "components": {}} | _document(text, name)
    service = reader.read(document, Service, ())
    problems = list(reader.problems)
    if service is not WRONG and directory is not None:
        app_dir = os.path.normpath(os.path.join(directory, cast(Service, service).app_dir or "."))
        service = dataclasses.replace(cast(Service, service), app_dir=app_dir)
    if service is not WRONG:
        # A value that could not be read is left out; it is not missing as well.
        unread = frozenset(str(place[1]) for place in reader.mistyped if len(place) > 1)
        wrong = {problem.place for problem in problems}
        problems += [
            problem
            for problem in validate(cast(Service, service), unread=unread)
            if not _is_consequence(problem, wrong)
        ]
        if examine is not None:
            wrong = {problem.place for problem in problems}
            found = examine(cast(Service, service))
            problems += [problem for problem in found if not _is_consequence(problem, wrong)]
    if problems:
        lines = locate(text)
        located = [
            dataclasses.replace(problem, line=line_of(lines, problem.place)) for problem in problems
        ]
        located.sort(key=lambda problem: problem.line or 0)
        raise SpecError(tuple(located[:MOST_PROBLEMS]), name)
    return cast(Service, service)


def _document(text: str, name: str) -> dict[str, Any]:
    """Parse a document; what it cannot be parsed for is a problem, whatever it is.

    Raises:
        SpecError: the text is no TOML, or nested too deeply.
    """
    # tomllib copies the first parts of a key for each further one: hours for a long one.
    for key in _KEY.finditer(text):
        if key[0].count(".") >= _MOST_PARTS:
            line = text.count("\n", 0, key.start()) + 1
            why = f"a key of more than {_MOST_PARTS} parts; write fewer"
            raise SpecError((Problem(place=(), text=why, line=line),), name)
    try:
        document = tomllib.loads(text)
        too_deep = _depth(document) > DEEPEST
    except tomllib.TOMLDecodeError as error:
        raise SpecError((_syntax_problem(text, str(error)),), name) from None
    except RecursionError:
        too_deep = True
    except ValueError as error:  # of int(), for one of more than 4,300 digits
        match = _MANY_DIGITS.search(text)
        at = None if match is None else text.count("\n", 0, match.start()) + 1
        why = f"a number cannot be read: {error}; write one of at most 64 bits"
        raise SpecError((Problem(place=(), text=why, line=at),), name) from None
    if too_deep:
        why = f"arrays and tables are nested too deeply; write at most {DEEPEST} levels"
        raise SpecError((Problem(place=(), text=why, line=_deep_line(text)),), name)
    return document


def _depth(document: dict[str, Any]) -> int:
    """Return the number of levels of a document."""
    levels = 0
    here: list[Any] = [document]
    while here:
        levels += 1
        tables = [one.values() if isinstance(one, dict) else one for one in here]
        here = [one for table in tables for one in table if isinstance(one, dict | list)]
    return levels


def _deep_line(text: str) -> int | None:
    """Return the first line with so many brackets; None: they are spread over several."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.count("[") + line.count("{") + line.count(".") >= DEEPEST:
            return number
    return None


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
