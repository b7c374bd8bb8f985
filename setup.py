"""Build the one extension module; everything declarative is in pyproject.toml."""

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "pyforkfd._core",
            ["csrc/bind/module.cpp", "csrc/bind/bind_fd_plan.cpp", "csrc/core/fd_plan.cpp"],
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=["-Wall", "-Wextra", "-fvisibility=hidden"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
