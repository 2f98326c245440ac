"""Which fault a trial tries: kind by the report's shares, then repository, function, mutation.

The draw of a trial is seeded by its number and takes out what was drawn, so the order of all draws
is a function of the seed alone, whoever tries them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from cwm_jax.rl.envs.mutations import SHARES

Place = TypeVar("Place")


class Draws(Generic[Place]):
    """Draws without replacement; iterate for (number, kind, place, index) until none is left.

    Args:
        places: by repository, where functions are; in a fixed order.
        num_mutations: of a kind at a place; asked once for each pair that is drawn.
        shares: weights by kind; a kind of which nothing is left gives its share to the others.
        seed: of the run.

    Raises:
        ValueError: a share is below 0, or none is above.
    """

    def __init__(
        self,
        places: Mapping[str, Sequence[Place]],
        num_mutations: Callable[[str, Place], int],
        *,
        shares: Mapping[str, int] = SHARES,
        seed: int = 0,
    ) -> None:
        if min(shares.values(), default=0) < 0 or not sum(shares.values()):
            raise ValueError(
                f"shares are {dict(shares)}; expected weights of at least 0, one above: give others"
            )
        self._shares, self._seed, self._num_mutations = shares, seed, num_mutations
        # kind -> repository -> positions of places that may have something left
        self._left = {
            kind: {name: list(range(len(found))) for name, found in places.items() if found}
            for kind, share in shares.items()
            if share
        }
        self._places = places
        self._indices: dict[tuple[str, str, int], list[int]] = {}

    def __iter__(self) -> Iterator[tuple[int, str, Place, int]]:
        number = 0
        while (drawn := self._draw(random.Random(f"trial/{self._seed}/{number}"))) is not None:
            yield number, *drawn
            number += 1

    def _draw(self, rng: random.Random) -> tuple[str, Place, int] | None:
        while kinds := [kind for kind, left in self._left.items() if left]:
            (kind,) = rng.choices(kinds, [self._shares[kind] for kind in kinds])
            name = rng.choice(list(self._left[kind]))
            position = rng.choice(self._left[kind][name])
            indices = self._mutations(kind, name, position)
            if indices:
                index = indices.pop(rng.randrange(len(indices)))
                return kind, self._places[name][position], index
            self._remove(kind, name, position)
        return None

    def _mutations(self, kind: str, name: str, position: int) -> list[int]:
        key = (kind, name, position)
        if key not in self._indices:
            number = self._num_mutations(kind, self._places[name][position])
            self._indices[key] = list(range(number))
        return self._indices[key]

    def _remove(self, kind: str, name: str, position: int) -> None:
        left = self._left[kind]
        left[name].remove(position)
        if not left[name]:
            del left[name]
