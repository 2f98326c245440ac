"""What a declaration asks for: requirements, extras, requirement files, and words for pytest."""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Iterable, Iterator
from itertools import islice

from packaging.markers import Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from cwm_jax.forager.images.declared.project import Project

MAX_REQUIREMENTS = 200  # assumed: of a declaration; no command grows without a bound
# Tools around the tests: none is imported by them, and some reach for the network.
# fmt: off
_TOOLS = frozenset((
    "pip", "uv", "tox", "tox-uv", "tox-gh", "tox-gh-actions", "nox", "poetry", "pdm", "hatch",
    "pipenv", "twine", "build", "codecov", "coveralls", "pre-commit", "pre-commit-uv",
    "virtualenv",
))
# fmt: on
_TEST_NAME = re.compile(r"(unit-?)?(py)?test(s|ing)?")
_DEV_NAME = re.compile(r"dev(el|elop|elopment)?|ci")
_NESTED = re.compile(r"^(?:-r|--requirement)[ =]?\s*(\S+)")
# Colours break lines of results, options and paths are this machine's, coverage is not measured.
_FOREIGN_VARIABLE = re.compile(
    r"CI|PATH|HOME|USER|TERM|TERM_PROGRAM|PY_COLORS|NO_COLOR|FORCE_COLOR|CLICOLOR(_FORCE)?"
    r"|PYTHONWARNINGS|PYTHONOPTIMIZE|VIRTUAL_ENV"
    r"|(PYTEST|COV|COVERAGE|CODECOV|PIP|UV|TOX|NOX|LD|GITHUB|COLUMNS).*"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declared:
    """One way that a project's files tell of to prepare its tests.

    Attributes:
        name: where it comes from.
        rank: how far it is trusted, of `RANKS`; smaller is better.
        requirements: of the package index, as pip takes them.
        extras: of the project, to be installed.
        files: requirement files, by path.
        constraints: files of constraints, by path.
        words: what follows ``pytest`` in the command that runs it; None if nothing tells.
        folder: in which that command is run, "" for the root.
        environment: variables of that command.
    """

    name: str
    rank: int
    requirements: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    words: tuple[str, ...] | None = None
    folder: str = ""
    environment: tuple[tuple[str, str], ...] = ()


# Assumed: what is named after tests is for them alone; what runs them is right, but often for
# several Pythons at once; all the rest has more in it than tests need.
RANKS = {
    "test": 0,
    "runner": 1,
    "test file": 2,
    "dev": 3,
    "dev file": 4,
    "other test": 5,
    "workflow": 6,
    "guess": 7,
}


def rank_of_name(name: str) -> int | None:
    """How well an extra, group or environment of that name suits tests; None if not at all."""
    name = canonicalize_name(name)
    if _TEST_NAME.fullmatch(name):
        return RANKS["test"]
    if _DEV_NAME.fullmatch(name):
        return RANKS["dev"]
    return RANKS["other test"] if re.search(r"(^|-)(py)?tests?(-|$)", name) else None


def index_requirements(texts: Iterable[str]) -> tuple[str, ...]:
    """Those that pip finds in an index, each once, in their order.

    What is no requirement is left out, and so are addresses and repositories: what they give
    changes from day to day. Tools that run tests rather than serve them are left out as well.
    """
    found: dict[str, None] = {}
    for text in islice(texts, 5 * MAX_REQUIREMENTS):
        requirement = parsed_requirement(text)
        if requirement and not requirement.url and name_of(requirement) not in _TOOLS:
            found[" ".join(text.split(" #")[0].split())] = None
    return tuple(found)[:MAX_REQUIREMENTS]


def parsed_requirement(text: str) -> Requirement | None:
    """The requirement of a text, a comment after it allowed; None if it is none."""
    if len(text) > 500:
        return None
    try:
        return Requirement(text.split(" #")[0].strip())
    except InvalidRequirement:
        return None


def name_of(requirement: Requirement) -> str:
    """Its name as indices have it."""
    return canonicalize_name(requirement.name)


def names_of(texts: Iterable[str]) -> set[str]:
    """Names of requirements, as indices have them; those for other Pythons are left out."""
    found = map(parsed_requirement, islice(texts, 5 * MAX_REQUIREMENTS))
    return {name_of(one) for one in found if one and (not one.marker or _holds(one.marker))}


def lines_of_file(project: Project, path: str) -> Iterator[str]:
    """The lines of a requirement file and of those that it includes, each file once."""
    waiting = [path]
    for current in waiting:  # grows
        for line in (project.text(current) or "").splitlines():
            if nested := _NESTED.match(line.strip()):
                inner = posixpath.normpath(posixpath.join(posixpath.dirname(current), nested[1]))
                if inner in project and inner not in waiting:
                    waiting.append(inner)
            else:
                yield re.split(r" --hash| \\$", line)[0].strip()


def kept_environment(variables: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Variables that may matter to tests: plain values, none that changes what pytest prints."""
    return tuple(
        (name, value)
        for name, value in sorted(variables.items())
        if re.fullmatch(r"[A-Za-z_]\w*", name)
        and not _FOREIGN_VARIABLE.fullmatch(name)
        and len(value) < 500
        and not re.search(r"[{}$`\n]", value)
    )


def _holds(marker: Marker) -> bool:
    try:
        return marker.evaluate()
    except (UndefinedComparison, UndefinedEnvironmentName):  # it asks for an extra
        return True
