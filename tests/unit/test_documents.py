"""What the documents print is true: their examples run, their lists are complete."""

import ast
import dataclasses
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
from places import ROOT

import pyforkfd as ff
from pyforkfd import doctor, supervisor, zygote
from pyforkfd import subprocess as drop_in
from pyforkfd.supervisor import worker

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCTEST = """
import doctest, sys
block = sys.stdin.read()
test = doctest.DocTestParser().get_doctest(block, {}, sys.argv[1], sys.argv[1], 0)
sys.exit(doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed != 0)
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def run(code: str, stdin: str, cwd: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, name],
        input=stdin,
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    for script in blocks(page, "python"):
        run(script, "", tmp_path, page.name)
    if sessions := blocks(page, "pycon"):
        run(DOCTEST, "\n".join(sessions), tmp_path, page.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_package_that_a_test_wants_is_listed_and_installed() -> None:
    wanted = {"clang", "qemu-user", "g++-aarch64-linux-gnu"}  # of tables of lanes and compilers
    for file in (ROOT / "tests").rglob("*.py"):
        wanted |= set(re.findall(r'tool\(\s*"[^"]+",\s*"([^"]+)"', file.read_text()))
    assert len(wanted) > 10
    wanted -= {"bash", "g++", "gcc", "make", "util-linux"}  # of every machine that can build
    listed = (ROOT / "CONTRIBUTING.md").read_text()
    scripts = "".join(script.read_text() for script in (ROOT / ".ci").glob("install-*"))
    # That of the C compiler comes with C++'s.
    found = {package.replace("gcc-", "g++-") for package in wanted}
    assert [package for package in found if f"`{package}`" not in listed] == []
    assert [
        package for package in found if not re.search(rf"\b{re.escape(package)}", scripts)
    ] == []


def test_every_stage_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/errors.md").read_text(), re.M)
    assert rows == list(ff.STAGES)


def test_every_option_is_in_the_readme_and_described() -> None:
    readme, described = (ROOT / "README.md").read_text(), inspect.getdoc(ff.Command) or ""
    for field in dataclasses.fields(ff.Command):
        if not field.name.startswith("_"):
            assert field.name == "args" or f"`{field.name}`" in readme
            assert re.search(rf"^    {field.name}: ", described, re.M), field.name


def test_every_package_has_its_place_in_the_architecture() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    sources = [
        *(f for f in (ROOT / "csrc").rglob("*") if f.suffix in {".h", ".c", ".cpp"}),
        *(ROOT / "pyforkfd").rglob("*.py"),
    ]
    packages = {f"{f.parent.relative_to(ROOT)}/" for f in sources}
    assert len(packages) > 25
    assert {name for name in packages if f"`{name}`" not in page} == set()


def test_every_public_name_has_a_docstring() -> None:
    attributes = set()
    modules = list((ROOT / "pyforkfd").rglob("_*.py"))
    assert modules
    for module in modules:
        body = ast.parse(module.read_text()).body
        for statement, after in itertools.pairwise(body):
            target = getattr(statement, "target", None) or getattr(statement, "targets", [None])[0]
            if isinstance(target, ast.Name) and isinstance(after, ast.Expr):
                attributes.add(target.id)
    for name in ff.__all__:
        thing = getattr(ff, name)
        if inspect.ismodule(thing):
            for inner in thing.__all__:
                assert inspect.getdoc(getattr(thing, inner)), f"{name}.{inner}"
            continue
        if not inspect.isclass(thing) and not inspect.isroutine(thing):
            assert name in attributes, name
            continue
        assert inspect.getdoc(thing), name
        assert not (thing.__doc__ or "").startswith(f"{name}("), f"{name}: made by dataclass"
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{member}"


# The English of the docstrings that users read: CONTRIBUTING.md, "English".
PRIVATE_WORDS = re.compile(
    r"\b(said|says?|told|tells?|asks?|asked|kept|looked at|lacks?|strangers?|mute|heart|rooms?)\b",
    re.I,
)
QUESTION = re.compile(r"(What|How|Who|Whom|Whose|Where|When|Why|That)\b")
NO_VERB = re.compile(
    r"(Whether|A|An|The|It|Its|This|These|As|See|One|Two|All|Some|Every|Each|Of|With|Without|By|In"
    r"|For|From|Same|Like|Number|Our|True|False|None|Does|Is|Are|Has)\b"
)
NO_IMPERATIVE = re.compile(r"\w+([^s]s|[^e]ed|ing)\b")


def english_problems(name: str, thing: object, *, is_function: bool) -> list[str]:
    text = inspect.getdoc(thing) or ""
    found = [f"{name}: {word!r}" for word in PRIVATE_WORDS.findall(text)]
    first = text.split("\n\n")[0]
    wrong = QUESTION.match(first)
    if is_function:
        wrong = wrong or NO_VERB.match(first) or NO_IMPERATIVE.match(first)
    return [*found, f"{name}: begins with {wrong[0]!r}"] if wrong else found


def named_functions(name: str, thing: object) -> list[tuple[str, object, bool]]:
    """A public thing and its public members, and whether each is a function."""
    if inspect.ismodule(thing):
        inner = [named_functions(f"{name}.{n}", getattr(thing, n)) for n in thing.__all__]
        return list(itertools.chain.from_iterable(inner))
    if not inspect.isclass(thing):
        return [(name, thing, True)] if inspect.isroutine(thing) else []
    members = [
        (f"{name}.{member}", value, not isinstance(value, property))
        for member, value in vars(thing).items()
        if member == "__init__" or not member.startswith("_")
        if isinstance(value, (property, classmethod, staticmethod)) or inspect.isroutine(value)
    ]
    return [(name, thing, False), *members]


PACKAGES = [ff, drop_in, doctor, supervisor, worker, zygote]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_docstrings_of_public_names_pass_the_rule(package: ModuleType) -> None:
    """A function: an imperative verb first; a class or property: a noun phrase; our terms."""
    found, checked = [], 0
    for public in package.__all__:
        for name, thing, is_function in named_functions(public, getattr(package, public)):
            if not is_standard(thing):
                checked += 1
                found += english_problems(name, thing, is_function=is_function)
    assert checked > len(package.__all__) // 2
    assert found == []


def is_standard(thing: object) -> bool:
    """One of the standard library's that is passed on, or a __init__ without a text."""
    return thing.__doc__ is None or getattr(thing, "__module__", "").startswith("subprocess")


