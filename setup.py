"""Build the extension module, the library for LD_PRELOAD and the supervisor's keeper.

Everything declarative is in pyproject.toml.
"""

import glob
import hashlib
import os
import sysconfig
from pathlib import Path

import pybind11
from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import Extension, setup

# Topic -> sources, lowest first.
CORE = {
    "base": [
        "counters",
        "error",
        "gauges",
        "names",
        "pidfd",
        "probe",
        "trace",
    ],
    "page": [
        "shared_page",
    ],
    "descriptors": [
        "descriptor",
        "fd_details",
        "fd_table",
        "socket_details",
    ],
    "atfork": [
        "atfork",
        "fd_section",
        "fork_lock",
        "fork_trace",
    ],
    "passing": [
        "control_message",
        "fd_passing",
        "peer",
        "transfer_marker",
        "unwanted",
    ],
    "spawn": [
        "child",
        "clone",
        "environment",
        "exchange",
        "exec_watch",
        "facilities",
        "fd_plan",
        "id_maps",
        "prepared",
        "spawn",
        "spawn_args",
        "spawn_attempt",
        "spawn_fds",
        "spawner_thread",
    ],
    "epoll": [
        "epoll_drift",
        "epoll_rebuild",
        "epoll_renew",
        "epoll_set",
        "epoll_view",
        "live_sets",
    ],
    "fork": [
        "become",
        "child_actions",
        "forked",
        "self_clone",
    ],
    "watch": [
        "dump",
        "features",
        "sysmon",
    ],
}
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
    "bind_pipes",
    "bind_plan",
    "bind_process",
    "bind_run",
    "bind_spawn",
    "bind_sysmon",
    "bind_trace",
    "errors",
    "exchanging",
    "exit_tuple",
    "fork_exec_arguments",
    "fork_function",
    "module",
    "passed_values",
    "passing_arguments",
    "plain_plan",
    "plan_state",
    "process_type",
    "slot_snapshot",
    "slot_type",
    "waiting",
]

PRELOAD = [
    "announced",
    "log",
    "real",
    "restart",
    "settings",
    "table",
    "wrap_exec",
    "wrap_fork",
    "wrap_spawn",
    "wrap_vfork",
]
KEEPER = ["keeper", "link", "report"]

# -MMD: the compiler lists the headers of each object, so that only what they change is built.
flags = ["-Wall", "-Wextra", "-fvisibility=hidden", "-MMD"]
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

    def finalize_options(self) -> None:
        super().finalize_options()
        # Objects outlive the build, an editable one's too: a folder for each set of switches.
        switches = hashlib.sha256(
            repr((flags, plain, pybind11.__version__, os.environ.get("CC"))).encode()
        ).hexdigest()
        self.build_temp = f"build/{sysconfig.get_config_var('SOABI')}-{switches[:8]}"

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


def _is_stale(obj: str, source: str) -> bool:
    """Whether an object is older than its source or a header, by the compiler's list."""
    listed = Path(obj).with_suffix(".d")
    if not (os.path.exists(obj) and listed.exists()):
        return True
    files = listed.read_text().replace("\\\n", " ").partition(":")[2].split()
    made = os.stat(obj).st_mtime
    # Ours alone: pybind11 lies in another folder each time, and its version is a switch.
    ours = [Path(file) for file in files if file.startswith("csrc/")]
    return any(not file.exists() or file.stat().st_mtime > made for file in ours)


ParallelCompile("PYFORKFD_BUILD_JOBS", default=0, needs_recompile=_is_stale).install()

setup(
    ext_modules=[
        Pybind11Extension(
            "pyforkfd._core",
            [f"csrc/bind/{name}.cpp" for name in BIND]
            + [f"csrc/core/{topic}/{name}.cpp" for topic, names in CORE.items() for name in names],
            depends=glob.glob("csrc/**/*.h", recursive=True),
            include_dirs=["csrc"],
            cxx_std=17,
            libraries=["dl"],  # dlsym, where libc is older than 2.34
            extra_compile_args=flags + module,
            extra_link_args=link + module_link,
        ),
        Extension(
            "pyforkfd.libforkfd_preload",
            [f"csrc/preload/{name}.c" for name in PRELOAD],
            depends=["csrc/preload/preload.h"],
            libraries=["dl"],
            extra_compile_args=plain,
            # Nothing is left to be looked up in a child; all that is called is libc's.
            extra_link_args=["-Wl,-z,now,-z,defs,--as-needed"],
        ),
        Extension(
            "pyforkfd.supervisor.succession.forkfd-keeper",
            [f"csrc/keeper/{name}.c" for name in KEEPER],
            depends=["csrc/keeper/keeper.h"],
            define_macros=[("_GNU_SOURCE", None)],
            extra_compile_args=plain,
        ),
    ],
    cmdclass={"build_ext": BuildAll},
)
