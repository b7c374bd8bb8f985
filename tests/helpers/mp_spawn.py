"""The interpreter's tests of multiprocessing with the start method "spawn".

Its own module test.test_multiprocessing_spawn is left out where Pythons are built from
source, some of them; the tests themselves never are.
"""

from test import _test_multiprocessing  # type: ignore[import-not-found]

_test_multiprocessing.install_tests_in_module_dict(globals(), "spawn")
