"""The fence calls nothing outside itself, and includes of C++ go downwards."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from places import ROOT
from tools import NATIVE_TOOLS, tool

CSRC = ROOT / "csrc"
CHILD = CSRC / "core/spawn/child.cpp"
# Headers of constants and plain structures, without a function that could be called.
PLAIN = {
    "cerrno",
    "fcntl.h",
    "linux/capability.h",
    "linux/futex.h",
    "linux/seccomp.h",
    "linux/stat.h",
    "poll.h",
    "sys/ioctl.h",
    "sys/prctl.h",
}

# Compiler -> Debian's package.
PACKAGES = {"g++": "g++", "clang++": "clang"}
# Folders of the core, lowest first; those of one line do not include each other.
LAYERS = [
    {"base"},
    {"page", "descriptors"},
    {"atfork", "passing"},
    {"spawn", "epoll"},
    {"fork", "watch"},
]


def core_files() -> list[Path]:
    files = [file for file in (CSRC / "core").rglob("*") if file.suffix in {".h", ".cpp"}]
    assert len(files) > 80
    return files


# Folders of the headers of the kernel and of libc.
SYSTEM = ("arpa/", "asm/", "linux/", "netinet/", "sys/")


def includes(file: Path) -> list[str]:
    return re.findall(r'^#include ["<]([^">]+)[">]', file.read_text(), re.M)


def undefined(source: Path, compiler: str, options: list[str], out: Path) -> str:
    """Compile a file and list the symbols that its object needs from elsewhere."""
    flags = ["-std=c++17", *options, f"-I{CSRC}", "-c", "-o"]
    subprocess.run(
        [tool(compiler, PACKAGES[compiler], NATIVE_TOOLS), *flags, out, source], check=True
    )
    listed = subprocess.run(["nm", "-u", out], check=True, capture_output=True, text=True)
    return listed.stdout


@pytest.mark.parametrize(
    "options",
    [
        "-O0",
        "-O1",
        "-O2",
        "-O3 -funroll-loops",
        "-O0 -fPIC -fstack-protector-all",
        "-O2 -ftrivial-auto-var-init=pattern",  # as hardened builds of distributions have it
        "-O0 -fsanitize=address,undefined",
        "-O2 -fsanitize=address,undefined",
        "-O1 -fsanitize=thread",
    ],
)
@pytest.mark.parametrize("compiler", PACKAGES)
def test_the_fence_calls_nothing(compiler: str, options: str, tmp_path: Path) -> None:
    wanted = undefined(CHILD, compiler, options.split(), tmp_path / "child.o")
    # The sanitizers register the file and its constants before main(), and describe the types
    # of its functions: no child calls any of it.  An older clang has no attribute against
    # ThreadSanitizer's calls for atomics.
    harmless = (
        r"\b__(asan|tsan)_(init|(un)?register_(elf_)?globals|version_mismatch_check_\w+)$"
        r"|\b__(start|stop)_asan_globals$|_ZTVN10__cxxabiv1|_GLOBAL_OFFSET_TABLE_"
    )
    assert [line for line in wanted.splitlines() if not re.search(harmless, line)] == []


def test_that_this_would_be_seen(tmp_path: Path) -> None:
    """The positive control."""
    source = tmp_path / "child.cpp"
    text = (CHILD).read_text()
    source.write_text(
        text.replace("check(a, call(SYS_setsid));", '__builtin_printf("%d", a.umask);')
    )
    assert "printf" in undefined(source, "g++", ["-O2"], tmp_path / "child.o")


def test_the_fence_includes_only_what_is_plain() -> None:
    own = {
        "core/base/kernel_flags.h",
        "core/base/raw_syscall.h",
        "core/spawn/child.h",
        "core/spawn/child_args.h",
    }
    assert set(includes(CHILD)) <= PLAIN | own


def test_the_core_knows_no_python() -> None:
    files = core_files()
    for file in files:
        for name in includes(file):
            assert not re.search(r"Python|pybind|^bind/", name), f"{file.name} includes {name}"


def test_includes_of_the_core_go_downwards() -> None:
    floor = {topic: number for number, topics in enumerate(LAYERS) for topic in topics}
    assert {file.parent.name for file in core_files()} == set(floor)
    for file in core_files():
        topic = file.parent.name
        for name in includes(file):
            if found := re.match(r"core/(\w+)/", name):
                below = found[1]
                assert below == topic or floor[below] < floor[topic], f"{file} includes {name}"
            else:
                assert "/" not in name or name.startswith(SYSTEM), (file, name)


def test_the_bindings_include_core_bind_and_pybind11_alone() -> None:
    files = list((CSRC / "bind").rglob("*"))
    assert len(files) > 30
    for file in files:
        for name in includes(file):
            known = ("bind/", "core/", "pybind11/", *SYSTEM)
            assert name.startswith(known) or "/" not in name, f"{file} includes {name}"
        own = re.findall(r'^#include "([^"]+)"', file.read_text(), re.M)
        assert all(name.startswith(("bind/", "core/")) for name in own), (file, own)


def test_every_function_of_the_fence_is_marked() -> None:
    text = (CHILD).read_text()
    defined = re.findall(
        r"^(?!#|\s|//|struct|using|namespace|constexpr)([^\n;]*\([^;]*?\{)$", text, re.M
    )
    assert defined
    for head in defined:
        assert re.search(r"FORKFD_CHILD|FORKFD_INLINE", head), head


# Functions that the library for LD_PRELOAD calls: none allocates, locks or prints.  dlsym and
# getauxval are called when it is loaded, strtol, strtok_r and strcpy when it reads its settings
# or remembers its program.  memcmp, memcpy and memset are calls that a compiler may put in the
# place of any comparison or assignment.
PRELOAD_CALLS = set(
    """__errno_location access atoi dlsym environ fcntl fstat fstatat getauxval getenv getpid
    getppid pthread_sigmask readlink sigaddset sigemptyset sigismember sigpending sigtimedwait
    strchr strcmp strcpy strcspn strlen strncmp strrchr strspn strtok_r strtol syscall memcmp
    memcpy memset
    forkfd_born_by_vfork forkfd_vfork_failed _GLOBAL_OFFSET_TABLE_ __stack_chk_fail
    __isoc23_strtol""".split()
)


def test_the_preloaded_library_knows_libc_alone(tmp_path: Path) -> None:
    files = sorted((CSRC / "preload").glob("*.[ch]"))
    own: set[str] = set()
    wanted: set[str] = set()
    for file in files:
        for name in includes(file):
            assert name == "preload.h" or re.fullmatch(r"(sys/)?\w+\.h", name), (file.name, name)
            assert not re.search("Python|pybind", name)
        if file.suffix == ".c":
            out = tmp_path / file.with_suffix(".o").name
            subprocess.run(
                [tool("cc", "gcc", NATIVE_TOOLS), "-O2", "-fPIC", "-c", "-o", out, file], check=True
            )
            listed = subprocess.run(["nm", out], check=True, capture_output=True, text=True).stdout
            wanted |= set(re.findall(r"^ +[Uw] (\w+)", listed, re.M))
            own |= set(re.findall(r"^[0-9a-f]+ [A-Z] (\w+)", listed, re.M))
    assert "fork" in own and "vfork" in own
    assert wanted - own - PRELOAD_CALLS == set()
