"""Run parts of the interpreter's own `test` package; started by tests/helpers/suites.py.

    python run_suite.py OUT ADAPTER NAME...

Names are those of unittest: test.test_socket, test.test_socket.SCMRightsTest, and one more
dot for a single test; "+Word" takes only tests with that word in their name.
ADAPTER, unless it is "-", is a Python file that is executed first and puts our functions in
place of the standard ones; if it defines calls(), that returns at the end how often they were
called.  One JSON object is written to OUT.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import runpy
import sys
import unittest
from collections.abc import Iterator
from typing import Any

TOO_LONG = 240.0


class Outcomes(unittest.TextTestResult):
    """The outcome of each test; a hang ends the run with every thread's stack."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outcomes: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        faulthandler.dump_traceback_later(TOO_LONG, exit=True)
        self.outcomes[test.id()] = "passed"
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)

    def addError(self, test: Any, err: Any) -> None:
        self.outcomes[test.id()] = "failed"  # of a class or module too
        super().addError(test, err)

    def addFailure(self, test: Any, err: Any) -> None:
        self.outcomes[test.id()] = "failed"
        super().addFailure(test, err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self.outcomes[test.id()] = "failed"
        super().addSubTest(test, subtest, err)

    def addSkip(self, test: Any, reason: str) -> None:
        self.outcomes[test.id()] = f"skipped: {reason}"
        super().addSkip(test, reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self.outcomes[test.id()] = "failed as expected"
        super().addExpectedFailure(test, err)


def _with(words: list[str], suite: unittest.TestSuite) -> Iterator[unittest.TestSuite]:
    """Yield the suites of single classes, whose fixtures need their tests together."""
    for part in suite:
        if not isinstance(part, unittest.TestSuite):
            yield unittest.TestSuite([part])  # a module that could not be loaded
        elif any(isinstance(test, unittest.TestSuite) for test in part):
            yield from _with(words, part)
        else:
            chosen = [test for test in part if all(word in _id(test) for word in words)]
            yield unittest.TestSuite(chosen)


def _id(test: unittest.TestCase | unittest.TestSuite) -> str:
    assert isinstance(test, unittest.TestCase)
    return test.id()


def main() -> None:
    out, adapter, *names = sys.argv[1:]
    support: Any = importlib.import_module("test.support")  # not every Python has it

    support.use_resources = ["cpu", "network", "subprocess", "walltime"]
    support.verbose = True
    installed = {} if adapter == "-" else runpy.run_path(adapter)
    words = [name[1:] for name in names if name.startswith("+")]
    loaded = unittest.defaultTestLoader.loadTestsFromNames([n for n in names if n[0] != "+"])
    suite = unittest.TestSuite(_with(words, loaded))
    result = unittest.TextTestRunner(stream=sys.stderr, verbosity=2, resultclass=Outcomes).run(
        suite
    )
    assert isinstance(result, Outcomes)
    calls = installed["calls"]() if "calls" in installed else None
    with open(out, "w") as file:
        json.dump({"outcomes": result.outcomes, "calls": calls}, file)


if __name__ == "__main__":
    main()
