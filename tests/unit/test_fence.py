"""child.cpp keeps its promise: nothing of the outside, and the floors hold in C++."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tools import tool

CSRC = Path(__file__).parents[2] / "csrc"
# What defines numbers and plain structs, and no function that could be called.
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


def includes(file: Path) -> list[str]:
    return re.findall(r'^#include ["<]([^">]+)[">]', file.read_text(), re.M)


def undefined(source: Path, compiler: str, options: list[str], out: Path) -> str:
    """The symbols that the object wants from elsewhere."""
    flags = ["-std=c++17", *options, f"-I{CSRC}", "-c", "-o"]
    subprocess.run([tool(compiler, compiler), *flags, out, source], check=True)
    listed = subprocess.run(["nm", "-u", out], check=True, capture_output=True, text=True)
    return listed.stdout


@pytest.mark.parametrize("options", [["-O0"], ["-O2"], ["-O2", "-fsanitize=address,undefined"]])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_the_fence_calls_nothing(compiler: str, options: list[str], tmp_path: Path) -> None:
    source = CSRC / "core" / "child.cpp"
    wanted = undefined(source, compiler, options, tmp_path / "child.o")
    # The sanitizers register the file's constants before main() and describe the types of
    # its functions: data, which no child calls.
    harmless = r"\b_*(asan|ubsan)_|_ZTVN10__cxxabiv1|_GLOBAL_OFFSET_TABLE_"
    assert [line for line in wanted.splitlines() if not re.search(harmless, line)] == []


def test_that_this_would_be_seen(tmp_path: Path) -> None:
    """The positive control."""
    source = tmp_path / "child.cpp"
    text = (CSRC / "core" / "child.cpp").read_text()
    source.write_text(
        text.replace("check(a, call(SYS_setsid));", '__builtin_printf("%d", a.umask);')
    )
    assert "printf" in undefined(source, "g++", ["-O2"], tmp_path / "child.o")


def test_the_fence_includes_only_what_is_plain() -> None:
    own = {"core/child.h", "core/child_args.h", "core/raw_syscall.h"}
    assert set(includes(CSRC / "core" / "child.cpp")) <= PLAIN | own


def test_the_core_knows_no_python() -> None:
    files = [*(CSRC / "core").glob("*.h"), *(CSRC / "core").glob("*.cpp")]
    assert files
    for file in files:
        for name in includes(file):
            assert not re.search(r"Python|pybind|^bind/", name), f"{file.name} includes {name}"


def test_only_the_bindings_know_pybind() -> None:
    for file in (CSRC / "bind").iterdir():
        for name in includes(file):
            assert re.match(r"(bind|core|pybind11)/|[a-z_/]+(\.h)?$", name), f"{file}: {name}"


def test_every_function_of_the_fence_is_marked() -> None:
    text = (CSRC / "core" / "child.cpp").read_text()
    defined = re.findall(
        r"^(?!#|\s|//|struct|using|namespace|constexpr)([^\n;]*\([^;]*?\{)$", text, re.M
    )
    assert defined
    for head in defined:
        assert re.search(r"FORKFD_CHILD|FORKFD_INLINE", head), head


# What the library for LD_PRELOAD calls: nothing that allocates, locks or prints.  dlsym is
# called when it is loaded, strtol, strtok_r and strcpy when it reads its settings.
PRELOAD_CALLS = set(
    """__errno_location access atoi dlsym environ fcntl fstat getenv getpid pthread_sigmask
    readlink sigaddset sigemptyset sigismember sigpending sigtimedwait strchr strcmp strcpy
    strcspn strlen strncmp strrchr strstr strtok_r strtol syscall memcmp memcpy
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
            subprocess.run([tool("cc", "gcc"), "-O2", "-fPIC", "-c", "-o", out, file], check=True)
            listed = subprocess.run(["nm", out], check=True, capture_output=True, text=True).stdout
            wanted |= set(re.findall(r"^ +[Uw] (\w+)", listed, re.M))
            own |= set(re.findall(r"^[0-9a-f]+ [A-Z] (\w+)", listed, re.M))
    assert "fork" in own and "vfork" in own
    assert wanted - own - PRELOAD_CALLS == set()
