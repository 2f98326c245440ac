"""Whether a patch solves an issue: applied to the original commit, elsewhere, by the host.

The candidate's code never runs where the agent worked. Its changes of tests, and of what a test
runner loads by itself, are left out, and the hidden tests come only now.
"""

from __future__ import annotations

import dataclasses
import errno
import posixpath
import re
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import PurePosixPath

from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.swe.calls import Call, CallsFailed, call_all
from cwm_jax.rl.envs.swe.data import SWEData
from cwm_jax.rl.envs.swe.patches import FilePatch, apply_patch, parse_patch, similarity
from cwm_jax.rl.envs.swe.suite import Suite, run_suite
from cwm_jax.rl.envs.swe.workspaces.checkout import files_of
from cwm_jax.rl.envs.swe.workspaces.protocol import Workspace

_FILE_BYTES = 8 << 20  # assumed: of a file that a patch changes
_TEST_FOLDERS = {"test", "tests", "testing"}
_TEST_FILE = re.compile(r"test_.*\.py|.*_test\.py|conftest\.py")
# What the interpreter or pytest loads without being asked to.
_LOADED = {"sitecustomize.py", "usercustomize.py", "pytest.ini", ".pytest.ini", "tox.ini"}
_RUNNERS = {"pytest", "_pytest", "pluggy", "iniconfig"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """``reason`` is empty where the patch passes; ``similarity`` is to the gold patch."""

    passed: bool
    reason: str
    similarity: float


def grade(
    data: SWEData,
    patch: str,
    *,
    timeout_s: float,
    make_workspace: Callable[[], Workspace],
    unsafe: bool = False,
) -> Verdict:
    """Judges a patch by a task's hidden tests.

    Args:
        data: of the task.
        patch: as it was submitted.
        timeout_s: of the tests.
        make_workspace: makes a new one of the task's repository; not called for tests by calls.
        unsafe: make calls without bubblewrap.

    Raises:
        EnvironmentFailure: the sandbox, the engine or the host failed.
    """
    try:
        submitted = parse_patch(patch)
        if not submitted:
            raise ValueError("the patch changes no file")
    except ValueError as error:
        return Verdict(passed=False, reason=str(error), similarity=0.0)
    kept = without_tests(submitted, {patch.path for patch in data.gold})
    reason = _complaint(data, kept, timeout_s, make_workspace, unsafe=unsafe)
    return Verdict(passed=not reason, reason=reason, similarity=similarity(submitted, data.gold))


def without_tests(
    patches: Sequence[FilePatch], proper: Container[str] = frozenset()
) -> list[FilePatch]:
    """Those of files that are the repository's proper, at both ends of a renaming.

    ``proper`` are so whatever their names, as ``django/test/client.py`` is: the gold patch changes
    them.
    """
    kept = []
    for patch in patches:
        names = [n for n in (patch.old, patch.new) if n is not None and n not in proper]
        if not any(map(is_of_tests, names)) and not (names and _shadows(patch)):
            kept.append(patch)
    return kept


def apply_inside(patches: Sequence[FilePatch], workspace: Workspace) -> None:
    """Applies a patch to a workspace in which nothing has run.

    Raises:
        ValueError: it does not apply.
        EnvironmentFailure: the workspace failed.
    """
    _write(workspace, apply_patch(patches, lambda path: read_inside(workspace, path)))


def read_inside(workspace: Workspace, path: str) -> bytes | None:
    """A file of the checkout, None where there is none; raises as `apply_inside`."""
    try:
        return workspace.read(posixpath.join(workspace.root, path), _FILE_BYTES)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise ValueError(f"{path}: the patch cannot be applied: {error.strerror}") from None


def _complaint(
    data: SWEData,
    patches: Sequence[FilePatch],
    timeout_s: float,
    make_workspace: Callable[[], Workspace],
    *,
    unsafe: bool,
) -> str:
    """Why the patch does not pass; empty if it does."""
    tests = data.tests
    if not isinstance(tests, Suite):
        before = files_of(data.repository)
        return _complaint_of_calls(before, tests, patches, timeout_s, unsafe=unsafe)
    workspace = make_workspace()
    try:
        try:
            apply_inside(patches, workspace)
        except ValueError as error:
            return str(error)
        return run_suite(workspace, tests, timeout_s=timeout_s)
    finally:
        workspace.close()


def _complaint_of_calls(
    before: Mapping[str, bytes],
    calls: Sequence[Call],
    patches: Sequence[FilePatch],
    timeout_s: float,
    *,
    unsafe: bool,
) -> str:
    try:
        after = {**before, **apply_patch(patches, before.get)}
    except ValueError as error:
        return str(error)
    files = {path: content for path, content in after.items() if content is not None}
    try:
        results = call_all(files, calls, timeout_s=timeout_s, unsafe=unsafe)
    except CallsFailed as error:
        return str(error)
    wrong = sum(not call.is_right(result) for call, result in zip(calls, results, strict=True))
    return f"{wrong} of {len(calls)} hidden tests fail" if wrong else ""


def is_of_tests(path: str) -> bool:
    """Whether a path of a repository is of its tests, or of what a runner of tests loads."""
    *folders, name = PurePosixPath(path).parts
    in_tests = bool(_TEST_FOLDERS & set(folders))
    return in_tests or bool(_TEST_FILE.fullmatch(name)) or name in _LOADED


def _shadows(patch: FilePatch) -> bool:
    """Whether it adds a module that the runner would take for its own: ``unittest.py``."""
    first = PurePosixPath(patch.path).parts[0].removesuffix(".py")
    return patch.old is None and first in {*sys.stdlib_module_names, *_RUNNERS}


def _write(workspace: Workspace, changed: Mapping[str, bytes | None]) -> None:
    """Nothing of the candidate's has run here yet."""
    for path, content in changed.items():
        place = posixpath.join(workspace.root, path)
        try:
            if content is None:
                _remove(workspace, place)
            else:
                workspace.write(place, content)
        except OSError as error:
            raise ValueError(f"{path}: the patch cannot be applied: {error.strerror}") from None


def _remove(workspace: Workspace, place: str) -> None:
    quoted = "'" + place.replace("'", "'\\''") + "'"
    reply = workspace.run(f"rm -f -- {quoted}", 60.0)
    if reply.outcome != "ok" or reply.exit_code:
        raise EnvironmentFailure(f"{place} could not be removed: {reply.detail} {reply.output}")
