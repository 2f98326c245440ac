"""Makes an answer call a tool: a constraint under which a call's opening comes first."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cwm_jax.data.chat import THINK_CLOSING
from cwm_jax.serve.chat.tools import opening
from cwm_jax.tokenizer import Tokenizer

_WINDOW_TOKENS = (
    len(THINK_CLOSING) + 1
)  # in the last so many the marker is, if a token completes it


class ForcedCall:
    """Once the reasoning, if any, is over, only the openings of calls of ``names`` are allowed.

    It remembers how far it has looked: one is of one request.
    """

    def __init__(self, tokenizer: Tokenizer, names: Sequence[str], *, is_reasoning: bool) -> None:
        self._tokenizer, self._names = tokenizer, names
        self._num_seen = 0
        self._start: int | None = None
        self._openings: list[list[int]] = []
        if not is_reasoning:
            self._begin(0, "")

    def __call__(self, generated: Sequence[int]) -> Collection[int] | None:
        while self._start is None and self._num_seen < len(generated):
            self._num_seen += 1
            window = generated[max(0, self._num_seen - _WINDOW_TOKENS) : self._num_seen]
            _, marker, after = self._tokenizer.decode(window).partition(THINK_CLOSING)
            if marker:
                self._begin(self._num_seen, after)
        if self._start is None:
            return None
        begun = [*generated[self._start :]]
        allowed = {o[len(begun)] for o in self._openings if o[: len(begun)] == begun != o}
        return allowed or None  # the opening is whole

    def _begin(self, start: int, before: str) -> None:
        """``before``: what the token that ended the reasoning has after the marker."""
        line_end = "" if start == 0 or before.endswith("\n") else "\n"
        self._start = start
        self._openings = [self._tokenizer.encode(line_end + opening(name)) for name in self._names]
