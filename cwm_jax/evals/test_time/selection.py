"""Which of several patches is taken: by tests, then by votes, then by tokens. Pure.

The report's rule, of which it says: keep the generated tests that reproduce the issue; take the
five majority tests, and the existing ones; the patch that passes most is chosen, ties are broken by
the majority patch, then by the fewest tokens. What it does not say, and is decided here, is marked
as assumed.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

NUM_TESTS = 5  # report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A patch among others.

    Attributes:
        sample: its number.
        form: what equal patches have in common; None: there is none, or it does not apply.
        tokens: that it took.
        passed: the hidden tests; for estimates, never for the choice.
    """

    sample: int
    form: str | None
    tokens: int
    passed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A problem's patches, and what tests say of them.

    Attributes:
        candidates: all samples.
        tests: of each generated test that reproduces the issue on the original repository: the
            forms with which it prints that the issue is resolved.
        existing: by form, how many of the repository's own tests that pass before pass with it.
    """

    candidates: tuple[Candidate, ...]
    tests: tuple[frozenset[str], ...] = ()
    existing: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        candidate: None where no patch applies.
        tests: places in ``Table.tests`` of the majority tests.
        num_passed: of these and of the existing tests.
        votes: patches that are the same, itself among them.
    """

    candidate: Candidate | None
    tests: tuple[int, ...] = ()
    num_passed: int = 0
    votes: int = 0

    @property
    def passed(self) -> bool:
        return self.candidate is not None and self.candidate.passed


def select(
    table: Table, candidates: Sequence[Candidate] | None = None, *, num_tests: int = NUM_TESTS
) -> Choice:
    """The patch of the rule; of all candidates of the table, or of these alone.

    A test that exists counts as much as a generated one (assumed).
    """
    given = [c for c in candidates or table.candidates if c.form is not None]
    if not given:
        return Choice(candidate=None)
    votes = collections.Counter(c.form for c in given)
    tests = majority_tests(table.tests, given, num_tests)
    passes = {
        form: table.existing.get(form, 0) + sum(form in table.tests[place] for place in tests)
        for form in votes
        if form is not None
    }
    best = min(given, key=lambda c: (-passes[c.form or ""], -votes[c.form], c.tokens, c.sample))
    assert best.form is not None
    return Choice(candidate=best, tests=tests, num_passed=passes[best.form], votes=votes[best.form])


def majority_tests(
    tests: Sequence[frozenset[str]], candidates: Sequence[Candidate], count: int
) -> tuple[int, ...]:
    """Places of the tests that agree with most others about the patches.

    Assumed, all of it: tests with the same outcome for every patch are a group; larger groups come
    first, among groups of one size the one whose outcomes agree with more tests on more patches,
    then the one with the earliest test. Within a group tests come in their order. A patch weighs as
    often as it was written.
    """
    weights = collections.Counter(c.form for c in candidates)
    forms = sorted(form for form in weights if form is not None)
    groups: dict[tuple[bool, ...], list[int]] = {}
    for place, resolved in enumerate(tests):
        groups.setdefault(tuple(form in resolved for form in forms), []).append(place)

    def agreement(outcomes: tuple[bool, ...]) -> int:
        return sum(
            len(members) * weights[form]
            for other, members in groups.items()
            for form, mine, its in zip(forms, outcomes, other, strict=True)
            if mine == its
        )

    ordered = sorted(groups, key=lambda o: (-len(groups[o]), -agreement(o), groups[o][0]))
    return tuple([place for outcomes in ordered for place in groups[outcomes]][:count])


def majority(candidates: Sequence[Candidate]) -> Candidate | None:
    """The patch that was written most often; ties: the fewest tokens, the first."""
    given = [c for c in candidates if c.form is not None]
    votes = collections.Counter(c.form for c in given)
    return min(given, key=lambda c: (-votes[c.form], c.tokens, c.sample), default=None)
