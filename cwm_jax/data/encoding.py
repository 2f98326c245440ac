"""The tokens of documents, and the marks of those that are no target of the loss."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np

from cwm_jax.config import SourceConfig
from cwm_jax.data.chat import Message, encode_body, encode_header
from cwm_jax.data.dialogs import parse_dialog
from cwm_jax.data.shards import (
    CONTEXT_MARK,
    MASKED_MARK,
    MESSAGE_MARK,
    OBSERVATION_MARK,
    TOKEN_DTYPE,
    TURN_MARK,
    TextTokenizer,
)
from cwm_jax.data.sources import Document
from cwm_jax.tokenizer import END_OF_TURN, THINKING_END, THINKING_START, Tokenizer


def encode(
    kept: list[Document], source: SourceConfig, tokenizer: TextTokenizer
) -> Iterator[np.ndarray]:
    """The tokens to be stored of each document, ``[n]`` uint32; none of them is empty."""
    if source.is_of_dialogs:
        return _dialogs_tokens(kept, tokenizer, source)
    return (_episode_tokens if source.is_of_episodes else _text_tokens)(kept, tokenizer)


def text_of(document: Document) -> str | None:
    """None where it is not UTF-8."""
    try:
        return document.data.decode()
    except UnicodeDecodeError:
        return None


def dialog_tokens(
    tokenizer: Tokenizer, messages: Sequence[Message], *, reasoning: str = "text"
) -> np.ndarray:
    """``[n]`` uint32 tokens of a dialog with marks: no target of the loss, a message, a turn.

    Args:
        tokenizer: of the model.
        messages: as from ``parse_dialog``.
        reasoning: how an assistant's is written: ``text``, between ``<think>`` and ``</think>``, or
            ``tokens``, between the two reserved ones. The one that starts it is never a target:
            whoever wants reasoning writes it (report: so it is off by default).
    """
    special = tokenizer.special_tokens
    parts = [np.array([tokenizer.bos_id], TOKEN_DTYPE) | MASKED_MARK]
    for before, message in zip([None, *messages], messages, strict=False):
        if reasoning == "tokens":
            message = _with_reserved_tokens(message)
        body = [*encode_body(tokenizer, message), special[END_OF_TURN]]
        header = np.array(encode_header(tokenizer, message), TOKEN_DTYPE) | MASKED_MARK
        header[0] |= MESSAGE_MARK
        if _begins_turn(message, before):
            header[0] |= TURN_MARK
        parts.append(header)
        tokens = np.array(body, TOKEN_DTYPE)
        if message.is_assistant:
            tokens[tokens == special[THINKING_START]] |= MASKED_MARK
        elif message.is_tool:
            tokens |= OBSERVATION_MARK
        else:
            tokens |= MASKED_MARK
        parts.append(tokens)
    return np.concatenate(parts)


def _text_tokens(kept: list[Document], tokenizer: TextTokenizer) -> Iterator[np.ndarray]:
    """Each framed by ``bos`` and ``eos``."""
    texts = [text_of(document) for document in kept]
    encoded = iter(tokenizer.encode_batch([text for text in texts if text is not None]))
    for document, text in zip(kept, texts, strict=True):
        ids = tokenizer.encode_bytes(document.data) if text is None else next(encoded)
        yield np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], TOKEN_DTYPE)


def _episode_tokens(kept: list[Document], tokenizer: TextTokenizer) -> Iterator[np.ndarray]:
    """Each as it is: an episode has its own ``bos``, and ``eos`` only if it is whole."""
    texts = [t for document in kept for t in (document.context or "", document.data.decode())]
    encoded = iter(tokenizer.encode_with_special_tokens_batch(texts))
    for context, frames in zip(encoded, encoded, strict=True):
        tokens = np.array([*context, *frames], TOKEN_DTYPE)
        tokens[: len(context)] |= CONTEXT_MARK
        yield tokens


def _dialogs_tokens(
    kept: list[Document], tokenizer: TextTokenizer, source: SourceConfig
) -> Iterator[np.ndarray]:
    assert isinstance(tokenizer, Tokenizer)  # the only one that knows a chat's tokens
    for document in kept:
        messages = parse_dialog(json.loads(document.data))
        yield dialog_tokens(tokenizer, messages, reasoning=source.reasoning)


def _begins_turn(message: Message, before: Message | None) -> bool:
    after_tool = before is not None and before.is_tool
    return message.header == "user" or (message.is_assistant and after_tool)


def _with_reserved_tokens(message: Message) -> Message:
    if not message.reasoning:
        return message
    text = f"{THINKING_START}{message.reasoning}{THINKING_END}{message.content or ''}"
    return Message(message.role, text)
