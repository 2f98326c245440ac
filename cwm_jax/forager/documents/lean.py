"""Proofs in Lean as documents: the state of a proof, the tactic, the state after it.

CWM is trained on such triples (its report, of the data of mid-training). The files are those of
LeanDojo's benchmarks: a JSON list of theorems with the tactics that were traced. Source of the
fields: LeanDojo's export (Yang et al., arXiv 2306.15626). Nothing is proved or checked here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from cwm_jax.config.schema import check_positive, check_types
from cwm_jax.forager.decontamination import LEAN_BENCHMARKS, SWE_BENCH, Exclusions
from cwm_jax.forager.documents.collection import Document, Dropped
from cwm_jax.forager.documents.rows import Row, read_list

_GAP = re.compile(r"\b(sorry|admit|sorryAx)\b")  # what stands for a proof that is not there


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeanOptions:
    """Which theorems become documents; the limits are assumed.

    Attributes:
        max_tactics: of a theorem.
        max_state_chars: of each state.
        exclusions: repositories that are left out.
    """

    max_tactics: int = 200
    max_state_chars: int = 20_000
    exclusions: Exclusions = dataclasses.field(
        default_factory=lambda: Exclusions((*SWE_BENCH, *LEAN_BENCHMARKS))
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "max_tactics", "max_state_chars")


def theorem_names(path: Path) -> set[str]:
    """Full names of the theorems of a file.

    Raises:
        ValueError: as `theorems`.
    """
    return {row.text("full_name") for row in read_list(path, "theorem")}


def theorems(
    path: Path, options: LeanOptions, *, held_out: Collection[str] = ()
) -> Iterator[Document | Dropped]:
    """A document of each theorem, in the file's order, or why it is none.

    Args:
        path: a JSON list of objects with ``url``, ``commit``, ``file_path``, ``full_name`` and
            ``traced_tactics``, each with ``tactic``, ``state_before`` and ``state_after``;
            ``theorem_statement`` may be there.
        options: the filters.
        held_out: full names of theorems that are left out, as of a test split: LeanDojo's splits
            by premise and at random share theorems.

    Raises:
        ValueError: a theorem without one of these, or with one of another type.
    """
    for row in read_list(path, "theorem"):
        yield _document(_theorem(row), options, held_out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Step:
    before: str
    tactic: str
    after: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Theorem:
    name: str
    file: str
    url: str
    commit: str
    statement: str
    steps: tuple[_Step, ...]


def _theorem(row: Row) -> _Theorem:
    stated = "theorem_statement" in row.values  # Lean 3's files have none
    return _Theorem(
        name=row.text("full_name"),
        file=row.text("file_path"),
        url=row.text("url"),
        commit=row.text("commit"),
        statement=row.text("theorem_statement", null="").strip() if stated else "",
        steps=tuple(
            _Step(
                before=step.text("state_before").strip(),
                tactic=step.text("tactic").strip(),
                after=step.text("state_after").strip(),
            )
            for step in row.rows("traced_tactics")
        ),
    )


def _document(
    theorem: _Theorem, options: LeanOptions, held_out: Collection[str]
) -> Document | Dropped:
    reason = _reason(theorem, options, held_out)
    if reason is not None:
        return Dropped(reason)
    parts = [f"Theorem: {theorem.name} ({theorem.file})", theorem.statement]
    parts += _parts_of_steps(theorem.steps)
    origin = {"repository": theorem.url, "commit": theorem.commit, "file": theorem.file}
    text = "\n\n".join(filter(None, parts)) + "\n"
    return Document(f"{theorem.file}:{theorem.name}", text, origin)


def _reason(theorem: _Theorem, options: LeanOptions, held_out: Collection[str]) -> str | None:
    if options.exclusions.find(theorem.url):
        return "excluded repository"
    if theorem.name in held_out:
        return "held out"
    steps = theorem.steps
    if not steps:
        return "no tactics"
    if not all(step.before and step.tactic and step.after for step in steps):
        return "empty state or tactic"
    if any(_GAP.search(step.tactic) for step in steps):
        return "sorry"
    if len(steps) > options.max_tactics:
        return "too many tactics"
    longest = max(len(text) for step in steps for text in (step.before, step.after))
    return "too long a state" if longest > options.max_state_chars else None


def _parts_of_steps(steps: Sequence[_Step]) -> list[str]:
    """A state that the step before has led to is not said again."""
    parts, known = [], None
    for step in steps:
        if step.before != known:
            parts.append(f"State:\n{step.before}")
        parts += [f"Tactic:\n{step.tactic}", f"State:\n{step.after}"]
        known = step.after
    return parts
