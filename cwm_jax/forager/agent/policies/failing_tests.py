"""A failing test: which an issue names, how it is run, what its output shows."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath

from cwm_jax.forager.tasks.statement import read_failure

_FOLDERS = {"test", "tests", "testing"}
_FILE = re.compile(r"test_.*\.py|.*_test\.py|conftest\.py|tests\.py")
_NODE = re.compile(r"([\w./-]+\.py)::((?:\w+::)*\w+(?:\[[^`\n]*?\])?)")
_DOTTED = re.compile(r"\b(?:\w+\.){2,}\w+\b")
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+), in (\S+)', re.M)
_SHORT_FRAME = re.compile(r"^([^\s:]+\.py):(\d+): (?:in (\S+))?", re.M)
_FAILED = re.compile(r"^(?:FAIL|ERROR): (\w+) \(([\w.]+)\)", re.M)
_FILE_S = 50  # assumed: of all of a file


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailingTest:
    """A test that can be run.

    Attributes:
        path: of its file.
        names: of its class, if it is in one, and of its function.
        runner: ``unittest`` or ``pytest``.
        folder: that imports begin in, besides the repository's root; empty for that alone.
        run_s: that it may take; assumed.
    """

    path: str
    names: Sequence[str]
    runner: str
    folder: str = ""
    run_s: int = 20

    def command(self, *, whole_file: bool = False, lines: int = 40, otherwise: str = "") -> str:
        """Runs it, or all of its file, and says with which status it ended.

        Args:
            whole_file: all tests of the file.
            lines: of the output, the last ones.
            otherwise: a command for where it does not pass.
        """
        seconds = _FILE_S if whole_file else self.run_s
        run = f"{self.environment}timeout {seconds} python -m {self.arguments(whole_file)}"
        if not otherwise:
            return f'{run} 2>&1 | tail -n {lines}; echo "exit ${{PIPESTATUS[0]}}"'
        told = f"{run} 2>&1 | tail -n {lines}; status=${{PIPESTATUS[0]}}; echo exit $status"
        return f'{told}; [ "$status" = 0 ] || {otherwise}'

    def traced(self) -> str:
        """Lists the functions of the repository that it runs, by a program of Python itself."""
        run = f"timeout 60 python -m trace --listfuncs --module {self.arguments(False)}"
        return f'{self.environment}{run} 2>/dev/null | grep "^filename: $PWD/" | head -n 150'

    def arguments(self, whole_file: bool) -> str:
        """Of ``python -m``."""
        names = [] if whole_file else self.names
        if self.runner == "pytest":
            # A project's own options may be of plugins that are not there, as those of coverage.
            words = "pytest -q --tb=short -o addopts= -p no:cacheprovider"
            return f"{words} {shlex.quote('::'.join([self.path, *names]))}"
        module = self.path.removesuffix(".py").removeprefix(f"{self.folder}/").replace("/", ".")
        return f"unittest -q {'.'.join([module, *(n.split('[')[0] for n in names)])}"

    @property
    def environment(self) -> str:
        return f"PYTHONPATH={shlex.quote(self.folder)} " if self.folder else ""

    def by_unittest(self) -> FailingTest:
        return dataclasses.replace(self, runner="unittest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """What a run of a test printed.

    Attributes:
        error: that it ended with, and its message.
        places: (path, line) of the traceback's frames in the repository.
    """

    error: str
    places: Sequence[tuple[str, int]]


def named_test(issue: str, paths: Collection[str]) -> FailingTest | None:
    """The first test that an issue names and the repository has.

    By its node id, its dotted name, or in a traceback.
    """
    for path, names in _NODE.findall(issue):
        if (found := _known(path, paths)) is not None:
            return FailingTest(path=found, names=names.split("::"), runner="pytest")
    for dotted in _DOTTED.findall(issue):
        if (test := dotted_test(dotted, paths)) is not None:
            return test
    for path, _, function in [*_FRAME.findall(issue), *_SHORT_FRAME.findall(issue)]:
        found = _known(path, paths)
        if found is not None and is_of_tests(found) and function.startswith("test"):
            return FailingTest(path=found, names=[function], runner="pytest")
    return None


def dotted_test(dotted: str, paths: Collection[str]) -> FailingTest | None:
    """The test of a name as unittest reports it; None where no file has it."""
    parts = dotted.split(".")
    for size in range(len(parts) - 1, 0, -1):
        module = "/".join(parts[:size]) + ".py"
        path = _known(module, paths)
        if path is not None and is_of_tests(path) and len(parts) - size <= 2:
            folder = path.removesuffix(module).rstrip("/")
            return FailingTest(path=path, names=parts[size:], runner="unittest", folder=folder)
    return None


def first_failed(output: str, paths: Collection[str]) -> FailingTest | None:
    """The first test that a run of all tests reports as failed."""
    for name, place in _FAILED.findall(output):
        dotted = place if place.endswith(f".{name}") else f"{place}.{name}"
        if (test := dotted_test(dotted, paths)) is not None:
            return test
    return named_test(output, paths)


def within_class(test: FailingTest, source: str) -> FailingTest:
    """The test with its class, where only its function was known."""
    if len(test.names) > 1:
        return test
    for node in _classes(source):
        if any(getattr(part, "name", "") == test.names[0] for part in node.body):
            return dataclasses.replace(test, names=[node.name, *test.names])
    return test


def source_of_test(test: FailingTest, source: str) -> str:
    """The text of the test's function, and of what is set up for it; else of its file."""
    wanted = {test.names[-1].split("[")[0], "setUp", "setUpClass"}
    try:
        nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    except SyntaxError:
        return source
    parts = [ast.get_source_segment(source, n) or "" for n in nodes if n.name in wanted]
    return "\n".join(parts) or source


