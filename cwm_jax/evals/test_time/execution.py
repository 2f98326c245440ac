"""Patches times tests, run: what fills a `selection.Table`.

Each run has a workspace of its own: a test is a program of the model's, and what it does to files
must not be seen by the next. Patches that come to the same are run once; a generated test that does
not reproduce the issue on the original repository is run on no patch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cwm_jax.evals.swe.forms import PatchForm, form_of
from cwm_jax.evals.test_time.cells import Cell, Cells, cell_key
from cwm_jax.evals.test_time.samples import PatchSample, Samples, TestSample
from cwm_jax.evals.test_time.selection import Candidate, Table
from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.swe.data import read_data
from cwm_jax.rl.envs.swe.environment import workspace_maker
from cwm_jax.rl.envs.swe.grading import apply_inside, read_inside
from cwm_jax.rl.envs.swe.issue_tests import TEST_S, complaint_of_source, run_test
from cwm_jax.rl.envs.swe.profiles import SWEProfile
from cwm_jax.rl.envs.swe.suite import Suite, SuiteFailed, suite_results
from cwm_jax.rl.envs.swe.workspaces.protocol import Workspace

_UNITTEST = {"command": "python -m unittest -v", "format": "unittest", "canary": "."}
_NO_TESTS: dict[str, Any] = {"fail_to_pass": (), "pass_to_pass": (), "files": {}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filled:
    """A problem whose tests were run.

    Attributes:
        table: what is chosen from.
        tests: by place in ``table.tests``: the sample's number.
        num_tests: generated.
        num_existing: tests of the repository that pass before.
        notes: what people should know.
    """

    table: Table
    tests: tuple[int, ...]
    num_tests: int
    num_existing: int
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a problem's tests are run.

    Attributes:
        task: of the kind swe.
        profile: its time-out of tests, and limits.
        existing: how the repository's own tests are run; None: they are not.
        unsafe: without bubblewrap.
    """

    task: Task
    profile: SWEProfile
    existing: Suite | None
    unsafe: bool = False

    @property
    def repository(self) -> Mapping[str, Any]:
        return self.task.data["repository"]

    def workspace(self) -> Workspace:
        return workspace_maker(self.repository, self.profile, unsafe=self.unsafe)()

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[str], bytes | None]]:
        """A function that gives a file of the original repository."""
        if "files" in self.repository:
            files = self.repository["files"]
            yield lambda path: files[path].encode() if path in files else None
            return
        workspace = self.workspace()
        try:
            yield lambda path: read_inside(workspace, path)
        finally:
            workspace.close()


def existing_of(task: Task, given: Mapping[str, Any]) -> Suite | None:
    """How the repository's own tests are run.

    Args:
        task: its hidden tests say how, where they are a suite whose files are apart. A script of
            SWE-bench's brings the hidden tests itself, and says nothing.
        given: by the task's name, its group or ``*``: ``command``, ``format`` and ``canary``, as in
            a task's tests; or None for none.
    """
    for name in (task.name, task.group, "*"):
        if name in given:
            return None if given[name] is None else Suite(**given[name], **_NO_TESTS)
    tests = read_data(task).tests
    if not isinstance(tests, Suite):
        return Suite(**_UNITTEST, **_NO_TESTS)
    if not tests.files:
        return None
    return dataclasses.replace(tests, **_NO_TESTS)


