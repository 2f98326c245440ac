"""Round trip: frames and their text are exact inverses; what a model writes is read with care."""

import random

import pytest

from cwm_jax.tokenizer import train_tokenizer
from cwm_jax.trace import (
    TraceEvent,
    TraceFrame,
    parse_frames,
    parse_trace,
    render_frames,
    render_prompt,
)
from cwm_jax.trace.format import TraceFormatError, split_prompt

CALL, LINE, RETURN, EXCEPTION = TraceEvent

NASTY = [
    "'a'",
    "...",
    ". .",
    "'\\n'",
    '"\\""',
    "'é日\U0001f600'",
    "<|frame_sep|>",
    "'<|end_of_text|>'",
    "<|reserved_special_token_42|>",
    "<|not_special|>",
    "",
    "\n",
    "\x00\x1f\u2028",
    "\ud800",
    "{}",
    '{"a": ".."}',
    "\\u003c|",
]


def random_trace(seed: int) -> list[TraceFrame]:
    """A properly nested trace with few names and values, so that many are unchanged."""
    rng = random.Random(seed)
    frames: list[TraceFrame] = []

    def scope(depth: int) -> None:
        values = {f"v{i}": rng.choice(NASTY) for i in range(rng.randrange(3))}
        line = rng.choice(["def f():\n", "x = 1", "\ty = 2  \r\n", "", "é\n"])
        frames.append(TraceFrame(CALL, line, dict(values)))
        for _ in range(rng.randrange(4)):
            values[rng.choice("ab")] = rng.choice(NASTY)
            frames.append(TraceFrame(LINE, line, dict(values)))
            if rng.random() < 0.3 and depth < 3:
                scope(depth + 1)
            if rng.random() < 0.2:
                frames.append(TraceFrame(EXCEPTION, line, arg=rng.choice(NASTY)))
        frames.append(TraceFrame(RETURN, line, arg=rng.choice(NASTY)))

    scope(0)
    return frames


@pytest.mark.parametrize("seed", range(200))
def test_any_frames_come_back_from_their_text(seed):
    frames = random_trace(seed)
    for finished in (True, False):
        text = render_frames(frames, finished=finished)
        parsed = parse_trace(text)
        assert parsed.frames == frames
        assert [dict(f.local_vars) for f in parsed.frames] == [dict(f.local_vars) for f in frames]
        assert [list(f.local_vars) for f in parsed.frames] == [list(f.local_vars) for f in frames]
        assert parsed.finished is finished
        assert not parsed.problems
        assert render_frames(parse_frames(text), finished=finished) == text


def test_unchanged_means_the_frame_before_in_the_same_scope():
    frames = [
        TraceFrame(CALL, "def f(a):\n", {"a": "1"}),
        TraceFrame(LINE, "  g(a)\n", {"a": "1"}),
        TraceFrame(CALL, "def g(a):\n", {"a": "1"}),
        TraceFrame(EXCEPTION, "def g(a):\n", arg="E()"),
        TraceFrame(LINE, "  b\n", {"a": "1", "b": "1"}),
        TraceFrame(RETURN, "  b\n", arg="1"),
        TraceFrame(LINE, "  h\n", {"a": "1"}),
        TraceFrame(LINE, "  i\n", {"a": "2"}),
        TraceFrame(LINE, "  i\n", {}),
        TraceFrame(LINE, "  i\n", {"a": "2"}),
    ]
    text = render_frames(frames, finished=False)
    shown = [part.partition("<|action_sep|>")[0] for part in text.split("<|frame_sep|>")[:-1]]
    assert shown == [
        '<|call_sep|>{"a": "1"}',
        '<|line_sep|>{"a": ".."}',
        '<|call_sep|>{"a": "1"}',
        "<|exception_sep|>",
        '<|line_sep|>{"a": "..", "b": "1"}',
        "<|return_sep|>",
        '<|line_sep|>{"a": "1"}',
        '<|line_sep|>{"a": "2"}',
        "<|line_sep|>{}",
        '<|line_sep|>{"a": "2"}',
    ]


def test_prompt_and_context_are_inverse():
    context = "\ndef main():  # << START_OF_TRACE\n    return '..'\n"
    prompt = render_prompt(context)
    assert prompt == f"<|begin_of_text|><|trace_context_start|>{context}<|frame_sep|>"
    assert split_prompt(prompt + "rest") == (context, "rest")


@pytest.mark.parametrize("text", ["", "def f():", "<|begin_of_text|>x<|frame_sep|>"])
def test_a_text_that_is_no_trace_has_no_prompt(text):
    with pytest.raises(TraceFormatError, match="is it the text of a trace"):
        split_prompt(text)


def test_special_tokens_in_values_are_escaped_and_in_source_refused():
    frame = TraceFrame(LINE, "x\n", {"x": "'<|frame_sep|><|pad|>'"})
    text = render_frames([frame], finished=False)
    assert '{"x": "\'\\u003c|frame_sep|>\\u003c|pad|>\'"}' in text
    assert parse_frames(text) == [frame]
    with pytest.raises(TraceFormatError, match=r"context spells the special token <\|pad\|>"):
        render_prompt("x = '<|pad|>'")
    with pytest.raises(TraceFormatError, match="source line spells the special token"):
        render_frames([TraceFrame(LINE, "x = '<|pad|>'\n", {})])


def test_a_value_that_reads_unchanged_is_refused():
    with pytest.raises(TraceFormatError, match="expected another"):
        render_frames([TraceFrame(LINE, "x\n", {"x": ".."})])


