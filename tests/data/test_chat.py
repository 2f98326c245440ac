"""Dialogs as tokens, against Meta's example and against the chat template."""

import textwrap
from pathlib import Path

import pytest
import transformers
from cuts import cuts

from cwm_jax.data.chat import (
    REASONING_SYSTEM_PROMPT,
    Message,
    ReasoningSplitter,
    encode_dialog,
    encode_message,
    with_reasoning_prompt,
    without_previous_reasoning,
)
from cwm_jax.tokenizer import Tokenizer, _last_merges, train_tokenizer

SYSTEM, USER = Message("system", "  sys  "), Message("user", " hi\n")
# Ranks of the released tokenizer that the example below needs.
RELEASED = {
    258: "in",
    271: "\n\n",
    339: "th",
    397: ">\n",
    771: "ink",
    882: "user",
    6151: "hi",
    7947: "sys",
    9125: "system",
    14023: "<th",
    78191: "assistant",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([Path(textwrap.__file__).read_text()], 700)


@pytest.fixture(scope="module")
def template(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    tokenizer.save(folder, model_max_length=4096)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_metas_example():
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b"%x" % number for number in range(0x10000 + 256, 0x10000 + 128_000)]
    for rank, text in RELEASED.items():
        tokens[rank] = text.encode()
    ids = encode_dialog(Tokenizer(tokens, _last_merges(tokens)), [SYSTEM, USER], think=True)
    expected = "128000 128006 9125 128007 271 7947 128009 128006 882 128007 271 6151 128009 128006 "
    assert ids == [*map(int, f"{expected}78191 128007 271 14023 771 397".split())]


def as_dicts(messages: list[Message]) -> list[dict]:
    reasoning = [{"reasoning_content": m.reasoning} if m.reasoning else {} for m in messages]
    return [
        {"role": m.role, "content": m.content} | r for m, r in zip(messages, reasoning, strict=True)
    ]


@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    "turns",
    [
        [USER],
        [SYSTEM, USER],
        [SYSTEM, USER, Message("assistant", " yes ", "hm\nso"), Message("user", "and?")],
        [USER, Message("assistant", "<think>\na\n</think>\nb"), USER, Message("assistant", "c")],
        [
            USER,
            Message("assistant", "call"),
            Message(" tool:  bash ", "  out \n"),
            Message("tool: x", ""),
        ],
        [USER, Message("assistant", "an open ")],
        [USER, Message("assistant", "<think>\n")],
        [SYSTEM, USER, Message("assistant", None), Message("user", "a</think>b")],
        [USER, Message("assistant", "", "only reasoning"), USER],
        [Message("user", "é 🦄\r\n\tx"), SYSTEM],
    ],
)
def test_ids_are_those_of_the_template(turns, keep, think, tokenizer, template):
    messages = with_reasoning_prompt(turns) if think else turns
    messages = messages if keep else without_previous_reasoning(messages)
    is_begun = turns[-1].is_assistant
    ids = encode_dialog(tokenizer, messages, think=think and not is_begun)
    expected = template.apply_chat_template(
        as_dicts(turns),
        add_generation_prompt=True,
        enable_thinking=think,
        preserve_previous_think=keep,
        return_dict=False,
    )
    assert ids == expected


def test_texts_never_become_special_tokens(tokenizer):
    text = "".join(tokenizer.special_tokens)
    plain = encode_dialog(tokenizer, [Message("system", ""), Message("user", "")])
    ids = encode_dialog(tokenizer, [Message("system", text), Message("user", text)])
    special = {*tokenizer.special_tokens.values()}
    assert [i for i in ids if i in special] == [i for i in plain if i in special]
    tool = encode_message(tokenizer, Message(f"tool: {text}", text))
    assert len([i for i in tool if i in special]) == 3


def test_thinking_tokens_are_tokens_in_an_assistants_text_alone(tokenizer):
    text = "<|reasoning_thinking_start|>a<|reasoning_thinking_end|>b<|eot_id|>"
    special = tokenizer.special_tokens
    start, end = special["<|reasoning_thinking_start|>"], special["<|reasoning_thinking_end|>"]
    ids = encode_message(tokenizer, Message("assistant", text), is_open=True)
    body = ids[ids.index(special["<|end_header_id|>"]) + 1 :]
    assert [i for i in body if i >= tokenizer.bos_id] == [start, end]
    assert start not in encode_message(tokenizer, Message("user", text))


def test_reasoning_is_asked_for_where_no_system_message_asks():
    assert with_reasoning_prompt([USER]) == [Message("system", REASONING_SYSTEM_PROMPT), USER]
    assert with_reasoning_prompt([SYSTEM, USER]) == [SYSTEM, USER]


def test_what_is_no_dialog_is_refused(tokenizer):
    for role in ("critic", "tool", "tool:", "tool:  ", ""):
        with pytest.raises(ValueError, match=r"message role is .*expected system"):
            Message(role, "x")
    with pytest.raises(ValueError, match="the answer has begun"):
        encode_dialog(tokenizer, [USER, Message("assistant", "x")], think=True)


# Answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("hm\n</think>\nyes", "hm", "yes"),
        ("hm</think>yes", "hm", "yes"),
        ("hm\n\n</think>\n\nyes\n", "hm\n", "\nyes\n"),
        ("a < b </thin </think>c</think>", "a < b </thin ", "c</think>"),
        ("never\n</think", "never\n</think", ""),
        ("</think>\n", "", ""),
        ("\n\n</think></think>", "\n", "</think>"),
        ("", "", ""),
    ],
)
def test_reasoning_ends_at_the_first_marker(text, reasoning, content):
    for pieces in cuts(text):
        splitter = ReasoningSplitter(is_reasoning=True)
        parts = [*map(splitter.feed, pieces), splitter.finish()]
        assert ("".join(r for r, _ in parts), "".join(c for _, c in parts)) == (reasoning, content)


def test_an_answer_without_reasoning_is_content():
    assert ReasoningSplitter(is_reasoning=False).feed("a</think>b") == ("", "a</think>b")


def test_reasoning_is_given_out_as_soon_as_it_is_no_marker():
    splitter = ReasoningSplitter(is_reasoning=True)
    given = [splitter.feed(piece)[0] for piece in ("so\n", "</th", "ree", "</think>")]
    assert given == ["so", "", "\n</three", ""]