def test_docstrings_of_modules_and_constants_pass_the_rule() -> None:
    modules = sorted((ROOT / "pyforkfd").rglob("*.py"))
    assert len(modules) > 150
    found = []
    for module in modules:
        body = ast.parse(module.read_text()).body
        for statement in body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = str(statement.value.value)
                found += [f"{module.name}: {text!r}"] * bool(
                    PRIVATE_WORDS.search(text) or QUESTION.match(text)
                )
    assert found == []


def test_figures_of_the_readme_are_those_of_the_last_run() -> None:
    results = (ROOT / "benchmarks/results/latest.md").read_text()
    measured = {
        tuple(cell.split()[0] for cell in line.strip("| ").split(" | ")[3:])
        for line in re.findall(r"^\| (?:/bin/true|static) \|.*$", results, re.M)
    }
    quoted = re.findall(
        r"^\| (?:/bin/true|static)[^|]*\|(.*)\|$", (ROOT / "README.md").read_text(), re.M
    )
    assert quoted
    for line in quoted:
        assert tuple(line.replace("|", " ").split()) in measured, line


def test_the_table_of_descriptors_is_the_doctors() -> None:
    page = (ROOT / "docs/descriptors.md").read_text()
    command = [sys.executable, "-I", "-m", "pyforkfd", "doctor", "--markdown"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, _, rest = page.partition("<!-- made by the doctor -->\n\n")
    assert rest.partition("\n<!-- end -->")[0] == made


def test_every_problem_and_verdict_is_explained() -> None:
    page = (ROOT / "docs/doctor.md").read_text()
    explained = set(re.findall(r"^\| `([a-z-]+)` \|", page, re.M))
    source = (ROOT / "pyforkfd/doctor/_examine.py").read_text()
    problems = set(re.findall(r'name="([a-z-]+)",', source))
    assert explained == problems | set(get_args(doctor.Verdict))
    for name in problems:
        assert f"``{name}``" in (inspect.getdoc(doctor.Problem) or ""), name


def test_every_name_of_the_doctor_has_a_docstring() -> None:
    for name in doctor.__all__:
        thing = getattr(doctor, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name
