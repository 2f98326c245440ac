"""Messages as tokens, cut to so many, with what is left of the episode's budget."""

from __future__ import annotations

from cwm_jax.data.chat import Message, encode_header
from cwm_jax.rl.envs.answers import CUT
from cwm_jax.rl.envs.swe.prompts import budget_block, output_blocks
from cwm_jax.tokenizer import END_OF_TURN, Tokenizer

_MOST_TRIES = 4


def with_budget(
    tokenizer: Tokenizer, role: str, text: str, *, turns: int, room: int, max_tokens: int
) -> tuple[list[int], int]:
    """(a message with what is left of turns and tokens, the tokens that are left after it).

    Args:
        tokenizer: of the policy.
        role: a tool, whose output the text is, or the user.
        text: loses its end where the message would have more tokens than it may.
        turns: that are left.
        room: tokens that are left before the message.
        max_tokens: of the message, header and end included.
    """
    # The number says how many tokens are left after its own, and may move them: where no number is
    # right, one is stated that is too small.
    stated = room
    for number in range(_MOST_TRIES):
        said = _said(tokenizer, role, text, budget=budget_block(turns, stated), limit=max_tokens)
        left = room - len(said)
        if left == stated or (number and stated < left):
            return said, left
        stated = left
    return said, left


def _said(tokenizer: Tokenizer, role: str, text: str, *, budget: str, limit: int) -> list[int]:
    before, after = output_blocks() if role.startswith("tool:") else ("", "")
    empty = Message(role, "")
    header, end = encode_header(tokenizer, empty), tokenizer.special_tokens[END_OF_TURN]
    beginning = tokenizer.encode(before + text)
    if len(header) + len(beginning) + 1 < limit:
        whole = [*header, *tokenizer.encode(before + text + after + budget), end]
        if len(whole) <= limit:
            return whole
    rest = [*tokenizer.encode(CUT), *tokenizer.encode(after + budget), end]
    num_kept = max(0, limit - len(header) - len(rest))
    return [*header, *beginning[:num_kept], *rest]
