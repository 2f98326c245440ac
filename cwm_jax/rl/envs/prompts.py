"""A problem as the beginning of an episode."""

from __future__ import annotations

from cwm_jax.data.chat import REASONING_SYSTEM_PROMPT, THINK_OPENING, Message, encode_message
from cwm_jax.rl.envs.answers import encode_cut
from cwm_jax.tokenizer import Tokenizer


def encode_problem(
    tokenizer: Tokenizer, question: str, *, max_tokens: int, think: bool, system_prompt: bool
) -> list[int]:
    """The dialog up to the assistant's turn.

    Args:
        tokenizer: of the policy.
        question: of the user.
        max_tokens: of the user's message; what it says at last, the form of the answer, stays.
        think: open the reasoning.
        system_prompt: begin with the one that asks for reasoning.
    """
    tokens = [tokenizer.bos_id]
    if system_prompt:
        tokens += encode_message(tokenizer, Message("system", REASONING_SYSTEM_PROMPT))
    tokens += encode_cut(tokenizer, Message("user", question), max_tokens, keep="end")
    return tokens + encode_opening(tokenizer, think=think)


def encode_opening(tokenizer: Tokenizer, *, think: bool) -> list[int]:
    """The beginning of the assistant's turn."""
    opening = Message("assistant", THINK_OPENING if think else "")
    return encode_message(tokenizer, opening, is_open=True)
