"""Tool calls in an answer: the parts are the same however the text is cut."""

from __future__ import annotations

import json

import pytest
from cuts import cuts

from cwm_jax.serve.chat import tools
from cwm_jax.serve.chat.forced_call import ForcedCall
from cwm_jax.serve.chat.tools import (
    Tool,
    ToolCall,
    ToolCallParser,
    describe_tools,
    opening,
    render_call,
)

BASH = Tool("bash")
TOOLS = (BASH, Tool("get-weather_2", "The weather.", {"properties": {"city": {"type": "string"}}}))


CALLS = [
    ("<tool: bash>\nls -l\n</tool>", "", [ToolCall("bash", '{"command": "ls -l"}')]),
    (
        "Let me see.\n\n<tool: bash>\nls\ncat x\n</tool>\n",
        "Let me see.",
        [ToolCall("bash", '{"command": "ls\\ncat x"}')],
    ),
    (
        'a\n<tool: get-weather_2>\n{"city": "Ulm"}\n</tool>\n<tool: bash>\n\n</tool>',
        "a",
        [ToolCall("get-weather_2", '{"city": "Ulm"}'), ToolCall("bash", '{"command": ""}')],
    ),
    ("<tool: get-weather_2>\n</tool>", "", [ToolCall("get-weather_2", "{}")]),
    ("<tool: bash>\na\n</tool>\nand\n", "\nand\n", [ToolCall("bash", '{"command": "a"}')]),
    # What is no call stays in the text.
    ("<tool: rm>\nx\n</tool>", "<tool: rm>\nx\n</tool>", []),
    ("<tool: bashful>\nx\n</tool>\n", "<tool: bashful>\nx\n</tool>\n", []),
    ("see <tool: bash>\nx\n</tool>", "see <tool: bash>\nx\n</tool>", []),
    ("<tool: bash> x\n</tool>", "<tool: bash> x\n</tool>", []),
    ("<tool: bash>\nnever ends\n\n", "<tool: bash>\nnever ends\n\n", []),
    (
        "<tool: get-weather_2>\nUlm, please\n</tool>",
        "<tool: get-weather_2>\nUlm, please\n</tool>",
        [],
    ),
    ("<tool: get-weather_2>\n[1]\n</tool>", "<tool: get-weather_2>\n[1]\n</tool>", []),
    (
        "<tool: rm>\n<tool: bash>\nx\n</tool>",
        "<tool: rm>",
        [ToolCall("bash", '{"command": "x"}')],
    ),
    (
        '<tool: get-weather_2>\n{"a": NaN}\n</tool>',
        '<tool: get-weather_2>\n{"a": NaN}\n</tool>',
        [],
    ),
    (
        "see <tool: bash>\n<tool: get-weather_2>\nx<tool: bash>\n\n<tool: bash>\n\n</tool>",
        "see <tool: bash>\n<tool: get-weather_2>\nx<tool: bash>",
        [ToolCall("bash", '{"command": ""}')],
    ),
    ("a\n\n\n", "a\n\n\n", []),
    ("<tool", "<tool", []),
    ("a\n<b\n<tool: ", "a\n<b\n<tool: ", []),
]


@pytest.mark.parametrize(("text", "content", "calls"), CALLS)
def test_calls_are_found(text, content, calls):
    for pieces in cuts(text):
        parser = ToolCallParser(TOOLS)
        fed = [*map(parser.feed, pieces)]
        assert "".join(t for t, _ in fed) + parser.finish() == content, pieces
        assert [call for _, found in fed for call in found] == calls


def test_text_is_given_out_as_soon_as_it_is_no_call():
    parser = ToolCallParser(TOOLS)
    assert [
        parser.feed(p)[0] for p in ("a\n", "b ", "<tool: ", "c\n", "<tool: ba", "g>", "\n")
    ] == [
        "a",
        "\nb ",
        "<tool: ",
        "c",
        "",
        "",
        "\n<tool: bag>",
    ]


class Searches(str):
    """A text that counts the characters in which something is looked for."""

    num_searched = 0

    def __add__(self, other: str) -> Searches:
        return Searches(str(self) + other)

    def find(self, sub, start=0, end=None):
        Searches.num_searched += len(self) - start
        return super().find(sub, start, end)

    def rfind(self, sub, start=0, end=None):
        Searches.num_searched += len(self) - start
        return super().rfind(sub, start, end)


