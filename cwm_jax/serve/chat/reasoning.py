"""Splits an answer that begins inside ``<think>`` into reasoning and content, as it comes."""

from __future__ import annotations

from cwm_jax.data.chat import THINK_CLOSING


class ReasoningSplitter:
    """Fed with text, gives ``(reasoning, content)``; what may be the marker is held back.

    The line ends beside the first ``</think>`` belong to the format and to neither part, one on
    each side. An answer without the marker is all reasoning.
    """

    def __init__(self, *, is_reasoning: bool) -> None:
        """``is_reasoning``: the prompt ends inside the reasoning; else all is content."""
        self.is_reasoning = is_reasoning
        self._held = ""
        self._skips_line_end = False

    def feed(self, text: str) -> tuple[str, str]:
        if not self.is_reasoning:
            return "", self._content(text)
        self._held += text
        before, marker, after = self._held.partition(THINK_CLOSING)
        if marker:
            self.is_reasoning, self._skips_line_end, self._held = False, True, ""
            return before.removesuffix("\n"), self._content(after)
        certain = len(self._held) - _num_uncertain(self._held)
        reasoning, self._held = self._held[:certain], self._held[certain:]
        return reasoning, ""

    def finish(self) -> tuple[str, str]:
        """What was held back and turned out to be no marker."""
        held, self._held = self._held, ""
        return held, ""

    def _content(self, text: str) -> str:
        if self._skips_line_end and text:
            self._skips_line_end = False
            return text.removeprefix("\n")
        return text


def _num_uncertain(text: str) -> int:
    """Characters at the end with which the marker, or the line end before it, may begin."""
    marker = f"\n{THINK_CLOSING}"
    longest = min(len(marker) - 1, len(text))
    lengths = range(longest, 0, -1)
    return next(
        (n for n in lengths if marker.startswith(text[-n:]) or THINK_CLOSING.startswith(text[-n:])),
        0,
    )
