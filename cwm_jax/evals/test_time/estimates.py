"""How often a rule would choose right with k patches: expectations over which k, and intervals.

Each problem's value is the mean over choices of k of its patches, drawn without putting back: all
choices where there are few, else seeded random ones. The interval is over problems.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from cwm_jax.evals.runs.metrics import Estimate, interval, pass_at_k
from cwm_jax.evals.test_time.selection import NUM_TESTS, Candidate, Table, majority, select

NUM_CHOICES = 400  # assumed: the draws then move a problem's value by at most 0.025
# What each rule is to know: random nothing, majority the patches, best the tests, pass the answer.
RULES = ("random", "majority", "best", "pass")
Curves = dict[str, dict[int, Estimate]]


def curves(
    tables: Mapping[str, Table],
    ks: Sequence[int],
    *,
    num_tests: int = NUM_TESTS,
    num_choices: int = NUM_CHOICES,
    seed: int = 0,
) -> Curves:
    """By rule and k; of a problem with fewer than k patches nothing is known.

    All generated tests are there for each k (assumed; the report does not say).
    """
    found: Curves = {rule: {} for rule in RULES}
    for k in ks:
        values: dict[str, list[float]] = {rule: [] for rule in RULES}
        for name, table in tables.items():
            if len(table.candidates) >= k:
                rng = random.Random(f"{seed}/{name}/{k}")
                at_k = values_at(table, k, num_tests=num_tests, num_choices=num_choices, rng=rng)
                for rule, value in at_k.items():
                    values[rule].append(value)
        for rule in RULES:
            found[rule][k] = interval(values[rule], seed=seed)
    return found


def values_at(
    table: Table, k: int, *, num_tests: int, num_choices: int, rng: random.Random
) -> dict[str, float]:
    """Of one problem, by rule: the probability that what is chosen of k patches is right."""
    candidates = table.candidates
    num_right = sum(c.passed for c in candidates)
    chosen = list(_choices(candidates, k, num_choices, rng))

    def mean(is_right: Callable[[Sequence[Candidate]], bool]) -> float:
        return sum(map(is_right, chosen)) / len(chosen)

    def voted(some: Sequence[Candidate]) -> bool:
        taken = majority(some)
        return taken is not None and taken.passed

    return {
        "random": num_right / len(candidates),
        "majority": mean(voted),
        "best": mean(lambda some: select(table, some, num_tests=num_tests).passed),
        "pass": pass_at_k(len(candidates), num_right, k),
    }


def usual_ks(tables: Mapping[str, Table]) -> list[int]:
    """Powers of two up to what all problems have, and that."""
    most = min(len(table.candidates) for table in tables.values())
    return sorted({most, *(2**n for n in range(most.bit_length()) if 2**n <= most)})


def _choices(
    candidates: Sequence[Candidate], k: int, most: int, rng: random.Random
) -> Iterator[Sequence[Candidate]]:
    if math.comb(len(candidates), k) <= most:
        yield from itertools.combinations(candidates, k)
    else:
        yield from (rng.sample(candidates, k) for _ in range(most))