class CountingPattern:
    def __init__(self, pattern):
        self._pattern = pattern

    def search(self, text: Searches, start: int):
        found = self._pattern.search(text, start)
        Searches.num_searched += (found.end() if found else len(text)) - start
        return found


@pytest.mark.parametrize(
    "text", ["line of text\n" * 500, "x" * 6000, "<tool: bash>\n" + "ls\n" * 2000 + "</tool>"]
)
def test_a_long_answer_is_searched_once_not_at_each_token(text, monkeypatch):
    monkeypatch.setattr(tools, "_OPENING", CountingPattern(tools._OPENING))
    monkeypatch.setattr(Searches, "num_searched", 0)
    parser = ToolCallParser(TOOLS)
    parser._text = Searches()
    for start in range(0, len(text), 4):
        parser.feed(text[start : start + 4])
    assert 0 < Searches.num_searched < 20 * len(text)


def test_without_tools_nothing_is_a_call():
    assert ToolCallParser(()).feed(CALLS[0][0]) == (CALLS[0][0], [])


@pytest.mark.parametrize(("text", "_content", "calls"), [c for c in CALLS if c[2]])
def test_calls_round_trip(text, _content, calls):
    parser = ToolCallParser(TOOLS)
    assert parser.feed("\n".join(map(render_call, calls)))[1] == calls


@pytest.mark.parametrize(
    ("tool", "argument"),
    [
        (BASH, "command"),
        (Tool("submit"), "path"),
        (Tool("bash", "", {"properties": {"cmd": {"type": "string"}}}), "cmd"),
        (Tool("bash", "", {"properties": {"cmd": {"type": "integer"}}}), None),
        (Tool("edit", "", {"properties": {"a": {"type": "string"}, "b": {}}}), None),
        (Tool("bash", "", {"properties": ["x"]}), None),
        (Tool("run", "", {"properties": {"command": {"type": "string"}}}), None),
    ],
)
def test_the_content_of_cwms_own_tools_is_text(tool, argument):
    assert tool.text_argument == argument
    described = describe_tools([tool])
    assert f"## {tool.name}\n" in described
    assert ("JSON object of this schema" in described) == (argument is None)


def test_arguments_that_are_no_single_string_are_written_as_they_are():
    for arguments in ('{"command": 1}', '{"a": "b", "c": "d"}', "[", '"x"'):
        assert render_call(ToolCall("bash", arguments)) == f"<tool: bash>\n{arguments}\n</tool>"


class Pieces:
    """A tokenizer of characters, in which some longer pieces are tokens too."""

    LONGER = (">\n", ">\n\n", "k>", "</think>")

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids) -> str:
        return "".join(chr(i) if i > 0 else self.LONGER[-i] for i in ids)


@pytest.mark.parametrize(
    ("reasoning", "line_end"),
    [
        (None, ""),
        ([*map(ord, "a </think>")], "\n"),
        ([*map(ord, "</think"), 0], ""),
        ([*map(ord, "a\n</think"), -1], ""),
        ([*map(ord, "</thin"), -2], "\n"),
        ([*map(ord, "<think>"), -3], "\n"),
    ],
)
@pytest.mark.parametrize("name", ["bash", "get-weather_2"])
def test_a_forced_call_follows_the_reasoning(name, reasoning, line_end):
    names = ["bash", "get-weather_2"]
    force = ForcedCall(Pieces(), names, is_reasoning=reasoning is not None)  # type: ignore
    generated = reasoning or []
    assert all(force(generated[:n]) is None for n in range(len(generated)))
    for character in line_end + opening(name):
        allowed = force(generated)
        assert ord(character) in allowed and len(allowed) == 1 + (generated[-1:] == [ord(" ")])
        generated = [*generated, ord(character)]
    assert force(generated) is None
    assert force([*generated, ord("x")]) is None


def test_arguments_of_text_are_json():
    text = 'echo "ü\\n" \x01\u2028'
    assert json.loads(BASH.arguments(text)) == {"command": text}


@pytest.mark.parametrize("content", ['{"a": NaN}', '{"a": [Infinity]}', "-Infinity", "[1]", "{"])
def test_arguments_are_an_object_of_json_as_others_read_it(content):
    assert TOOLS[1].arguments(content) is None
