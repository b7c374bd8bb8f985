"""The interpreter's multiprocessing tests for forkserver: test.test_multiprocessing_forkserver.

That is a module in 3.11 and a package later, and some distributions leave it out; what it does
is this.  tests/peers/test_multiprocessing.py runs it.
"""

from test import _test_multiprocessing  # type: ignore[import-not-found]

_test_multiprocessing.install_tests_in_module_dict(globals(), "forkserver")
