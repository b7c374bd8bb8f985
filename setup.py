"""Build the extension module, the library for LD_PRELOAD and the supervisor's keeper.

Everything declarative is in pyproject.toml.
"""

import glob
import os

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import Extension, setup

CORE = [
    "atfork",
    "become",
    "child",
    "child_actions",
    "clone",
    "control_message",
    "counters",
    "descriptor",
    "dump",
    "environment",
    "epoll_drift",
    "epoll_rebuild",
    "epoll_set",
    "epoll_view",
    "error",
    "exec_watch",
    "fd_details",
    "fd_passing",
    "fd_plan",
    "fd_section",
    "fd_table",
    "features",
    "fork_lock",
    "fork_trace",
    "forked",
    "gauges",
    "id_maps",
    "live_sets",
    "names",
    "peer",
    "pidfd",
    "prepared",
    "probe",
    "self_clone",
    "shared_page",
    "socket_details",
    "spawn",
    "spawn_args",
    "spawn_attempt",
    "spawn_fds",
    "spawner_thread",
    "sysmon",
    "trace",
    "transfer_marker",
]
BIND = [
    "at_fork_hooks",
    "bind_at_fork",
    "bind_channel",
    "bind_clone",
    "bind_descriptor",
    "bind_epoll",
    "bind_fd_plan",
    "bind_fd_table",
    "bind_fork",
    "bind_fork_exec",
    "bind_page",
    "bind_passing",
    "bind_peer",
    "bind_plan",
    "bind_process",
    "bind_spawn",
    "bind_sysmon",
    "bind_trace",
    "errors",
    "module",
    "passed_values",
    "passing_arguments",
    "process_type",
    "slot_snapshot",
    "slot_type",
    "waiting",
]

PRELOAD = [
    "announced",
    "log",
    "real",
    "settings",
    "table",
    "wrap_exec",
    "wrap_fork",
    "wrap_spawn",
    "wrap_vfork",
]
KEEPER = ["keeper", "link"]

flags = ["-Wall", "-Wextra", "-fvisibility=hidden"]
link: list[str] = []
# Nothing is left to be looked up in a child of fork: that takes the loader's lock, and pages.
module, module_link = ["-fno-plt"], ["-Wl,-z,now"]
if sanitize := os.environ.get("PYFORKFD_SANITIZE"):
    flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g", "-O1"]
    link += [f"-fsanitize={sanitize}"]
# It goes into programs that know of no sanitizer; assembly at top level wants no LTO.
plain = ["-std=gnu11", "-fno-lto", *flags[:3]]
if os.environ.get("PYFORKFD_DEBUG"):
    flags += ["-O0", "-g"]
    plain += ["-O0", "-g"]


class BuildAll(build_ext):
    """Builds what is no module: a library, a program, with names without Python's suffix."""

    def build_extension(self, ext: Extension) -> None:
        # They do not want to know where this Python has its libraries.
        python_links = self.compiler.linker_so
        if ext.name.endswith("libforkfd_preload"):
            self.compiler.linker_so = _without_paths(python_links)
        if ext.name.endswith("forkfd-keeper"):
            self.compiler.linker_so = _without_paths(self.compiler.linker_exe)
        super().build_extension(ext)
        self.compiler.linker_so = python_links

    def get_ext_filename(self, fullname: str) -> str:
        path = os.path.join(*fullname.split("."))
        if fullname.endswith("libforkfd_preload"):
            return path + ".so"
        return path if fullname.endswith("forkfd-keeper") else super().get_ext_filename(fullname)


def _without_paths(command: list[str]) -> list[str]:
    return [word for word in command if not word.startswith("-Wl,-rpath")]


ParallelCompile("PYFORKFD_BUILD_JOBS", default=0).install()

setup(
    ext_modules=[
        Pybind11Extension(
            "pyforkfd._core",
            [f"csrc/bind/{name}.cpp" for name in BIND] + [f"csrc/core/{name}.cpp" for name in CORE],
            depends=glob.glob("csrc/**/*.h", recursive=True),
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=flags + module,
            extra_link_args=link + module_link,
        ),
        Extension(
            "pyforkfd.libforkfd_preload",
            [f"csrc/preload/{name}.c" for name in PRELOAD],
            depends=["csrc/preload/preload.h"],
            libraries=["dl"],  # dlsym, where libc is older than 2.34
            extra_compile_args=plain,
            # Nothing is left to be looked up in a child; all that is called is libc's.
            extra_link_args=["-Wl,-z,now,-z,defs,--as-needed"],
        ),
        Extension(
            "pyforkfd.supervisor.forkfd-keeper",
            [f"csrc/keeper/{name}.c" for name in KEEPER],
            depends=["csrc/keeper/keeper.h"],
            define_macros=[("_GNU_SOURCE", None)],
            extra_compile_args=plain,
        ),
    ],
    cmdclass={"build_ext": BuildAll},
)
