"""What runs of evaluations have left: the patches and the tests of each problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cwm_jax.evals.runs.records import Record, read_records, read_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchSample:
    """A try at a problem.

    Attributes:
        sample: its number, over all runs.
        text: of the patch; None where none was submitted.
        tokens: that the model wrote.
        passed: the verdict of the hidden tests. It takes no part in a choice.
    """

    sample: int
    text: str | None
    tokens: int
    passed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestSample:
    """A try at a test of a problem's issue; ``source`` is None where none was submitted."""

    __test__ = False  # pytest collects what is named so

    sample: int
    source: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Of one problem."""

    patches: tuple[PatchSample, ...]
    tests: tuple[TestSample, ...] = ()


def read_samples(patch_runs: Sequence[Path], test_runs: Sequence[Path]) -> dict[str, Samples]:
    """By problem, those of several runs one after another; voids of broken environments left out.

    Raises:
        ValueError: a folder that is no run's, a run without patches or tests of this kind, no
            patch at all.
    """
    patches = _by_problem(patch_runs, "patch")
    tests = _by_problem(test_runs, "test")
    if not patches:
        raise ValueError(
            f"{', '.join(map(str, patch_runs))}: no patches; expected runs of the set swe or "
            "swe_shipped that have graded something: evaluate first"
        )
    return {
        name: Samples(
            patches=tuple(_patch(number, record) for number, record in enumerate(records)),
            tests=tuple(
                TestSample(sample=number, source=record.info.get("test"))
                for number, record in enumerate(tests.get(name, ()))
            ),
        )
        for name, records in patches.items()
    }


def _patch(number: int, record: Record) -> PatchSample:
    return PatchSample(
        sample=number,
        text=record.info.get("patch"),
        tokens=int(record.info.get("tokens") or record.num_tokens or 0),
        passed=record.passed,
    )


def _by_problem(runs: Sequence[Path], key: str) -> Mapping[str, Sequence[Record]]:
    found: dict[str, list[Record]] = {}
    for folder in runs:
        read_run(folder)
        records = _graded(read_records(folder).values())
        if records and not any(key in record.info for record in records):
            raise ValueError(
                f"{folder}: none of its {len(records)} records has a {key}; expected a run of "
                f"{'swe or swe_shipped' if key == 'patch' else 'swe_tests or swe_shipped_tests'}: "
                "name patches first, and tests after --tests"
            )
        for record in records:
            found.setdefault(record.problem, []).append(record)
    return found


def _graded(records: Iterable[Record]) -> list[Record]:
    kept = [record for record in records if not record.is_void]
    return sorted(kept, key=lambda record: record.sample)
