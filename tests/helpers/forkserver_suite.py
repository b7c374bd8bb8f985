"""The interpreter's multiprocessing tests for forkserver: test.test_multiprocessing_forkserver.

The original is a module in 3.11 and a package later, and some distributions leave it out.  This is
the same, without the tests of threads alone (multiprocessing.dummy).
tests/peers/test_multiprocessing.py runs it on a zygote, test_drop_in.py with install().
"""

from test import _test_multiprocessing  # type: ignore[import-not-found]

_test_multiprocessing.install_tests_in_module_dict(globals(), "forkserver")

for _name in [name for name in globals() if name.startswith("WithThreads")]:
    del globals()[_name]
