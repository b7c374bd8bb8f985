"""The interpreter's tests of multiprocessing with the start method "forkserver".

Its own module test.test_multiprocessing_forkserver is left out where Pythons are built from
source, some of them; the tests themselves never are.
"""

from test import _test_multiprocessing  # type: ignore[import-not-found]

_test_multiprocessing.install_tests_in_module_dict(globals(), "forkserver")