def fill(bench: Bench, samples: Samples, cells: Cells, *, num_workers: int) -> Filled:
    """Runs what is not known yet.

    Raises:
        EnvironmentFailure: of some runs, after the others.
    """
    with bench.reader() as read:
        forms = [None if p.text is None else form_of(p.text, read) for p in samples.patches]
    distinct: dict[str, PatchForm] = {}
    for form in forms:
        if form is not None:
            distinct.setdefault(form.key, form)
    kept, before, notes = _on_original(bench, samples, cells, num_workers)
    tests = {
        (key, test.sample): _test_cell(bench, test.source, form)
        for key, form in distinct.items()
        for test in kept
    }
    own = {key: _existing_cell(bench, form) for key, form in distinct.items()} if before else {}
    known = cells.done([*tests.values(), *own.values()], num_workers=num_workers)
    resolved = {place for place, cell in tests.items() if known[cell.key]["status"] == "resolved"}
    table = Table(
        candidates=tuple(map(_candidate, samples.patches, forms)),
        tests=tuple(
            frozenset(key for key in distinct if (key, test.sample) in resolved) for test in kept
        ),
        existing={key: len(before & {*known[cell.key]["passing"]}) for key, cell in own.items()},
    )
    return Filled(
        table=table,
        tests=tuple(test.sample for test in kept),
        num_tests=len(samples.tests),
        num_existing=len(before),
        notes=notes,
    )


def _on_original(
    bench: Bench, samples: Samples, cells: Cells, num_workers: int
) -> tuple[list[TestSample], set[str], tuple[str, ...]]:
    """(tests that reproduce the issue, existing tests that pass, notes)."""
    asked = [test for test in samples.tests if not complaint_of_source(test.source or "")]
    generated = [_test_cell(bench, test.source, None) for test in asked]
    existing = [_existing_cell(bench, None)] if bench.existing else []
    known = cells.done([*generated, *existing], num_workers=num_workers)
    pairs = zip(asked, generated, strict=True)
    kept = [test for test, cell in pairs if known[cell.key]["status"] == "reproduced"]
    if not existing:
        return kept, set(), ("how existing tests are run is not known",)
    found = known[existing[0].key]
    notes = (f"no existing test counts: {found['detail']}",) if found["detail"] else ()
    return kept, set(found["passing"]), notes


def _candidate(patch: PatchSample, form: PatchForm | None) -> Candidate:
    return Candidate(
        sample=patch.sample,
        form=form and form.key,
        tokens=patch.tokens,
        passed=patch.passed,
    )


def _test_cell(bench: Bench, source: str | None, form: PatchForm | None) -> Cell:
    assert source is not None
    patches = form.patches if form else ()
    timeout_s = min(bench.profile.test_timeout_s, TEST_S)

    def run(workspace: Workspace) -> dict[str, Any]:
        try:
            found = run_test(workspace, source, timeout_s=timeout_s, patch=patches)
        except ValueError as error:  # a link or a folder is where the patch has a file
            return {"status": "unclear", "detail": str(error)}
        return dataclasses.asdict(found)

    return _cell(bench, "generated", source, form, run)


def _existing_cell(bench: Bench, form: PatchForm | None) -> Cell:
    suite, patches = bench.existing, form.patches if form else ()
    assert suite is not None

    def run(workspace: Workspace) -> dict[str, Any]:
        try:
            apply_inside(patches, workspace)
            found = suite_results(workspace, suite, timeout_s=bench.profile.test_timeout_s)
        except (ValueError, SuiteFailed) as error:
            return {"passing": [], "detail": str(error)}
        return {"passing": sorted(name for name, passed in found.items() if passed), "detail": ""}

    return _cell(bench, "existing", [suite.command, suite.format, suite.canary], form, run)


def _cell(
    bench: Bench,
    kind: str,
    test: Any,
    form: PatchForm | None,
    run: Callable[[Workspace], dict[str, Any]],
) -> Cell:
    def in_workspace() -> dict[str, Any]:
        workspace = bench.workspace()
        try:
            return run(workspace)
        finally:
            workspace.close()

    content = form and form.content
    limits = [bench.profile.test_timeout_s, repr(bench.profile.limits)]
    key = cell_key(bench.repository, kind, test, content, limits)
    about = {"problem": bench.task.name, "kind": kind, "patch": content, "test": cell_key(test)}
    return Cell(key=key, about=about, run=in_workspace)
