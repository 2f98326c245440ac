"""What a project's tests come to: each test's outcome, of runs that are made twice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from cwm_jax.rl.envs.swe.suite import SuiteRun

Outcome = Literal["passed", "failed", "skipped"]
# Those that count neither for nor against: skipped, expected to fail and failing.
_SKIPPED = {
    "pytest": re.compile(
        r"^(?:(\S+?::.+?) (?:SKIPPED|XFAIL)\b.*|(?:XFAIL) (\S+?::.+?)(?: - .*)?)$", re.M
    ),
    "unittest": re.compile(
        r"^(\w+) \(([\w.]+)\)(?:\n(?!\w+ \([\w.]+\)).*)? \.\.\. (?:skipped|expected failure)", re.M
    ),
}


def outcomes(run: SuiteRun, style: str) -> dict[str, Outcome]:
    """Each test's outcome, by name.

    Args:
        run: of a suite.
        style: ``pytest`` or ``unittest``.
    """
    skipped = _skipped(run.output, style)
    return {
        name: "passed" if passed else "skipped" if name in skipped else "failed"
        for name, passed in run.passed.items()
    }


def flaky(first: Mapping[str, Outcome], second: Mapping[str, Outcome]) -> tuple[str, ...]:
    """Tests that are not in both, or come to something else."""
    names = sorted({*first, *second})
    return tuple(name for name in names if first.get(name) != second.get(name))


def share_passing(found: Mapping[str, Outcome]) -> float:
    """Of the tests that are not skipped; 0 where there are none."""
    counted = [outcome for outcome in found.values() if outcome != "skipped"]
    return counted.count("passed") / len(counted) if counted else 0.0


def _skipped(output: str, style: str) -> set[str]:
    output = output.replace("\r\n", "\n")
    if style == "pytest":
        return {one or other for one, other in _SKIPPED[style].findall(output)}
    places = _SKIPPED[style].findall(output)
    return {place if place.endswith(f".{name}") else f"{place}.{name}" for name, place in places}
