"""Where a project's tests are."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import posixpath
import re
from collections.abc import Iterable, Sequence

from cwm_jax.forager.images.declared.project import Project, parents

_TEST_FOLDER = re.compile(r"(unit_?)?tests?|testing")
# Where files named like tests are something else. Source: pytest's norecursedirs, and assumed.
_NOT_OURS = re.compile(
    r"\..*|_?build|dist|node_modules|venv|env|.*\.egg-info|vendor|_vendor|third_party|docs?"
    r"|examples?|bench(marks?)?|templates?|site-packages"
)
_MAX_PATHS = 8  # assumed: of a command; more are named by their first folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundTests:
    """Tests that a command runs.

    Attributes:
        paths: folders or files of tests.
        canary: a folder of tests among them, "." for the root.
        files: of tests below the paths.
    """

    paths: tuple[str, ...]
    canary: str
    files: tuple[str, ...]


def named_tests(
    project: Project, names: Iterable[str], python_files: Sequence[str], *, folder: str = ""
) -> FoundTests | None:
    """The tests at those paths or patterns; None if there are none.

    Args:
        project: in which they are.
        names: of files and folders; those that are not there or have no tests are left out.
        python_files: patterns of the names of test files.
        folder: that they are relative to, or else to the root.
    """
    found: dict[str, None] = {}
    for name in names:
        name = name.split("::")[0]
        for start in (folder, ""):
            whole = posixpath.normpath(posixpath.join(start, name))
            if matches := _matches(project, whole):
                found |= dict.fromkeys(matches)
                break
    outer = [path for path in found if not any(_lies_below(path, other) for other in found)]
    kept = {path: _below(project, path, python_files) for path in outer}
    return _tests({path: files for path, files in kept.items() if files})


def guessed_tests(project: Project, python_files: Sequence[str]) -> FoundTests | None:
    """Tests by the names of their files; None if there are none.

    Their paths are the outermost folders named after tests, or else the folders that they lie in.
    Files in the root count only if there are no others: beside a folder of tests, they are often
    scripts.
    """
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for path in _below(project, ".", python_files):
        if not any(_NOT_OURS.fullmatch(part) for part in path.split("/")[:-1]):
            groups[_home(path)].append(path)
    if len(groups) > 1:
        groups.pop("", None)
    if "" in groups:
        return _tests({path: [path] for path in groups[""]})
    if len(groups) > _MAX_PATHS:
        every = [path for files in groups.values() for path in files]
        groups = collections.defaultdict(list)
        for path in every:
            groups[path.split("/")[0]].append(path)
    return _tests(dict(groups)) or _plainly_named(project)


def is_collected(tests: FoundTests) -> bool:
    """Whether the canary's folder is among what the paths collect."""
    homes = [path for path in tests.paths if not path.endswith(".py")]
    return any(home == tests.canary or _lies_below(tests.canary, home) for home in homes)


def _lies_below(path: str, folder: str) -> bool:
    return path != folder and (folder == "." or path.startswith(f"{folder}/"))


def _plainly_named(project: Project) -> FoundTests | None:
    """A file ``tests.py``, as small projects have."""
    names = [path for path in project.paths if posixpath.basename(path) in ("tests.py", "test.py")]
    ours = [p for p in names if not any(_NOT_OURS.fullmatch(part) for part in p.split("/")[:-1])]
    return _tests({path: [path] for path in ours[:_MAX_PATHS]})


def _tests(groups: dict[str, list[str]]) -> FoundTests | None:
    """Paths with most tests first, so that the canary is among them."""
    if not groups:
        return None
    paths = sorted(groups, key=lambda path: (-len(groups[path]), path))
    files = sorted({file for group in groups.values() for file in group})
    if len(paths) > _MAX_PATHS and all(path.endswith(".py") for path in paths):
        folders = sorted({posixpath.dirname(path) or "." for path in paths})
        return FoundTests(paths=tuple(folders), canary=folders[0], files=tuple(files))
    return FoundTests(
        paths=tuple(paths), canary=_canary(paths[0], groups[paths[0]]), files=tuple(files)
    )


def _canary(path: str, files: Sequence[str]) -> str:
    if path in files:
        return posixpath.dirname(path) or "."
    folders = collections.Counter(posixpath.dirname(file) or "." for file in files)
    if path in folders or _TEST_FOLDER.fullmatch(posixpath.basename(path)):
        return path
    return min(folders, key=lambda folder: (-folders[folder], folder))


def _home(path: str) -> str:
    folders = list(reversed(parents(path)))
    named = (one for one in folders if _TEST_FOLDER.fullmatch(posixpath.basename(one)))
    return next(named, posixpath.dirname(path))


def _matches(project: Project, name: str) -> list[str]:
    """Files and folders that a path or pattern is of; none for an impossible one."""
    if name == "." or name in project or name in project.folders:
        return [name]
    if not re.search(r"[*?\[]", name) or len(name) > 200 or name.count("*") > 8:
        return []
    return sorted(one for one in project.folders if fnmatch.fnmatchcase(one, name))


def _below(project: Project, path: str, python_files: Sequence[str]) -> list[str]:
    """Test files in a folder, or the file itself."""
    if path in project:
        return [path] if path.endswith(".py") else []
    start = "" if path == "." else f"{path}/"
    patterns = [one for one in python_files[:20] if len(one) < 100 and one.count("*") < 9]
    return [
        one
        for one in project.paths
        if one.startswith(start)
        and one.endswith(".py")
        and any(fnmatch.fnmatchcase(posixpath.basename(one), pattern) for pattern in patterns)
    ]