@pytest.mark.parametrize(
    ("event", "values", "arg", "message"),
    [
        (CALL, {}, "1", "expected no arg"),
        (RETURN, {}, None, "expected an arg"),
        (EXCEPTION, {"a": "1"}, "1", "has locals"),
    ],
)
def test_frames_that_cannot_be_are_refused(event, values, arg, message):
    with pytest.raises(ValueError, match=message):
        TraceFrame(event, "x\n", values, arg)


GOOD = '<|line_sep|>{"a": "1"}<|action_sep|>  x = 1\n<|frame_sep|>'

MALFORMED = {
    "no event": ("x = 1<|frame_sep|>", "expected one of <|call_sep|>"),
    "text before the event": ("x<|line_sep|>{}<|action_sep|>x<|frame_sep|>", "expected one of"),
    "another token first": ("<|pad|>{}<|action_sep|>x<|frame_sep|>", "expected one of"),
    "no action": ('<|line_sep|>{"a": "1"}<|frame_sep|>', "special tokens are <|line_sep|>;"),
    "a value in a line frame": (
        "<|line_sep|>{}<|action_sep|>x<|arg_sep|>1<|frame_sep|>",
        "special tokens are",
    ),
    "no value in a return frame": ("<|return_sep|><|action_sep|>x\n<|frame_sep|>", "special"),
    "locals cut": ('<|line_sep|>{"a": "1<|action_sep|>x\n<|frame_sep|>', "are not JSON"),
    "locals a list": ('<|line_sep|>["a"]<|action_sep|>x\n<|frame_sep|>', "expected a JSON object"),
    "locals empty": ("<|line_sep|><|action_sep|>x\n<|frame_sep|>", "are not JSON"),
    "a local a number": ('<|line_sep|>{"a": 1}<|action_sep|>x\n<|frame_sep|>', "no JSON string"),
    "a local a list": ('<|line_sep|>{"a": []}<|action_sep|>x\n<|frame_sep|>', "no JSON string"),
    "a local twice": (
        '<|line_sep|>{"a": "1", "a": "2"}<|action_sep|>x\n<|frame_sep|>',
        "name a variable twice",
    ),
    "a value not JSON": ("<|return_sep|><|action_sep|>x<|arg_sep|>1'<|frame_sep|>", "no JSON str"),
    "a value a number": ("<|return_sep|><|action_sep|>x<|arg_sep|>1<|frame_sep|>", "no JSON str"),
    "locals in a return": (
        '<|return_sep|>{"a": "1"}<|action_sep|>x<|arg_sep|>"1"<|frame_sep|>',
        "shows no locals",
    ),
    "deep nesting": (f"<|line_sep|>{'[' * 100_000}<|action_sep|>x<|frame_sep|>", "are not JSON"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_frames_are_reported_with_their_place_and_the_rest_is_read(name):
    text, message = MALFORMED[name]
    parsed = parse_trace(GOOD + text + GOOD + "<|end_of_text|>")
    assert parsed.problems
    assert message in parsed.problems[0].message
    assert parsed.problems[0].frame == 1
    assert len(GOOD) <= parsed.problems[0].offset < len(GOOD) + len(text)
    assert parsed.frames[0] == parsed.frames[-1] == parse_frames(GOOD)[0]
    assert parsed.finished
    with pytest.raises(TraceFormatError, match="malformed trace: frame 1, character"):
        parse_frames(GOOD + text + GOOD)


def test_unresolvable_unchanged_values_are_reported():
    unknown = '<|line_sep|>{"a": "..", "b": ".."}<|action_sep|>x\n<|frame_sep|>'
    after_return = '<|return_sep|><|action_sep|>x\n<|arg_sep|>"1"<|frame_sep|>'
    call = '<|call_sep|>{"a": ".."}<|action_sep|>x\n<|frame_sep|>'
    assert "'b' is \"..\"" in parse_trace(GOOD + unknown).problems[0].message
    assert "'a' is \"..\"" in parse_trace(GOOD + after_return + unknown).problems[0].message
    assert "'a' is \"..\"" in parse_trace(GOOD + call).problems[0].message
    assert len(parse_trace(GOOD + call + unknown + unknown).problems) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "<|line_sep|>{", "is not closed"),
        (GOOD + "<|line_sep|>{<|end_of_text|>", "is not closed"),
        (GOOD + "<|end_of_text|>more", "follows <|end_of_text|>"),
        ("\x00\ud800", "is not closed"),
    ],
)
def test_text_outside_frames_is_reported(text, message):
    assert message in parse_trace(text).problems[-1].message


def test_the_parser_survives_random_cuts_and_noise():
    rng = random.Random(0)
    text = render_frames(random_trace(3) + random_trace(5))
    pieces = [*text[::7], "<|frame_sep|>", "<|arg_sep|>", '"', "{", "}", "\\", "\ud800"]
    for _ in range(500):
        at, drop = rng.randrange(len(text)), rng.randrange(20)
        parse_trace(text[:at] + rng.choice(pieces) + text[at + drop :])


def test_tokens_are_an_exact_inverse_of_the_text():
    tokenizer = train_tokenizer(["def f(x): return x\n"] * 20, 520)
    text = render_prompt("\ndef f():\n    é\n") + render_frames(random_trace(7))
    ids = tokenizer.encode_with_special_tokens(text)
    assert tokenizer.decode(ids) == text
    special = set(tokenizer.special_tokens.values())
    assert sum(i in special for i in ids) == text.count("<|") - text.count("<|not_special|>")
    assert not special & set(tokenizer.encode(text))


def test_locals_nested_beyond_the_stack_are_reported():
    nested = "[" * 600 + "]" * 600
    parsed = parse_trace(f'<|call_sep|>{{"x": {nested}}}<|action_sep|>def f():\n<|frame_sep|>')
    assert "is no JSON string" in parsed.problems[0].message
