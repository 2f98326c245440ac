"""A debugging session: the failing test, what it runs, changes that may mend it, one after another.

All that it knows is what its tools have shown. A change is kept when the failing test passes with
it, and then all tests of that file.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Collection, Generator, Sequence

from cwm_jax.forager.agent.policies.edits import edit_of
from cwm_jax.forager.agent.policies.failing_tests import (
    FailingTest,
    first_failed,
    functions_run,
    imported_paths,
    is_of_tests,
    named_test,
    read_run,
    source_of_test,
    within_class,
)
from cwm_jax.forager.agent.policies.inverses.ranking import Change, Evidence, ranked
from cwm_jax.forager.agent.policies.scripted import Script, call

_MOST_TRIES = 55  # assumed: two turns each
_ENDLESS_S = 4  # assumed: for tries where the test did not end
_MOST_FILES = 6  # assumed: that are read as candidates
_PIECE_LINES = 250  # assumed: of a file that is too long for one look
_MOST_PIECES = 8  # assumed
_CUT = re.compile(r"^\.\.\. \d+ characters \.\.\.$", re.M)
_ALL_TESTS = "timeout 50 python -m unittest -q 2>&1 | tail -n 60"
_NOTHING = "I find no test that fails, and have changed nothing."
_GIVEN_UP = "None of the changes that I tried mends the test; the files are as they were."

Part = Generator[str, str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """What the session knows before it changes anything."""

    test: FailingTest
    evidence: Evidence
    files: dict[str, str]


def debugging(issue: str) -> Script:
    """Solves an issue that names a failing test, has a traceback, or whose tests fail."""
    listed = yield call(
        "bash", "pwd && git ls-files | head -n 600", words="I look at what the repository has."
    )
    root, *paths = listed.rstrip("\n").split("\n")
    test = named_test(issue, paths)
    if test is None:
        seen = yield call("bash", _ALL_TESTS, words="The issue names no test. I run them all.")
        test = first_failed(seen, paths)
    if test is None:
        return _NOTHING
    found = yield from _looked(test, root, paths)
    if found is None:
        return _NOTHING
    changes = ranked(found.files, found.evidence)
    test = found.test
    if found.evidence.is_endless:
        test = dataclasses.replace(test, run_s=_ENDLESS_S)
    kept = yield from _tried(test, changes[:_MOST_TRIES])
    if kept is None:
        return _GIVEN_UP
    yield call("bash", "git diff", words="That mends it. I look at the whole change.")
    return (
        f"{kept.draft.why} With the change of {kept.path} the failing test passes, and so do all "
        f"others of {found.test.path}."
    )


def _looked(
    test: FailingTest, root: str, paths: Collection[str]
) -> Generator[str, str, _Found | None]:
    """Runs the test, reads it, and reads what it runs."""
    source = yield from _read(test.path, words="I read the test that fails.")
    test = within_class(test, source)
    output = yield call("bash", test.command(), words="I run it.")
    if "No module named pytest" in output:
        test = test.by_unittest()
        output = yield call("bash", test.command(), words="There is no pytest; unittest runs it.")
    if output.rstrip().endswith("exit 0"):
        return None
    shown = read_run(output, root, paths)
    is_endless = output.rstrip().endswith("exit 124")
    run: Sequence[tuple[str, str]] = []
    if not is_endless:
        listed = yield call(
            "bash", test.traced(), words="I want to know which functions of the project it runs."
        )
        run = functions_run(listed, root)
    candidates = [path for path, _ in reversed(shown.places)] + [path for path, _ in run]
    candidates += _imported(source, paths)
    files: dict[str, str] = {}
    for path in list(dict.fromkeys(p for p in candidates if p in paths))[:_MOST_FILES]:
        text = yield from _read(path, words=_why_read(path, shown.error, shown.places))
        if text:
            files[path] = text if text.endswith("\n") else f"{text}\n"
    evidence = Evidence(
        error=shown.error,
        places=shown.places,
        run=run,
        test=source_of_test(test, source),
        is_endless=is_endless,
    )
    return _Found(test=test, evidence=evidence, files=files)


def _why_read(path: str, error: str, places: Sequence[tuple[str, int]]) -> str:
    if places and places[-1][0] == path:
        return f"The traceback ends in line {places[-1][1]} of {path}: {error}"
    return f"The test comes to {path}."


def _imported(source: str, paths: Collection[str]) -> list[str]:
    try:
        return [path for path in imported_paths(source, paths) if not is_of_tests(path)]
    except SyntaxError:
        return []


def _tried(test: FailingTest, changes: Sequence[Change]) -> Generator[str, str, Change | None]:
    """Each change by an edit and a run of the test; what does not help is taken back."""
    for change in changes:
        edit = edit_of(change.path, change.before, change.draft.source)
        seen = yield call("edit", edit, words=change.draft.why)
        if not seen.startswith("Edited"):
            continue
        back = f"git checkout -q -- {shlex.quote(change.path)}"
        seen = yield call("bash", test.command(lines=4, otherwise=back))
        if not seen.rstrip().endswith("exit 0"):
            continue
        seen = yield call(
            "bash",
            test.command(whole_file=True, lines=6),
            words="It passes. I run all tests of its file.",
        )
        if seen.rstrip().endswith("exit 0"):
            return change
        yield call("bash", back, words="Others fail with it, so this is not the cause.")
    return None


def _read(path: str, *, words: str) -> Part:
    """A file, in pieces where it is long; empty where that takes too many."""
    text = yield call("bash", f"cat {shlex.quote(path)}", words=words)
    if not _CUT.search(text):
        return text
    pieces = []
    for number in range(_MOST_PIECES):
        first = 1 + number * _PIECE_LINES
        lines = f"sed -n '{first},{first + _PIECE_LINES - 1}p' {shlex.quote(path)}"
        piece = yield call("bash", lines, words="" if number else "It is long. I read it in parts.")
        pieces.append(piece)
        if _CUT.search(piece):
            return ""
        if piece.count("\n") < _PIECE_LINES:
            return "".join(pieces)
    return ""
