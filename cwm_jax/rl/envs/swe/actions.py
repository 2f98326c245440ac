"""What of an answer is a tool's call."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from cwm_jax.data.chat import THINK_CLOSING

TOOLS = ("bash", "edit", "create", "submit")

# What is said to a turn that nothing can be read from.
CUT_TURN = "Your turn was cut: it was longer than a turn may be. Be brief, and end it."
EMPTY_ANSWER = "Your answer is empty. Call a tool, or report what you did."

_OPENING, _CLOSING = "<tool:", "</tool>"
_CALL = re.compile(r"<tool:\s([a-zA-Z_]+)>\n(.*?)\n</tool>", re.DOTALL)


class FormatError(ValueError):
    """The policy did not keep to the format; the text is for it to read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """``<tool: NAME>``, content, ``</tool>``, each on lines of their own."""

    tool: str
    content: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What follows the reasoning; ``call`` is None where it has no mark of a tool at all."""

    text: str
    call: Call | None


def parse_answer(text: str, *, think: bool, tools: Sequence[str] = TOOLS) -> Answer:
    """Reads a turn: reasoning, then words around at most one call.

    Args:
        text: the turn, without its end; its ``<think>`` was in the prompt.
        think: there is reasoning, which exactly one ``</think>`` ends.
        tools: that there are.

    Raises:
        FormatError: it is not closed just once, or what looks like a call is not just one, of a
            tool that there is.
    """
    if think:
        count = text.count(THINK_CLOSING)
        if count != 1:
            raise FormatError(
                f"Your turn has {count} {THINK_CLOSING} in it; it needs exactly one, between your "
                "reasoning and your answer. Reason again and close it once."
            )
        text = text.split(THINK_CLOSING)[1]
    call = _call(text)
    if call is not None and call.tool not in tools:
        raise FormatError(
            f"There is no tool {call.tool!r}. The tools are {', '.join(tools)}; use one of them."
        )
    return Answer(text=text.strip(), call=call)


def _call(text: str) -> Call | None:
    num_openings, num_closings = text.count(_OPENING), text.count(_CLOSING)
    if not num_openings and not num_closings:
        return None
    found = _CALL.findall(text)
    if len(found) > 1:
        raise FormatError(
            f"Your answer calls {len(found)} tools; it may call one at a time. Send the first one "
            "and wait for its output."
        )
    if not found or num_openings != 1 or num_closings != 1:
        raise FormatError(
            f"Your answer has {num_openings} {_OPENING} and {num_closings} {_CLOSING}, which do "
            "not form one call. Write `<tool: NAME>` on a line, the content below it, and "
            f"`{_CLOSING}` on a line of its own; the content cannot have these marks in it."
        )
    tool, content = found[0]
    if not content.strip():
        raise FormatError(
            f"Your call of {tool} is empty. Put its content between the lines with the marks."
        )
    return Call(tool=tool, content=content)
