"""Restrictions of what may be generated; each is a ``Constraint``. Without JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence


@dataclasses.dataclass(frozen=True)
class ChoicesAfter:
    """After each token ``after`` comes one of some sequences, then one of the tokens ``then``.

    With ``after`` the ``<|action_sep|>`` and the program's lines as choices, the actions of a
    predicted trace are lines of its program.
    """

    after: int
    choices: tuple[tuple[int, ...], ...]
    """Not empty, and none is empty."""
    then: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.choices or not all(self.choices) or not self.then:
            raise ValueError(
                f"ChoicesAfter got {len(self.choices)} choices, the shortest of "
                f"{min(map(len, self.choices), default=0)} tokens, and {len(self.then)} tokens to "
                "follow; expected at least one of each: leave out the constraint to allow any"
            )

    def __call__(self, generated: Sequence[int]) -> Collection[int] | None:
        begun = self._begun(generated)
        if begun is None:
            return None
        allowed = {choice[len(begun)] for choice in self.choices if _continues(choice, begun)}
        if begun in self.choices:
            allowed |= {*self.then}
        return allowed or None  # a choice and what follows it are past

    def _begun(self, generated: Sequence[int]) -> tuple[int, ...] | None:
        """What came after the last ``after``, as long as it can be the beginning of a choice."""
        longest = max(map(len, self.choices))
        for length in range(min(longest, len(generated) - 1) + 1):
            if length < len(generated) and generated[len(generated) - 1 - length] == self.after:
                return tuple(generated[len(generated) - length :])
        return None


def _continues(choice: tuple[int, ...], begun: tuple[int, ...]) -> bool:
    return len(choice) > len(begun) and choice[: len(begun)] == begun
