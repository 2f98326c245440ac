"""What an evaluation asks of a model; without JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cwm_jax.data.chat import (
    THINK_CLOSING,
    Message,
    ReasoningSplitter,
    encode_dialog,
    with_reasoning_prompt,
)
from cwm_jax.evals.problem import Answer, Forced, Likelihood, Prompt
from cwm_jax.tokenizer import Tokenizer


class PromptTooLongError(ValueError):
    """A prompt leaves no room for an answer: the model has failed at it, as other models may not.

    It is counted apart from wrong answers.
    """


class ModelFailure(RuntimeError):  # noqa: N818
    """The model answers nothing more: a run ends, and is resumed when there is one again."""


class Model(Protocol):
    """Answers prompts of many threads at a time."""

    @property
    def name(self) -> str:
        """For people and reports."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None where it is not known."""
        ...

    @property
    def max_length(self) -> int | None:
        """Tokens of a prompt and its answer; None where it is not known."""
        ...

    @property
    def gives_likelihoods(self) -> bool:
        """Whether it can be asked for `likelihood`."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """What a run that is resumed must find again, as JSON can hold it."""
        ...

    def notes(self) -> Sequence[str]:
        """What readers of a report should know, such as settings that were not taken."""
        ...

    def answer(self, prompt: Prompt, *, temperature: float, top_p: float, seed: int) -> Answer:
        """Continues a prompt.

        Raises:
            PromptTooLongError: there is no room for one token.
            ModelFailure: it cannot answer this, nor probably anything.
        """
        ...

    def likelihood(self, forced: Forced) -> Likelihood:
        """How likely a given continuation is.

        Raises:
            PromptTooLongError: prompt and continuation are longer than the model reads.
            ModelFailure: it cannot tell.
        """
        ...

    def close(self) -> None:
        """Ends what it holds; calls that wait for an answer may raise ModelFailure."""
        ...


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a prompt as the instruction-tuned, or the base model reads them."""
    if prompt.tokens is not None:
        return [*prompt.tokens]
    if prompt.text is not None:
        return tokenizer.encode_with_special_tokens(prompt.text)
    assert prompt.messages is not None
    messages, think = list(prompt.messages), prompt.think and not is_begun(prompt)
    return encode_dialog(
        tokenizer, with_reasoning_prompt(messages) if think else messages, think=think
    )


def is_begun(prompt: Prompt) -> bool:
    """Whether the last message is the beginning of the answer."""
    return bool(prompt.messages) and prompt.messages[-1].is_assistant


def begins_in_reasoning(prompt: Prompt) -> bool:
    """Whether an answer to these messages begins inside its reasoning."""
    if not prompt.messages:
        return False
    if not is_begun(prompt):
        return prompt.think
    begun: Message = prompt.messages[-1]
    return begun.text.lstrip().startswith("<think>") and THINK_CLOSING not in begun.text


def split_stops(stop: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], list[str]]:
    """The ids that end an answer, the model's own first, and the strings that do."""
    special = tokenizer.special_tokens
    ids = [*tokenizer.stop_ids, *(special[name] for name in stop if name in special)]
    return tuple(dict.fromkeys(ids)), [text for text in stop if text not in special]


def split_reasoning(text: str, *, is_reasoning: bool) -> tuple[str, str]:
    """``(reasoning, answer)``; an answer that is cut before ``</think>`` is all reasoning."""
    splitter = ReasoningSplitter(is_reasoning=is_reasoning)
    parts = [splitter.feed(text), splitter.finish()]
    reasoning, answer = ("".join(part) for part in zip(*parts, strict=True))
    return reasoning, answer


def text_of_ids(
    ids: Sequence[int], stop_ids: Sequence[int], stop: Sequence[str], tokenizer: Tokenizer
) -> str:
    """The text of generated tokens, as the engine gives it: up to what ended it."""
    known = [i for i in ids if i < tokenizer.vocab_size]  # a model may have more, without text
    if known and known[-1] in stop_ids:
        known = known[:-1]
    text = tokenizer.decode(known)
    places = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(places)] if places else text
