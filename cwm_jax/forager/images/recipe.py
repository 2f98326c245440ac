"""Ways of installing a Python project and running its tests, from what its files declare.

Nothing of the project is executed to find them. They are candidates: whether one works is for a
run in a sandbox to show.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import posixpath
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from cwm_jax.forager.images.declared import (
    imports,
    nox,
    pyproject,
    requirement_files,
    setup_files,
    tox,
    workflows,
)
from cwm_jax.forager.images.declared.locations import (
    FoundTests,
    guessed_tests,
    is_collected,
    named_tests,
)
from cwm_jax.forager.images.declared.needs import RANKS, Declared, lines_of_file, names_of
from cwm_jax.forager.images.declared.project import Project, table
from cwm_jax.forager.images.declared.pytest_options import (
    fixed_options,
    pytest_config,
    read_words,
)
from cwm_jax.forager.images.declared.versions import told_version

MAX_RECIPES = 6  # assumed: each that fails costs an installation

_MAX_OF = 50  # assumed: of each kind of file
# The order is that among equals.
_SOURCES = (pyproject, setup_files, tox, nox, requirement_files, workflows)
_NAMING_PLUGINS = ("pyproject.toml", "setup.cfg", "setup.py", "tox.ini", "noxfile.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to install a project and to run its tests.

    Attributes:
        name: where it comes from, as "pyproject extra test" or "tox py311".
        install: shell commands for the checkout's root, a fresh virtual environment active
            (``python`` and ``pip`` on PATH), with network. The last installs the project itself,
            editable, so that whatever the others brought of it gives way.
        command: runs the tests in the root, without network, and prints each test's result; a
            ``{canary}`` in it, if there is one, becomes the canary's path.
        format: of its output, as `cwm_jax.rl.envs.swe.suite.FORMATS` has it.
        canary: the folder of tests that it collects from, relative to the root, "." for the root.
    """

    name: str
    install: tuple[str, ...]
    command: str
    format: str
    canary: str


def recipes(files: Mapping[str, bytes]) -> list[Recipe]:
    """Candidates, the best first, at most `MAX_RECIPES`, no two with the same commands.

    First come those that bring most of what the tests import, then those that are declared for
    tests alone. The last is one of the imports themselves, and for tests of unittest one that
    runs them by unittest.

    Args:
        files: of the checkout, by relative path; what does not parse is passed over
            (`unreadable_files` tells of it).

    Returns:
        The recipes; an empty list if there are no tests.
    """
    return _Maker(Project(files)).recipes()


def unreadable_files(files: Mapping[str, bytes]) -> dict[str, str]:
    """Why a file that `recipes` asks for is passed over, by path."""
    project = Project(files)
    _Maker(project).recipes()
    return dict(sorted(project.unreadable.items()))


