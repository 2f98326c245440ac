"""Tasks on long contexts: what is hidden in the haystack, what is asked, which values are right."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from cwm_jax.evals.generated.filler import constant_function, new_words, note, number
from cwm_jax.evals.generated.haystacks import Pool, Pools, TooShortError, with_needles

_SEVERAL = 4  # secondary: RULER's keys, values and queries
_HOPS = 4  # secondary: RULER's variable tracking
_COMMON, _COMMON_TIMES, _TIMES_RARER = 10, 30, 10  # secondary: RULER's common words
_LEAST_COMMON_TIMES = 4  # assumed
_FREQUENT = 3  # secondary: RULER's frequent words
_ALPHA = 2.0  # secondary: of their Zipf law
_NOTES = "The text below has notes with access codes in it. Remember them.\n\n"
_MODULE = "Below is a Python module.\n\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """A problem without its haystack.

    Attributes:
        intro: comes first; ends with a line end.
        units: the haystack in the order of the text, at most so many tokens; raises TooShortError
            where they are too few.
        question: comes last.
        opening: how the answer begins, for models that continue texts.
        values: what the answer must name.
        hidden: what is looked for, for people and for the contamination check.
    """

    intro: str
    units: Callable[[int], Sequence[str]]
    question: str
    opening: str
    values: tuple[str, ...]
    hidden: str


@dataclasses.dataclass(frozen=True)
class RetrievalTask:
    """``draft(random generator's seed, depth, pools)``; depth is None where it has no place."""

    draft: Callable[[str, float | None, Pools], Draft]
    has_depth: bool


def _needle(seed: str, depth: float | None, pools: Pools) -> Draft:
    """One note in plain text."""
    return _notes(seed, depth, pools.sentences, num_others=0)


def _multi_key(seed: str, depth: float | None, pools: Pools) -> Draft:
    """One of several notes in plain text."""
    return _notes(seed, depth, pools.sentences, num_others=_SEVERAL - 1)


def _all_keys(seed: str, depth: float | None, pools: Pools) -> Draft:
    """One note among notes alone."""
    return _notes(seed, depth, pools.notes, num_others=0)


def _notes(seed: str, depth: float | None, pool: Pool, *, num_others: int) -> Draft:
    rng = Random(seed)
    assert depth is not None
    key, *others = new_words(rng, 1 + num_others, pool.names)
    value, *values = _numbers(rng, 1 + num_others)
    needle = note(key, value)
    needles = [(needle, depth)]
    needles += [(note(k, v), rng.random()) for k, v in zip(others, values, strict=True)]
    return Draft(
        intro=_NOTES,
        units=_between(seed, pool, needles),
        question=f"Question: What is the access code of {key}, according to the notes above?",
        opening=f"Answer: The access code of {key} is",
        values=(value,),
        hidden=needle,
    )


def _multi_value(seed: str, depth: float | None, pools: Pools) -> Draft:
    """Several notes with the same key."""
    rng = Random(seed)
    (key,), values = new_words(rng, 1), _numbers(rng, _SEVERAL)
    needles = [(note(key, value), rng.random()) for value in values]
    return Draft(
        intro=_NOTES,
        units=_between(seed, pools.sentences, needles),
        question=f"Question: What are all {_SEVERAL} access codes of {key}, according to the notes "
        "above?",
        opening=f"Answer: The {_SEVERAL} access codes of {key} are",
        values=tuple(values),
        hidden="".join(needle for needle, _ in needles),
    )


def _multi_query(seed: str, depth: float | None, pools: Pools) -> Draft:
    """Several notes, all of which are asked for."""
    rng = Random(seed)
    keys, values = new_words(rng, _SEVERAL), _numbers(rng, _SEVERAL)
    needles = [(note(k, v), rng.random()) for k, v in zip(keys, values, strict=True)]
    listed = f"{', '.join(keys[:-1])} and {keys[-1]}"
    return Draft(
        intro=_NOTES,
        units=_between(seed, pools.sentences, needles),
        question=f"Question: What are the access codes of {listed}, according to the notes above?",
        opening=f"Answer: The access codes of {listed} are",
        values=tuple(values),
        hidden="".join(needle for needle, _ in needles),
    )


def _variables(seed: str, depth: float | None, pools: Pools) -> Draft:
    """Assignments of which each copies one before it; a second chain has another value."""
    rng = Random(seed)
    names, values = new_words(rng, 2 * (1 + _HOPS)), _numbers(rng, 2)
    asked, other = names[: 1 + _HOPS], names[1 + _HOPS :]
    needles = _chain(rng, asked, values[0]) + _chain(rng, other, values[1])
    count = len(asked)
    return Draft(
        intro="The text below has assignments to variables in it. Remember them.\n\n",
        units=_between(seed, pools.sentences, needles),
        question=f"Question: {count} variables have the value {values[0]} in the end, directly or "
        "by way of other variables. Which are they?",
        opening=f"Answer: The {count} variables with the value {values[0]} are",
        values=tuple(asked),
        hidden="".join(needle for needle, _ in needles),
    )


def _chain(rng: Random, names: Sequence[str], value: str) -> list[tuple[str, float]]:
    sources = [value, *(f"VAR {name}" for name in names)]
    depths = sorted(rng.random() for _ in names)
    lines = [f"VAR {n} = {source}\n" for n, source in zip(names, sources, strict=False)]
    return [*zip(lines, depths, strict=True)]


def _common_words(seed: str, depth: float | None, pools: Pools) -> Draft:
    """A list of words of which ten come ten times as often as the others."""
    pool = pools.words
    common = Random(seed).sample(range(len(pool.pieces)), _COMMON)
    words = tuple(pool.pieces[n].strip() for n in common)

    def units(budget: int) -> list[str]:
        rng = Random(f"{seed} units")
        once = sum(pool.costs[n] for n in common)
        times = min(_COMMON_TIMES, budget // 2 // once)
        if times < _LEAST_COMMON_TIMES:
            raise TooShortError(once * 2 * _LEAST_COMMON_TIMES - budget)
        lines = [pool.pieces[n] for n in common] * times
        budget, rarer = budget - once * times, max(1, times // _TIMES_RARER)
        several = [*pool.take(rng, budget // rarer, without={*common})]
        used = {line for line, _ in several}
        lines += [line for line, _ in several] * rarer
        budget -= sum(cost for _, cost in several) * rarer
        without = {n for n, line in enumerate(pool.pieces) if line in used} | {*common}
        lines += [line for line, _ in pool.take(rng, budget, without=without)]
        rng.shuffle(lines)
        return lines

    return _most_frequent(words, units)


def _frequent_words(seed: str, depth: float | None, pools: Pools) -> Draft:
    """Words whose numbers follow Zipf's law; the first three are asked for."""
    pool = pools.words
    order = Random(seed).sample(range(len(pool.pieces)), len(pool.pieces))
    words = tuple(pool.pieces[n].strip() for n in order[:_FREQUENT])

    def units(budget: int) -> list[str]:
        rng = Random(f"{seed} units")
        times = _zipf_within(budget, [pool.costs[n] for n in order])
        if len(times) <= _FREQUENT or times[_FREQUENT - 1] <= times[_FREQUENT]:
            raise TooShortError(budget)
        lines = [
            pool.pieces[n] for n, count in zip(order, times, strict=False) for _ in range(count)
        ]
        spent = sum(pool.costs[n] * count for n, count in zip(order, times, strict=False))
        rest = pool.take(rng, budget - spent, without={*order[: len(times)]})
        most = max(Counter(line for line, _ in rest).values(), default=0)
        if most >= times[_FREQUENT - 1]:
            raise TooShortError(budget)
        lines += [line for line, _ in rest]
        rng.shuffle(lines)
        return lines

    return _most_frequent(words, units)


def _most_frequent(words: tuple[str, ...], units: Callable[[int], list[str]]) -> Draft:
    """Asks for them in a list of words."""
    return Draft(
        intro="Below is a list of words, one a line, in which some words come again.\n\n",
        units=units,
        question=f"Question: Which {len(words)} words come most often in the list above?",
        opening=f"Answer: The {len(words)} most frequent words are",
        values=words,
        hidden=" ".join(words),
    )


def _zipf_within(budget: int, costs: Sequence[int]) -> list[int]:
    """How often each rank comes: as often as the budget allows."""

    def times(total: int) -> list[int]:
        counts = []
        for rank in range(1, len(costs) + 1):
            count = round(total * rank**-_ALPHA)
            if not count:
                break
            counts.append(count)
        return counts

    low, high = 0, max(1, budget)
    while high - low > 1:
        middle = (low + high) // 2
        spent = sum(c * n for c, n in zip(costs, times(middle), strict=False))
        low, high = (middle, high) if spent <= budget else (low, middle)
    return times(low)


def _code_constant(seed: str, depth: float | None, pools: Pools) -> Draft:
    """The number that one of many functions returns."""
    rng, pool = Random(seed), pools.functions
    assert depth is not None
    (name,), value = new_words(rng, 1, pool.names), number(rng)
    needle = constant_function(name, value)
    return Draft(
        intro=_MODULE,
        units=_between(seed, pool, [(needle, depth)]),
        question=f"Question: Which number does get_{name}() return?",
        opening=f"Answer: get_{name}() returns",
        values=(value,),
        hidden=needle,
    )


def _code_chain(seed: str, depth: float | None, pools: Pools) -> Draft:
    """The number that a function returns by way of others, in any order; another chain is there."""
    rng, pool = Random(seed), pools.functions
    names, values = new_words(rng, 2 * (1 + _HOPS), pool.names), _numbers(rng, 2)
    needles = []
    for chain, value in zip((names[: 1 + _HOPS], names[1 + _HOPS :]), values, strict=True):
        sources = [value, *(f"get_{name}()" for name in chain)]
        needles += [
            (constant_function(n, source), rng.random())
            for n, source in zip(chain, sources, strict=False)
        ]
    asked = names[_HOPS]
    return Draft(
        intro=_MODULE,
        units=_between(seed, pool, needles),
        question=f"Question: Which number does get_{asked}() return?",
        opening=f"Answer: get_{asked}() returns",
        values=(values[0],),
        hidden="".join(needle for needle, _ in needles),
    )


TASKS = {
    "needle": RetrievalTask(_needle, has_depth=True),
    "multi_key": RetrievalTask(_multi_key, has_depth=True),
    "all_keys": RetrievalTask(_all_keys, has_depth=True),
    "multi_value": RetrievalTask(_multi_value, has_depth=False),
    "multi_query": RetrievalTask(_multi_query, has_depth=False),
    "variables": RetrievalTask(_variables, has_depth=False),
    "common_words": RetrievalTask(_common_words, has_depth=False),
    "frequent_words": RetrievalTask(_frequent_words, has_depth=False),
    "code_constant": RetrievalTask(_code_constant, has_depth=True),
    "code_chain": RetrievalTask(_code_chain, has_depth=False),
}


def _between(
    seed: str, pool: Pool, needles: Sequence[tuple[str, float]]
) -> Callable[[int], list[str]]:
    def units(budget: int, costs: Sequence[int]) -> list[str]:
        left = budget - sum(costs)
        if left <= 0:
            raise TooShortError(1 - left)
        return with_needles(pool.take(Random(f"{seed} units"), left), needles)

    costs = [len(ids) for ids in pool.tokenizer.encode_batch(text for text, _ in needles)]
    return lambda budget: units(budget, costs)


def _numbers(rng: Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[number(rng)] = None
    return [*found]
