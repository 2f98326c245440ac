"""Dialogs as the tokens that the instruction-tuned model was trained on, and its answers' parts.

Text of users never becomes a special token, which a rendered template cannot promise; everywhere
else the ids are those of ``chat_template.jinja`` through ``AutoTokenizer.apply_chat_template``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from cwm_jax.tokenizer import (
    END_HEADER,
    END_OF_TURN,
    START_HEADER,
    THINKING_END,
    THINKING_START,
    Tokenizer,
)

THINK_OPENING = "<think>\n"  # ordinary tokens
THINK_CLOSING = "</think>"
# Part of the trained interface. Source: Meta's model card and Hugging Face's test of the model.
REASONING_SYSTEM_PROMPT = (
    "You are a helpful AI assistant. You always reason before responding, using the following "
    "format:\n\n<think>\nyour internal reasoning\n</think>\nyour external response"
)

_THINKING_TOKENS = re.compile(f"({re.escape(THINKING_START)}|{re.escape(THINKING_END)})")
_TOOL = "tool:"


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: ``system``, ``user``, ``assistant``, or ``tool: NAME`` for a tool's result.
        content: its text; None is an empty one.
        reasoning: of an assistant, before its content.
    """

    role: str
    content: str | None
    reasoning: str | None = None

    def __post_init__(self) -> None:
        known = self.role.strip() in ("system", "user", "assistant") or self.is_tool
        if not known:
            raise ValueError(
                f"message role is {self.role!r}; expected system, user, assistant or 'tool: NAME'"
            )

    @property
    def is_tool(self) -> bool:
        role = self.role.strip()
        return role.startswith(_TOOL) and bool(role.removeprefix(_TOOL).strip())

    @property
    def is_assistant(self) -> bool:
        return self.role.strip() == "assistant"

    @property
    def header(self) -> str:
        role = self.role.strip()
        return f"{_TOOL} {role.removeprefix(_TOOL).strip()}" if self.is_tool else role

    @property
    def text(self) -> str:
        """Reasoning and content."""
        content = self.content or ""
        if not (self.is_assistant and self.reasoning):
            return content
        return f"{THINK_OPENING}{self.reasoning}\n{THINK_CLOSING}\n{content}"

    def body(self, *, is_open: bool) -> str:
        """Its text as it is encoded: verbatim from tools and where it is to be continued."""
        return self.text if is_open or self.is_tool else self.text.strip()


def encode_dialog(
    tokenizer: Tokenizer, messages: Sequence[Message], *, think: bool = False
) -> list[int]:
    """The prompt after which an assistant's answer comes.

    A last message from the assistant is the beginning of that answer.

    Args:
        tokenizer: of the model.
        messages: the turns so far.
        think: begin the answer with the opening of its reasoning.

    Raises:
        ValueError: ``think`` where the answer has begun already.
    """
    is_begun = bool(messages) and messages[-1].is_assistant
    if think and is_begun:
        raise ValueError(
            "think is set and the last message is from the assistant; expected one of them: the "
            f"answer has begun: let that message begin with {THINK_OPENING!r} instead"
        )
    ids = [tokenizer.bos_id]
    for index, message in enumerate(messages):
        is_open = is_begun and index == len(messages) - 1
        ids += encode_message(tokenizer, message, is_open=is_open)
    if not is_begun:
        opening = Message("assistant", THINK_OPENING if think else "")
        ids += encode_message(tokenizer, opening, is_open=True)
    return ids


def encode_message(tokenizer: Tokenizer, message: Message, *, is_open: bool = False) -> list[int]:
    """Header, body and, unless the message ``is_open``, the end of turn."""
    ids = encode_header(tokenizer, message) + encode_body(tokenizer, message, is_open=is_open)
    return ids if is_open else [*ids, tokenizer.special_tokens[END_OF_TURN]]


def encode_header(tokenizer: Tokenizer, message: Message) -> list[int]:
    """Who speaks, up to the first token of what is said."""
    special = tokenizer.special_tokens
    ids = [special[START_HEADER], *tokenizer.encode(message.header), special[END_HEADER]]
    return ids + tokenizer.encode("\n\n")


def encode_body(tokenizer: Tokenizer, message: Message, *, is_open: bool = False) -> list[int]:
    """What is said, without the end of turn."""
    body = message.body(is_open=is_open)
    return _encode_answer(tokenizer, body) if message.is_assistant else tokenizer.encode(body)


def with_reasoning_prompt(messages: Iterable[Message]) -> list[Message]:
    """The dialog; one without a system message gets the one that asks for reasoning."""
    messages = list(messages)
    if any(message.role.strip() == "system" for message in messages):
        return messages
    return [Message("system", REASONING_SYSTEM_PROMPT), *messages]


def without_previous_reasoning(messages: Sequence[Message]) -> list[Message]:
    """The dialog; of the assistant's turns before the last message only the answers are kept."""
    return [*map(_without_reasoning, messages[:-1]), *messages[-1:]]


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


def _without_reasoning(message: Message) -> Message:
    text = message.text
    has_reasoning = text.lstrip().startswith("<think>") and THINK_CLOSING in text
    if not (message.is_assistant and has_reasoning):
        return message
    return Message(message.role, text.split(THINK_CLOSING, 1)[1])


def _encode_answer(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of an assistant's text, the only one in which the two thinking tokens are tokens."""
    ids = []
    for index, part in enumerate(_THINKING_TOKENS.split(text)):
        ids += [tokenizer.special_tokens[part]] if index % 2 else tokenizer.encode(part)
    return ids


def _num_uncertain(text: str) -> int:
    """Characters at the end with which the marker, or the line end before it, may begin."""
    marker = f"\n{THINK_CLOSING}"
    longest = min(len(marker) - 1, len(text))
    lengths = range(longest, 0, -1)
    return next(
        (n for n in lengths if marker.startswith(text[-n:]) or THINK_CLOSING.startswith(text[-n:])),
        0,
    )