class _Maker:
    """Makes the recipes of one project."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._config = pytest_config(project)
        self._installable = _is_installable(project)
        self._tests = self._configured_tests()
        self._extras = {**setup_files.extras(project), **pyproject.extras(project)}
        self._runtime = (
            *pyproject.runtime_requirements(project),
            *setup_files.runtime_requirements(project),
        )

    def recipes(self) -> list[Recipe]:
        if self._tests is None:
            return []
        needed = imports.guessed_requirements(self._project, self._tests.files)
        declared = [
            one for source in _SOURCES for one in islice(source.declared(self._project), _MAX_OF)
        ]
        declared.sort(key=lambda one: (len(names_of(needed) - self._names(one)), one.rank))
        guess = self._guess(needed)
        last = [self._by_pytest(guess, self._tests)]
        if imports.uses_unittest_alone(self._project, self._tests.files):
            last.append(self._by_unittest(guess, self._tests))
        first = _distinct(self._by_pytest(one, self._tests) for one in declared)
        known = [_commands(one) for one in first]
        last = [one for one in last if _commands(one) not in known]
        return [*first[: MAX_RECIPES - len(last)], *last]

    def _configured_tests(self) -> FoundTests | None:
        patterns = self._config.python_files
        configured = named_tests(self._project, self._config.testpaths, patterns)
        return configured or guessed_tests(self._project, patterns)

    def _guess(self, needed: tuple[str, ...]) -> Declared:
        files = () if self._installable else tuple(requirement_files.runtime_files(self._project))
        known = names_of(self._runtime)
        return Declared(
            name="guess of imports",
            rank=RANKS["guess"],
            requirements=tuple(one for one in needed if not names_of([one]) & known),
            files=files,
        )

    def _names(self, declared: Declared) -> set[str]:
        """Of all that is known to be installed with it."""
        texts = [*self._runtime, *declared.requirements]
        texts += [text for name in declared.extras for text in self._extras.get(name, ())]
        for path in declared.files:
            texts += lines_of_file(self._project, path)
        return names_of(texts)

    def _by_pytest(self, declared: Declared, tests: FoundTests) -> Recipe:
        given = read_words(self._config.addopts)
        said = read_words(declared.words or ())
        named = named_tests(
            self._project, said.paths, self._config.python_files, folder=declared.folder
        )
        tests = named or tests
        options = dict.fromkeys(_pairs((*given.options, *said.options)))
        words = [
            *fixed_options(self._config, self._declarations()),
            *self._names_of_files(),
            *(word for pair in options for word in pair),
            *tests.paths,
        ]
        # Only where it is needed: pytest 8 collects of a folder and a file in it the file alone.
        canary = "" if is_collected(tests) else " {canary}"
        plugins = ("pytest", *self._config.plugins, *given.plugins, *said.plugins)
        environment = self._environment(declared)
        return Recipe(
            name=declared.name,
            install=self._install(declared, plugins),
            command=f"{environment}python -m pytest {shlex.join(words)}{canary}",
            format="pytest",
            canary=tests.canary,
        )

    def _by_unittest(self, declared: Declared, tests: FoundTests) -> Recipe:
        """Discovery from the canary's folder; as a package it has to be found from its parent."""
        folder = top = tests.canary
        while f"{top}/__init__.py" in self._project:
            top = posixpath.dirname(top) or "."
        return Recipe(
            name="guess of imports, by unittest",
            install=self._install(declared, ()),
            command=f"{self._environment(declared)}python -W ignore -m unittest discover -v "
            f"-s {shlex.quote(folder)} -t {shlex.quote(top)}",
            format="unittest",
            canary=folder,
        )

    def _names_of_files(self) -> list[str]:
        """Options by which a canary is collected where test files have names of another form."""
        patterns = self._config.python_files
        if any(fnmatch.fnmatchcase("test_x.py", one) for one in patterns):
            return []
        return ["-o", f"python_files={' '.join(patterns)} test_*.py"]

    def _environment(self, declared: Declared) -> str:
        variables = dict(declared.environment)
        if not self._installable and "src" in self._project.folders:
            variables.setdefault("PYTHONPATH", "src")
        return "".join(f"{name}={shlex.quote(value)} " for name, value in variables.items())

    def _install(self, declared: Declared, plugins: Iterable[str]) -> tuple[str, ...]:
        """The commands, the project's own the last.

        Requirement files are by themselves: those with hashes are not to be mixed with others. So
        is the project, whose told version would be taken for that of all that is built beside it.
        """
        bound = [word for path in declared.constraints for word in ("-c", path)]
        commands = []
        files = [word for path in declared.files for word in ("-r", path)]
        if files:
            commands.append(["pip", "install", *bound, *files])
        known = self._names(declared)
        missing = [one for one in dict.fromkeys(plugins) if not names_of([one]) & known]
        if wanted := [*declared.requirements, *missing]:
            commands.append(["pip", "install", *bound, *wanted])
        found = [shlex.join(command) for command in commands]
        if self._installable:
            found.append(self._install_project(declared.extras, bound))
        return tuple(found)

    def _install_project(self, extras: Sequence[str], bound: Sequence[str]) -> str:
        told = told_version(self._project)
        variable = f"{told[0]}={shlex.quote(told[1])} " if told else ""
        wanted = f".[{','.join(extras)}]" if extras else "."
        return variable + shlex.join(["pip", "install", *bound, "-e", wanted])

    def _declarations(self) -> str:
        paths = [
            path
            for path in self._project.paths
            if path in _NAMING_PLUGINS or path.endswith(("requirements.txt", "requirements.in"))
        ]
        paths += [path for one in requirement_files.declared(self._project) for path in one.files]
        return "\n".join(self._project.text(path) or "" for path in paths)


def _is_installable(project: Project) -> bool:
    document = project.toml("pyproject.toml")
    if table(document, "tool", "poetry").get("package-mode") is False:
        return False
    named = table(document, "project").get("name") or table(document, "tool", "poetry").get("name")
    if "setup.py" in project or named or table(document, "build-system"):
        return True
    return "metadata" in project.ini("setup.cfg")


def _distinct(found: Iterable[Recipe]) -> list[Recipe]:
    return list({_commands(one): one for one in reversed(list(found))}.values())[::-1]


def _commands(recipe: Recipe) -> tuple[tuple[tuple[str, ...], ...], str]:
    """What tells recipes apart: in which order a command names requirements does not."""
    return tuple(tuple(sorted(shlex.split(one))) for one in recipe.install), recipe.command


def _pairs(options: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Short options with their values, which are a word of their own."""
    left = iter(options)
    for word in left:
        yield (word, next(left)) if len(word) == 2 else (word,)
