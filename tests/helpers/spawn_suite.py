"""The interpreter's multiprocessing tests for spawn: test.test_multiprocessing_spawn.

See forkserver_suite.py.  tests/peers/test_drop_in.py runs both.
"""

from test import _test_multiprocessing  # type: ignore[import-not-found]

_test_multiprocessing.install_tests_in_module_dict(globals(), "spawn")

for _name in [name for name in globals() if name.startswith("WithThreads")]:
    del globals()[_name]
