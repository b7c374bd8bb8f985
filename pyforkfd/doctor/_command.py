"""The command ``pyforkfd doctor``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from itertools import groupby

from pyforkfd import __version__, _tables
from pyforkfd._tables import Table, show

from ._examine import Examination, examine_process
from ._experiments import Outcome
from ._features import features, settings
from ._registry import EXPERIMENTS
from ._why import explain
from ._words import describe

_EPILOG = """
pyforkfd doctor                  the kernel's features and settings; statements about
                                 descriptors, each tested here
pyforkfd doctor PID              the descriptors of a process, other processes that hold
                                 them, and problems
pyforkfd doctor why FD -- CMD... whether CMD, started from this shell, would have its
                                 descriptor FD, and why

exit code: 0 no problem; 1 a statement is contradicted or unproven, the process has a problem,
or CMD would not have the descriptor; 2 bad usage or an error.
"""

_LAST = 2**31 - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("words", nargs="*", metavar="PID | why FD", help="see below")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, for programs")
    form.add_argument(
        "--markdown",
        action="store_true",
        help="print the statements alone, as in docs/descriptors.md",
    )
    parser.add_argument(
        "--try",
        dest="really",
        action="store_true",
        help="with why: also execute a small program in place of CMD, and report what it has",
    )


def main(args: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    words: list[str] = args.words
    if words and words[0] == "why":
        if len(words) != 2 or not words[1].isdecimal() or int(words[1]) > _LAST:
            raise ValueError(f"why: {' '.join(words[1:])!r} is not one number: why FD -- CMD...")
        if args.markdown:
            raise ValueError("--markdown: not with `why`: it prints the statements alone")
        return _why(int(words[1]), args.command, really=args.really, as_json=args.json)
    if args.really or args.command:
        raise ValueError("--try and -- CMD...: only with `why FD`")
    if args.markdown:
        if words:
            raise ValueError("--markdown: not with a PID: it prints the statements alone")
        print(statements())
        return 0
    if not words:
        return _machine(as_json=args.json)
    if len(words) != 1 or not words[0].isdecimal() or int(words[0]) > _LAST:
        raise ValueError(f"{' '.join(words)!r} is neither a PID nor `why FD`")
    return _process(int(words[0]), as_json=args.json)


def statements() -> str:
    """Return the statements as a page of documentation has them: the same on every machine."""
    parts = []
    for section, found in groupby(EXPERIMENTS, key=lambda experiment: experiment.section):
        rows = [(e.statement, e.belief, e.control) for e in found]
        columns = ("fact", "common belief", "control: the fact does not hold")
        parts.append(f"### {section}\n\n{_tables.markdown(columns, rows)}")
    return "\n\n".join(parts)


def _machine(*, as_json: bool) -> int:
    about = {
        "pyforkfd": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
    }
    if as_json:
        outcomes = [experiment.run() for experiment in EXPERIMENTS]
        _print_json(
            {
                **about,
                "features": [dataclasses.asdict(feature) for feature in features()],
                "settings": [dataclasses.asdict(setting) for setting in settings()],
                "experiments": [dataclasses.asdict(outcome) for outcome in outcomes],
            }
        )
        return _code(outcomes)
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    show(
        Table(
            title="Features of the kernel, each tried",
            columns=("feature", "since", "here", "result", "used for", "without it"),
            rows=[
                (f.name, f.since, "yes" if f.present else "no", f.seen, f.used_for, f.without)
                for f in features()
            ],
        )
    )
    show(
        Table(
            title="Settings",
            columns=("setting", "value", "meaning"),
            rows=[(s.name, s.value, s.meaning) for s in settings()],
        )
    )
    outcomes = []
    for section, found in groupby(EXPERIMENTS, key=lambda experiment: experiment.section):
        here = [experiment.run() for experiment in found]
        outcomes += here
        show(
            Table(
                title=section,
                columns=("verdict", "fact", "common belief", "observed"),
                rows=[(o.verdict, o.statement, o.belief, o.seen) for o in here],
            )
        )
    count = {v: sum(o.verdict == v for o in outcomes) for v in (o.verdict for o in outcomes)}
    print(f"{len(outcomes)} statements: " + ", ".join(f"{n} {v}" for v, n in count.items()))
    return _code(outcomes)


def _code(outcomes: list[Outcome]) -> int:
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def _process(pid: int, *, as_json: bool) -> int:
    found = examine_process(pid, ignore=os.getpid())
    if as_json:
        _print_json(
            {
                "pid": found.pid,
                "program": found.program,
                "descriptors": [dataclasses.asdict(row) for row in found.table.values()],
                "holders": {
                    str(n): [dataclasses.asdict(holder) for holder in holders]
                    for n, holders in found.holders.items()
                },
                "problems": [dataclasses.asdict(problem) for problem in found.problems],
                "unseen": found.unseen,
            }
        )
    else:
        _show_process(found)
    return 1 if found.problems else 0


def _show_process(found: Examination) -> None:
    rows = []
    for number, row in found.table.items():
        same = ", ".join(map(str, row.shared_with or ()))
        also = ", ".join(map(str, found.holders.get(number, ())))
        mark = "closes" if row.cloexec else "passes"
        mode = row.access + (" nonblocking" if row.nonblocking else "")
        rows.append((str(number), describe(row), mode, mark, same, also))
    show(
        Table(
            title=f"{found.program}, process {found.pid}: {len(rows)} descriptors",
            columns=("fd", "file", "mode", "exec", "same open file", "also held by"),
            rows=rows,
        )
    )
    for problem in found.problems:
        subject = f"descriptor {problem.number} " if problem.number is not None else ""
        print(f"{problem.name}: {subject}{problem.text}\n    remedy: {problem.remedy}")
    if not found.problems:
        print("no problems")
    if found.unseen:
        print(
            f"{found.unseen} processes could not be examined (permission), and may hold some of "
            "these descriptors too"
        )


def _why(fd: int, command: list[str], *, really: bool, as_json: bool) -> int:
    answer = explain(fd, command, really=really, from_shell=True)
    if as_json:
        _print_json(dataclasses.asdict(answer))
    else:
        print(answer)
    return 0 if answer.has else 1


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=2, default=_plain)
    print()


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return os.fsdecode(value).encode(errors="backslashreplace").decode()
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{value!r} has no form in JSON")
