"""Pieces of text put together to a given number of tokens."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from random import Random

from cwm_jax.evals.generated.filler import function, new_words, note, number, sentence
from cwm_jax.tokenizer import Tokenizer

_SENTENCES = 4096  # assumed: after so many a haystack repeats itself
_TOKENS_FOR_EACH_RESERVED = 32_768  # measured: a cut costs one or two, 400,000 characters apart
# Assumed, from below: pools are so large that nothing else comes twice.
_TOKENS_OF_A_SENTENCE, _TOKENS_OF_A_NOTE, _TOKENS_OF_A_FUNCTION, _TOKENS_OF_A_WORD = 5, 12, 16, 2
_MORE = 200  # pieces than that, so that lengths can be met


class TooShortError(ValueError):
    """A haystack that cannot hold what is to be hidden in it; ``lacking`` tokens are missing."""

    def __init__(self, lacking: int) -> None:
        super().__init__(f"{lacking} tokens lack")
        self.lacking = lacking


class Pool:
    """Pieces of text with their tokens.

    Args:
        pieces: distinct; each ends with a line end and begins otherwise.
        tokenizer: of the model.
        names: that they define, and that nothing else may have.
    """

    def __init__(
        self, pieces: list[str], tokenizer: Tokenizer, names: Collection[str] = ()
    ) -> None:
        self.pieces, self.tokenizer, self.names = pieces, tokenizer, names
        self.costs = [len(ids) for ids in tokenizer.encode_batch(pieces)]
        self._end = 3 * max(self.costs)  # what is left then is met exactly, if it can be
        self._ways = _ways(sorted({*self.costs}), self._end)

    def take(
        self, rng: Random, budget: int, *, without: Collection[int] = ()
    ) -> list[tuple[str, int]]:
        """Pieces with their tokens, at most ``budget`` and as near to it as they can come.

        None comes twice before all have come, but for the last few.

        Args:
            rng: makes their order.
            budget: tokens.
            without: numbers of pieces that are not taken.
        """
        order = rng.sample(range(len(self.pieces)), len(self.pieces))
        supply = itertools.cycle(n for n in order if n not in without)
        taken: list[int] = []
        while budget > self._end:
            taken.append(next(supply))
            budget -= self.costs[taken[-1]]
        taken += self._last(budget, supply)
        return [(self.pieces[n], self.costs[n]) for n in taken]

    def _last(self, budget: int, supply: Iterator[int]) -> Iterator[int]:
        """Of the largest sum within the budget that is one of costs."""
        budget = next((b for b in range(budget, 0, -1) if self._ways[b]), 0)
        for n in itertools.islice(supply, 4 * len(self.pieces)):
            if budget and self.costs[n] in self._ways[budget]:
                yield n
                budget -= self.costs[n]
            if not budget:
                return


class Pools:
    """What prompts of one length are made of; each pool is made when it is first needed.

    Args:
        tokenizer: of the model.
        seed: of the set.
        length: tokens of the prompts.
        text: sentences or lines to use instead of made ones.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, seed: int, length: int, text: list[str] | None = None
    ) -> None:
        self.tokenizer, self._seed, self._length, self._text = tokenizer, seed, length, text

    @functools.cached_property
    def sentences(self) -> Pool:
        rng = Random(f"{self._seed} sentences")
        count = min(_SENTENCES, self._length // _TOKENS_OF_A_SENTENCE + _MORE)
        made = self._text or [*dict.fromkeys(sentence(rng) for _ in range(count))]
        return Pool(made, self.tokenizer)

    @functools.cached_property
    def notes(self) -> Pool:
        """Of the form of the one that is asked for."""
        rng = Random(f"{self._seed} notes")
        keys = new_words(rng, self._length // _TOKENS_OF_A_NOTE + _MORE)
        return Pool([note(key, number(rng)) for key in keys], self.tokenizer, {*keys})

    @functools.cached_property
    def functions(self) -> Pool:
        rng = Random(f"{self._seed} functions")
        names = new_words(rng, self._length // _TOKENS_OF_A_FUNCTION + _MORE)
        return Pool([function(rng, name) for name in names], self.tokenizer, {*names})

    @functools.cached_property
    def words(self) -> Pool:
        rng = Random(f"{self._seed} words")
        count = self._length // _TOKENS_OF_A_WORD // 3 + _MORE  # most come three times
        return Pool([f"{made}\n" for made in new_words(rng, count)], self.tokenizer)


def with_needles(
    filler: Sequence[tuple[str, int]], needles: Sequence[tuple[str, float]]
) -> list[str]:
    """The filler's pieces with the needles between them.

    Args:
        filler: pieces with their tokens.
        needles: each with its depth: the share of the filler's tokens before it, 0 to 1. Those of
            equal places keep their order.
    """
    ends = [*itertools.accumulate((cost for _, cost in filler), initial=0)]
    by_place: dict[int, list[str]] = {}
    for needle, depth in needles:
        wanted = depth * ends[-1]
        place = min(range(len(ends)), key=lambda i: abs(ends[i] - wanted))
        by_place.setdefault(place, []).append(needle)
    pieces: list[str] = []
    for place in range(len(ends)):
        pieces += by_place.get(place, [])
        pieces += [filler[place][0]] if place < len(filler) else []
    return pieces


def fitted(
    length: int,
    *,
    fixed: int,
    units: Callable[[int], Sequence[str]],
    count: Callable[[Sequence[str]], int],
) -> Sequence[str]:
    """Units with which a prompt has ``length`` tokens, or less by at most 1 %.

    Args:
        length: tokens of the prompt.
        fixed: of the prompt without units.
        units: makes them to a number of tokens.
        count: tokens of the prompt with these units.

    Raises:
        TooShortError: ``length`` is too small for what must be there.
        ValueError: the pieces of text are too long to come that near.
    """
    # The tokens of parts add up, but where the tokenizer cuts very long text: the reserve covers
    # that, and a prompt is encoded once.
    budget, over = length - fixed, length // _TOKENS_FOR_EACH_RESERVED
    for _ in range(5):
        budget -= over
        made = units(budget)
        over = count(made) - length
        if 0 <= -over <= length // 100:
            return made
    raise ValueError(
        f"a prompt of {length} tokens could not be made, only one of {length + over}: the pieces "
        "of text are too long for it; give shorter lines, or a greater length"
    )


def _ways(costs: Sequence[int], most: int) -> list[set[int]]:
    """For each sum, the costs that it can begin with; empty where no costs make it up."""
    ways: list[set[int]] = [{0}] + [set() for _ in range(most)]
    for total in range(1, most + 1):
        ways[total] = {cost for cost in costs if cost <= total and ways[total - cost]}
    return ways
