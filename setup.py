"""Build the one extension module; everything declarative is in pyproject.toml."""

import glob
import os

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

CORE = [
    "become",
    "child",
    "clone",
    "control_message",
    "descriptor",
    "environment",
    "error",
    "exec_watch",
    "fd_details",
    "fd_passing",
    "fd_plan",
    "fd_table",
    "id_maps",
    "names",
    "peer",
    "pidfd",
    "prepared",
    "probe",
    "self_clone",
    "socket_details",
    "spawn",
    "spawn_fds",
    "spawner_thread",
    "transfer_marker",
]
BIND = [
    "bind_channel",
    "bind_clone",
    "bind_descriptor",
    "bind_fd_plan",
    "bind_fd_table",
    "bind_passing",
    "bind_peer",
    "bind_plan",
    "bind_process",
    "bind_spawn",
    "errors",
    "module",
    "passed_values",
    "passing_arguments",
    "waiting",
]

flags = ["-Wall", "-Wextra", "-fvisibility=hidden"]
link: list[str] = []
if sanitize := os.environ.get("PYFORKFD_SANITIZE"):
    flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g"]
    link += [f"-fsanitize={sanitize}"]
if os.environ.get("PYFORKFD_DEBUG"):
    flags += ["-O0", "-g"]

ParallelCompile("PYFORKFD_BUILD_JOBS", default=0).install()

setup(
    ext_modules=[
        Pybind11Extension(
            "pyforkfd._core",
            [f"csrc/bind/{name}.cpp" for name in BIND] + [f"csrc/core/{name}.cpp" for name in CORE],
            depends=glob.glob("csrc/**/*.h", recursive=True),
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=flags,
            extra_link_args=link,
        )
    ],
    cmdclass={"build_ext": build_ext},
)
