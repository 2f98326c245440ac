"""Commits that mended a bug: a task is to do it again, at the commit before.

A commit of an image's history is tried if its message speaks of a fault, and it changes both code
and tests. It becomes a task if, with its tests, the commit before passes fewer. The issue is that
of an export which the message names, or the message itself.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.forager.decontamination import KnownTexts
from cwm_jax.forager.documents.history import Commit, History
from cwm_jax.forager.documents.pull_requests import Issue, issue_of
from cwm_jax.forager.tasks.tested import Tested, tested, tests_data, write_files
from cwm_jax.forager.tasks.trials import TASK, Trial, run_trials
from cwm_jax.rl.envs.swe.grading import is_of_tests
from cwm_jax.rl.envs.swe.patches import parse_patch
from cwm_jax.rl.envs.swe.suite import SuiteFailed, suite_results
from cwm_jax.trace.corpus.engines import Engine

# Assumed: as people write of what they mend.
_FAULT = re.compile(
    r"\b(fix(es|ed|ing)?|bugs?|close[sd]?|resolve[sd]?|regressions?|mend(s|ed)?|correct(s|ed)?"
    r"|wrong|broken?|crash(es|ed)?|fails?|failures?|errors?|issues?)\b|#\d+",
    re.I,
)
_KIND = "issue-fix"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IssueFixSettings:
    """What the tasks depend on besides the images; the limits are assumed.

    Attributes:
        timeout_s: of a run of the tests.
        max_files: that a commit changes.
        issues: of an export, by number.
    """

    timeout_s: float = 120.0
    max_files: int = 20
    issues: Mapping[int, Issue] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Item:
    number: int
    path: Path
    commit: Commit


def issue_fix(
    images: Sequence[Path],
    folder: Path,
    settings: IssueFixSettings,
    *,
    count: int | None,
    engine: Engine,
    known: KnownTexts | None = None,
) -> list[Trial]:
    """Tries the commits of the images' histories, the newest first; see `run_trials`.

    Args:
        images: folders of images; those of distributions have no history.
        folder: of the run.
        settings: of the tasks.
        count: of tasks; None tries every commit.
        engine: where.
        known: texts that tasks may not be near to.

    Raises:
        ValueError: none of the images has a history.
    """
    items = list(_items(images))
    if not items:
        raise ValueError(
            f"none of {len(images)} images has a history with a commit that speaks of a fault; "
            "expected one that was made of a git repository"
        )
    values = dataclasses.asdict(settings) | {"images": [str(path) for path in images]}
    return run_trials(
        folder,
        items,
        functools.partial(_tried, settings),
        settings=values,
        died=_died,
        engine=engine,
        count=count,
        known=known,
    )


def _items(images: Sequence[Path]) -> Iterator[_Item]:
    number = 0
    for path in images:
        for commit in reversed(History(path / "repository.git").commits()):
            if len(commit.parents) == 1 and _FAULT.search(commit.message):
                yield _Item(number, path, commit)
                number += 1


def _tried(settings: IssueFixSettings, items: Sequence[_Item]) -> bytes:
    return b"".join(_trial(item, settings).to_line() for item in items)


def _trial(item: _Item, settings: IssueFixSettings) -> Trial:
    image, commit = tested(item.path, settings.timeout_s), item.commit
    found = Trial(
        number=item.number,
        image=item.path.name,
        kind=_KIND,
        what=f"{commit.sha}: {commit.message.splitlines()[0]}",
        outcome=TASK,
    )
    try:
        change = _Change(History(item.path / "repository.git"), commit, settings)
        before, after = (
            _passing(image, sha, change.tests) for sha in (commit.parents[0], commit.sha)
        )
    except _NoTask as end:
        return dataclasses.replace(found, outcome=str(end))
    mended = [name for name in sorted(after) if name not in before]
    if not mended:
        return dataclasses.replace(found, outcome="no test is mended")
    kept = sorted(before & after)
    repository = {**image.repository, "commit": commit.parents[0]}
    data: dict[str, Any] = {
        "issue": change.issue,
        "repository": repository,
        "patch": change.gold,
        "tests": tests_data(image.suite, mended, kept, change.tests),
    }
    name = f"{_KIND}/{item.path.name}/{commit.sha[:12]}"
    task = {"name": name, "data": data, "group": item.path.name}
    return dataclasses.replace(found, num_failing=len(mended), task=task)


class _NoTask(Exception):  # noqa: N818
    """Why a commit is none."""


class _Change:
    """What a commit does to code and tests.

    Attributes:
        issue: what is to be done, in words.
        gold: patch of what is no test.
        tests: texts of the tests that it changes, afterwards.
    """

    def __init__(self, history: History, commit: Commit, settings: IssueFixSettings) -> None:
        paths = [change.path for change in history.changes(commit)]
        if len(paths) > settings.max_files:
            raise _NoTask("too many files")
        tests = [path for path in paths if is_of_tests(path)]
        if not any(path.endswith(".py") for path in tests):
            raise _NoTask("no test is changed")
        if not any(path.endswith(".py") for path in {*paths} - {*tests}):
            raise _NoTask("no code is changed")
        try:
            contents = history.contents(commit.sha, tests)
            self.tests = {path: content.decode() for path, content in contents.items()}
            others = [path for path in paths if path not in {*tests}]
            self.gold = history.diff(commit, others).decode()
            patches = parse_patch(self.gold)
        except ValueError as error:
            raise _NoTask("a change that is no text") from error
        if any(patch.binary for patch in patches):
            raise _NoTask("a change that is no text")
        named = issue_of(commit.message, settings.issues)
        self.issue = f"# {named.title}\n\n{named.body}".strip() if named else commit.message


def _passing(image: Tested, commit: str, tests: Mapping[str, str]) -> set[str]:
    """Tests that pass at a commit with given tests."""
    workspace = image.workspace(commit)
    try:
        write_files(workspace, tests)
        found = suite_results(workspace, image.suite, timeout_s=image.timeout_s)
    except SuiteFailed as error:
        raise _NoTask("tests do not run" if error.ended else "no end") from error
    finally:
        workspace.close()
    unsure = {*image.image.manifest.flaky}
    return {name for name, passed in found.items() if passed and name not in unsure}


def _died(item: _Item) -> bytes:
    return Trial(
        number=item.number,
        image=item.path.name,
        kind=_KIND,
        what=item.commit.sha,
        outcome="process died",
    ).to_line()
