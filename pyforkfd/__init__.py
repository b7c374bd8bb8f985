"""fork, exec and file descriptors done right, for Python on Linux."""

__version__ = "0.1.0.dev0"
