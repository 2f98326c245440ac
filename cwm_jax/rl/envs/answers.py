"""What an answer consists of: reasoning, one block of code or one boxed answer, calls of tools.

Whatever is there twice, or is not closed, is no answer: a policy must not choose afterwards.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from cwm_jax.data.chat import THINK_CLOSING, THINK_OPENING, Message, encode_body, encode_header
from cwm_jax.tokenizer import END_OF_TURN, Tokenizer

NOT_FINISHED = "not finished"
_THINK = THINK_OPENING.strip()
_FENCE = "```"
_PYTHON = ("python", "py")
_BOXED = re.compile(r"\\boxed(?![a-zA-Z])")
_CALL, _CALL_END = "<tool: ", "</tool>"
CUT = "[...]"  # stands where text was cut. Source: Meta's truncation


class NoAnswerError(ValueError):
    """The policy gave none; the text says why, in the words of ``Step.info["reason"]``."""


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A tool that the policy wants to use."""

    name: str
    content: str


def answer_text(action: Sequence[int], tokenizer: Tokenizer, *, think: bool) -> str:
    """What follows the reasoning, stripped.

    Args:
        action: a whole turn, its end included.
        tokenizer: of the policy.
        think: its prompt opened the reasoning, which it closes exactly once. Without it, whatever
            opens or closes a reasoning is refused.

    Raises:
        NoAnswerError: if the turn was cut, or its tags are not as they should be.
    """
    if not action or action[-1] not in tokenizer.stop_ids:
        raise NoAnswerError(NOT_FINISHED)
    text = tokenizer.decode(action[:-1])
    count = text.count(THINK_CLOSING)
    if count != think:
        raise NoAnswerError(f"{count} {THINK_CLOSING}")
    answer = text.rpartition(THINK_CLOSING)[2]
    if _THINK in answer:
        raise NoAnswerError(f"{_THINK} is not closed")
    return answer.strip()


def only_code_block(text: str) -> str:
    """The content of the one block that is marked as Python; of the one block if none is.

    Raises:
        NoAnswerError: if there is none, several, or one without an end.
    """
    blocks = _code_blocks(text)
    python = [content for language, content in blocks if language in _PYTHON]
    found = python or [content for _, content in blocks]
    if not found:
        raise NoAnswerError("no code block")
    if len(found) > 1:
        raise NoAnswerError(f"{len(found)} code blocks")
    return found[0]


def only_boxed(text: str) -> str:
    r"""What the one ``\boxed{...}`` holds.

    Raises:
        NoAnswerError: if there is none, several, or one without braces, end or content.
    """
    places = [match.end() for match in _BOXED.finditer(text)]
    if len(places) != 1:
        raise NoAnswerError(f"{len(places)} boxed answers")
    rest = text[places[0] :].lstrip()
    if not rest.startswith("{"):
        raise NoAnswerError("the boxed answer has no braces")
    content = rest[1 : _closing_brace(rest)].strip()
    if not content:
        raise NoAnswerError("the boxed answer is empty")
    return content


def tool_calls(text: str) -> list[ToolCall]:
    """All calls, in their order; any name counts as one.

    Source: the released tool executor, the most lenient of Meta's three parsers.
    """
    calls, at = [], 0
    # By their headers' ends, in linear time: text that opens calls alone may not cost its square.
    while (head := text.find(">\n", at)) >= 0:
        start = 1 + max(text.rfind(">", at, head), text.rfind("\n", at, head), at - 1)
        _, opening, name = text[start:head].partition(_CALL)
        at = head + 1
        if opening and name.strip():
            if (end := text.find(_CALL_END, head)) < 0:
                break
            calls.append(ToolCall(name.strip(), text[head + 2 : end]))
            at = end + len(_CALL_END)
    return calls


def encode_cut(
    tokenizer: Tokenizer, message: Message, max_tokens: int, *, keep: str = "start"
) -> list[int]:
    """A message of at most so many tokens, header and end of turn included.

    Args:
        tokenizer: of the policy.
        message: not the assistant's.
        max_tokens: a long body loses its ``end`` or its ``start``, and shows where.
        keep: which side stays.
    """
    header, body = encode_header(tokenizer, message), encode_body(tokenizer, message)
    room = max(0, max_tokens - len(header) - 1)
    if len(body) > room:
        mark = tokenizer.encode(CUT)
        kept = max(0, room - len(mark))
        body = body[:kept] + mark if keep == "start" else mark + body[len(body) - kept :]
    return [*header, *body, tokenizer.special_tokens[END_OF_TURN]]


def _code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of each; fences are lines of their own."""
    blocks: list[tuple[str, str]] = []
    language, lines = None, []
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        if language is None:
            language, lines = _opened(line), []
        elif _is_fence(line) and line.strip() == _FENCE:
            blocks.append((language, "".join(f"{line}\n" for line in lines)))
            language = None
        else:
            lines.append(line)
    if language is not None:
        raise NoAnswerError("a code block is not closed")
    return blocks


def _is_fence(line: str) -> bool:
    return line.startswith((_FENCE, " " + _FENCE, "  " + _FENCE, "   " + _FENCE))


def _opened(line: str) -> str | None:
    """The language of the block that begins here, empty if it is not named; None if none does."""
    rest = line.strip().removeprefix(_FENCE)
    if not _is_fence(line) or "`" in rest:
        return None
    return (rest.split() or [""])[0].lower()


def _closing_brace(text: str) -> int:
    """Where the brace that ``text`` begins with is closed; what a backslash escapes is no brace."""
    depth, at = 0, 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] in "{}":
            depth += 1 if text[at] == "{" else -1
            if not depth:
                return at
        at += 1
    raise NoAnswerError("the boxed answer is not closed")
