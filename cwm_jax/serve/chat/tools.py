"""Tools as CWM was trained to call them: how they are described, called, and found in an answer.

A call is ``<tool: NAME>``, its content and ``</tool>``, each on lines of its own. The content of
the four tools that CWM knows is text; of any other it is a JSON object. Source: the protocol of
Meta's agents; the words of the descriptions are this project's.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NAME = r"[A-Za-z0-9_.-]{1,64}"
NAME_PATTERN = f"^{_NAME}$"
_OPENING = re.compile(rf"(?<![^\n])<tool: ({_NAME})>\n")
_OPENING_BEGUN = re.compile(rf"<tool: (?:{_NAME}>?)?")
_OPENING_START = "<tool: "
_CLOSING = "\n</tool>"


@dataclasses.dataclass(frozen=True)
class TextTool:
    """One whose content is text: the name that its argument has by default, and what it does."""

    argument: str
    description: str


TEXT_TOOLS = {
    "bash": TextTool(
        "command",
        "Runs the content in a bash session that lasts from call to call; gives what it prints.",
    ),
    "edit": TextTool(
        "edit",
        "Replaces text in a file. The content is the path on the first line, then a block of\n"
        "<<<<<<< SEARCH\nlines as they are in the file\n=======\nlines to stand there instead\n"
        ">>>>>>> REPLACE\n"
        "The first part must occur exactly once.",
    ),
    "create": TextTool(
        "file", "Writes a new file. The content is its path on the first line, then its text."
    ),
    "submit": TextTool(
        "path", "Hands in the work. The content is the path of a file with a git diff."
    ),
}


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function that the model may call; ``parameters`` is its JSON schema, maybe empty."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def text_argument(self) -> str | None:
        """The argument that the content is; None where the content is a JSON object."""
        if self.name not in TEXT_TOOLS:
            return None
        properties = self.parameters.get("properties") or {}
        if not properties:
            return TEXT_TOOLS[self.name].argument
        if not isinstance(properties, Mapping) or len(properties) > 1:
            return None
        ((name, schema),) = properties.items()
        return name if isinstance(schema, Mapping) and schema.get("type") == "string" else None

    def arguments(self, content: str) -> str | None:
        """The arguments of a call with that content, in JSON; None: it is no call of this tool."""
        if self.text_argument is not None:
            return json.dumps({self.text_argument: content}, ensure_ascii=False)
        content = content.strip() or "{}"
        try:
            found = json.loads(content, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return None
        return content if isinstance(found, dict) else None


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call as OpenAI's schema has it: the arguments are JSON in a string."""

    name: str
    arguments: str


def describe_tools(tools: Sequence[Tool]) -> str:
    """The text of the system message that offers them."""
    return "\n\n".join([_PREAMBLE, *map(_describe, tools)])


def render_call(call: ToolCall, tool: Tool | None = None) -> str:
    """The call as the model writes it; without its ``tool`` as CWM knows one of that name."""
    return f"{opening(call.name)}{_content(call, tool or Tool(call.name))}{_CLOSING}"


def opening(name: str) -> str:
    return f"{_OPENING_START}{name}>\n"


class ToolCallParser:
    """Fed with an answer's content, gives its text and its calls; what may be a call is held back.

    Only the tools' exact names make a call. Anything else that looks like one, an unknown name or
    a content that is no JSON object, stays in the text, and so does a call without an end.
    """

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._text = ""
        self._given = 0  # characters of _text
        self._searched = 0  # no opening begins before
        self._closing_searched = 0  # nor a closing of the one that is open
        self._call_end = -1  # of the last one

    def feed(self, text: str) -> tuple[str, list[ToolCall]]:
        if not self._tools:
            return text, []
        self._text += text
        content, calls = "", []
        while found := _OPENING.search(self._text, self._searched):
            tool = self._tools.get(found[1])
            # Content may be empty: the closing then begins with the opening's line end.
            closing_start = max(found.end() - 1, self._closing_searched)
            end = self._text.find(_CLOSING, closing_start)
            if tool is not None and end < 0:
                self._closing_searched = max(closing_start, len(self._text) - len(_CLOSING) + 1)
                return content + self._give(_before_line_ends(self._text, found.start())), calls
            arguments = tool and tool.arguments(self._text[found.end() : max(end, found.end())])
            self._searched = found.end()
            if tool is not None and arguments is not None:
                content += self._give(_before_line_ends(self._text, found.start()))
                calls.append(ToolCall(tool.name, arguments))
                self._given = self._searched = self._call_end = end + len(_CLOSING)
        self._searched = self._may_open()
        return content + self._give(_before_line_ends(self._text, self._searched)), calls

    def finish(self) -> str:
        """The text that was held back; line ends after the last call are part of no text."""
        start, self._given = self._given, len(self._text)
        rest = self._text[start:]
        return "" if start == self._call_end and not rest.strip() else rest

    def _may_open(self) -> int:
        """Where the last line begins if it may become an opening, else the text's end."""
        # A line before it is whole, and was searched.
        start = max(self._text.rfind("\n", self._searched) + 1, self._searched)
        line = self._text[start:]
        may_begin = _OPENING_START.startswith(line) or _OPENING_BEGUN.fullmatch(line)
        at_line_start = start == 0 or self._text[start - 1] == "\n"
        return start if may_begin and at_line_start else len(self._text)

    def _give(self, end: int) -> str:
        start, self._given = self._given, max(end, self._given)
        return self._text[start : self._given]


_PREAMBLE = (
    "# Tools\n\n"
    "You can call the tools listed below. Write a call on lines of its own, and nothing after the "
    "last one:\n\n"
    "<tool: NAME>\ncontent\n</tool>\n\n"
    "What a tool gives comes in a message of the role `tool: NAME`."
)


def _describe(tool: Tool) -> str:
    own = TEXT_TOOLS[tool.name].description if tool.text_argument is not None else ""
    lines = [f"## {tool.name}", own, tool.description.strip()]
    if tool.text_argument is None:
        schema = json.dumps(tool.parameters or {"type": "object", "properties": {}})
        lines.append(f"The content is a JSON object of this schema:\n{schema}")
    return "\n".join(filter(None, lines))


def _no_constant(name: str) -> None:
    """NaN and the infinities, which Python's ``json`` takes, are in no one else's JSON."""
    raise ValueError(f"{name} is no JSON")


def _content(call: ToolCall, tool: Tool) -> str:
    """The arguments' one string for a tool that takes text, else the arguments as they are."""
    if tool.text_argument is None:
        return call.arguments
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return call.arguments
    values = list(arguments.values()) if isinstance(arguments, dict) else []
    return values[0] if len(values) == 1 and isinstance(values[0], str) else call.arguments


def _before_line_ends(text: str, end: int) -> int:
    while end > 0 and text[end - 1] == "\n":
        end -= 1
    return end
