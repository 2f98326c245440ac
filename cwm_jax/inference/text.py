"""Text of tokens as they come, and the strings that end it."""

from __future__ import annotations

import codecs

from cwm_jax.tokenizer import Tokenizer


class TextStream:
    """Gives out the text of a request's tokens as soon as it is certain; none without tokenizer.

    Held back are bytes that begin a character, and what may turn out to begin a stop string.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: tuple[str, ...] = ()):
        self._tokenizer = tokenizer
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        self.stopped = False

    def push(self, token_id: int) -> bool:
        """Takes the next token; whether a stop string is now complete."""
        # a model may have more ids, to fill up its shape; they have no text
        if self._tokenizer is not None and token_id < self._tokenizer.vocab_size:
            self._pending += self._decoder.decode(self._tokenizer.decode_bytes([token_id]))
        found = [place for stop in self._stop if (place := self._pending.find(stop)) >= 0]
        if found:
            self._pending, self.stopped = self._pending[: min(found)], True
        return self.stopped

    def take(self) -> str:
        """The text that has become certain since the last call."""
        kept = 0 if self.stopped else self._num_uncertain()
        cut = len(self._pending) - kept
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text

    def finish(self) -> str:
        """The rest: no token will come."""
        if not self.stopped:
            self._pending += self._decoder.decode(b"", final=True)
        text, self._pending = self._pending, ""
        return text

    def _num_uncertain(self) -> int:
        """Characters at the end that begin a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for size in range(min(longest, len(self._pending)), 0, -1):
            if any(stop.startswith(self._pending[-size:]) for stop in self._stop):
                return size
        return 0