def read_run(output: str, root: str, paths: Collection[str]) -> Shown:
    """What a run of a test printed; frames of tests count as places of none."""
    failure = read_failure("", output)
    lines = [line for line in output.split("\n") if line.strip()]
    error = failure.error[0] if failure and failure.error else (lines[-1] if lines else "")
    frames = [(path, int(line)) for path, line, _ in _FRAME.findall(output)]
    frames = frames or [(path, int(line)) for path, line, _ in _SHORT_FRAME.findall(output)]
    relative = [(path.removeprefix(f"{root}/"), line) for path, line in frames]
    kept = [(path, line) for path, line in relative if path in paths and not is_of_tests(path)]
    return Shown(error=error, places=kept)


def functions_run(listed: str, root: str) -> list[tuple[str, str]]:
    """(path, function) of what ``python -m trace --listfuncs`` lists, tests left out."""
    found = re.findall(r"^filename: (.*), modulename: .*, funcname: (.*)$", listed, re.M)
    pairs = [(path.removeprefix(f"{root}/"), name) for path, name in found]
    return [(path, name) for path, name in pairs if not is_of_tests(path) and path[0] != "/"]


def imported_paths(source: str, paths: Collection[str]) -> Iterator[str]:
    """Files of the repository that a test imports."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            stem = name.replace(".", "/")
            for path in (f"{stem}.py", f"{stem}/__init__.py"):
                if (found := _known(path, paths)) is not None:
                    yield found


def is_of_tests(path: str) -> bool:
    """Whether a file is one of tests, by its name."""
    *folders, name = PurePosixPath(path).parts
    return bool(_FOLDERS & {*folders}) or bool(_FILE.fullmatch(name))


def _known(path: str, paths: Collection[str]) -> str | None:
    """The path of the repository that this one ends with, or that ends with it."""
    if path in paths:
        return path
    ends = [known for known in sorted(paths) if known.endswith(f"/{path}")]
    ends += [known for known in sorted(paths) if path.endswith(f"/{known}")]
    return min(ends, key=len) if ends else None


def _classes(source: str) -> list[ast.ClassDef]:
    try:
        return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    except SyntaxError:
        return []
