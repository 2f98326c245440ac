"""Contract: dialogs to be trained on, token by token; broken ones are refused with their line."""

import functools
import json

import numpy as np
import pytest
from tiny import tiny_run

from cwm_jax.config import BatchConfig, DataConfig, SourceConfig
from cwm_jax.data import loader
from cwm_jax.data.chat import Message, encode_message
from cwm_jax.data.dialogs import output_dialog, parse_dialog, to_json, trace_in_words
from cwm_jax.data.encoding import dialog_tokens
from cwm_jax.data.loader import Loader, heldout_rows
from cwm_jax.data.mixture import source_shares
from cwm_jax.data.packing import describe_cut
from cwm_jax.data.prepare import prepare
from cwm_jax.data.shards import MASKED_MARK, OBSERVATION_MARK, TOKEN_BITS
from cwm_jax.data.sources import DataError, documents
from cwm_jax.data.split import training_texts
from cwm_jax.tokenizer import (
    END_OF_TURN,
    THINKING_END,
    THINKING_START,
    train_tokenizer,
)
from cwm_jax.trace import trace_context
from cwm_jax.trace.episodes import Episode
from cwm_jax.trace.format import render_frames
from cwm_jax.training import loop

DIALOG = [
    {"role": "system", "content": "  be brief "},
    {"role": "user", "content": " hi\n"},
    {"role": "assistant", "content": "<tool: bash>\nls\n</tool>", "reasoning": "look first"},
    {"role": "tool: bash", "content": " a.py\n"},
    {"role": "assistant", "content": " done "},
]


@pytest.fixture(scope="module")
def tokenizer():
    words = ["system user assistant tool: bash be brief hi look first done ls a.py\n\n"] * 50
    return train_tokenizer([*words, *map(str, range(2000))], 576)


def texts(tokenizer, tokens, mark):
    """What of a dialog has the mark, as text, and what has none."""
    ids = tokens & TOKEN_BITS
    return tokenizer.decode(ids[(tokens & mark) > 0])


def test_the_tokens_are_those_of_the_chat_format(tokenizer):
    messages = parse_dialog(DIALOG)
    expected = [tokenizer.bos_id]
    for message in messages:
        expected += encode_message(tokenizer, message)
    assert (dialog_tokens(tokenizer, messages) & TOKEN_BITS).tolist() == expected


def test_only_what_the_assistant_writes_is_learnt(tokenizer):
    tokens = dialog_tokens(tokenizer, parse_dialog(DIALOG))
    ids, end = tokens & TOKEN_BITS, tokenizer.special_tokens[END_OF_TURN]
    learnt = ids[tokens == ids].tolist()
    said = ["<think>\nlook first\n</think>\n<tool: bash>\nls\n</tool>", "done"]
    assert tokenizer.decode(learnt) == "".join(f"{text}{END_OF_TURN}" for text in said)
    assert learnt.count(end) == 2
    observed = tokenizer.decode(ids[(tokens & OBSERVATION_MARK) > 0])
    assert observed == f" a.py\n{END_OF_TURN}"
    given = tokenizer.decode(ids[(tokens & MASKED_MARK) > 0])
    assert "be brief" in given and "tool: bash" in given and "a.py" not in given


def test_of_hybrid_reasoning_only_the_start_is_no_target(tokenizer):
    tokens = dialog_tokens(tokenizer, parse_dialog(DIALOG), reasoning="tokens")
    ids, special = tokens & TOKEN_BITS, tokenizer.special_tokens
    (at,) = np.flatnonzero(ids == special[THINKING_START])
    assert tokens[at] & MASKED_MARK
    (end,) = np.flatnonzero(ids == special[THINKING_END])
    assert (tokens[at + 1 : end + 1] == ids[at + 1 : end + 1]).all()
    assert tokenizer.decode(ids[at + 1 : end]) == "look first"


def test_users_cannot_write_special_tokens(tokenizer):
    dialog = [
        {"role": "user", "content": END_OF_TURN + THINKING_START},
        {"role": "assistant", "content": "ok"},
    ]
    tokens = dialog_tokens(tokenizer, parse_dialog(dialog)) & TOKEN_BITS
    special = tokenizer.special_tokens
    assert (tokens == special[END_OF_TURN]).sum() == 2
    assert special[THINKING_START] not in tokens


BROKEN = {
    "nothing": ([], "messages is"),
    "no list": ({"role": "user"}, "messages is"),
    "unknown role": ([{"role": "bot", "content": "x"}], "role is 'bot'"),
    "no content": ([{"role": "user"}], "content is null"),
    "a number": ([{"role": "user", "content": 3}], "content is 3"),
    "unknown key": ([{"role": "user", "content": "x", "name": "n"}], "it has 'name'"),
    "empty": ([{"role": "user", "content": "  "}], "says nothing"),
    "user reasons": ([{"role": "user", "content": "x", "reasoning": "y"}], "has reasoning"),
    "begins with the assistant": ([{"role": "assistant", "content": "x"}], "at the beginning"),
    "two users": ([DIALOG[1], DIALOG[1]], "messages[1]: 'user' stands after 'user'"),
    "late system": ([*DIALOG, DIALOG[0]], "'system' stands after 'assistant'"),
    "tool without call": ([DIALOG[1], DIALOG[3]], "'tool: bash' stands after 'user'"),
    "no answer": ([*DIALOG, DIALOG[1]], "the last message is from 'user'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_dialog_is_refused_with_file_and_line(tmp_path, name):
    messages, problem = BROKEN[name]
    path = tmp_path / "chat.jsonl"
    good = json.dumps({"messages": DIALOG})
    path.write_text(f"{good}\n\n{json.dumps({'messages': messages})}\n{good}\n")
    source = SourceConfig(name="chat", kind="chat", path=str(path))
    with pytest.raises(DataError) as error:
        list(documents(source))
    assert f"{path}:3" in str(error.value) and problem in str(error.value)


ANSWER = {"role": "assistant", "content": "ok"}
THEIRS = {
    "tool_calls": (
        [DIALOG[1], {"role": "assistant", "content": None, "refusal": None, "tool_calls": []}],
        "it has 'tool_calls'; expected content, reasoning, role alone: write each call as <tool:",
    ),
    "reasoning_content": (
        [DIALOG[1], {**ANSWER, "reasoning_content": "x"}],
        "it has 'reasoning_content'; expected content, reasoning, role alone: call it reasoning",
    ),
    "developer": (
        [{"role": "developer", "content": "x"}, DIALOG[1], ANSWER],
        "role is 'developer'; expected system, user, assistant or 'tool: NAME': this is 'system'",
    ),
    "tool and name": (
        [*DIALOG[1:3], {"role": "tool", "name": "bash", "content": "x"}, ANSWER],
        "it has 'name'; expected content, reasoning, role alone: of a tool's result, its role is",
    ),
    "tool": (
        [*DIALOG[1:3], {"role": "tool", "content": "x"}, ANSWER],
        "name the tool in the role: 'tool: NAME'",
    ),
    "parts": (
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}, ANSWER],
        "expected text: join the texts of its parts into one",
    ),
    "capitals": ([{"role": "User", "content": "x"}, ANSWER], "'tool: NAME': this is 'user'"),
    "from and value": ([{"from": "human", "value": "x"}, ANSWER], "from is role, with user and"),
}


@pytest.mark.parametrize("name", THEIRS)
def test_other_projects_forms_are_refused_with_the_way_on(tmp_path, name):
    messages, hint = THEIRS[name]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(DataError) as error:
        list(documents(SourceConfig(name="chat", kind="chat", path=str(path))))
    assert f"{path}:1 " in str(error.value) and hint in str(error.value)


GOOD = json.dumps({"messages": DIALOG}).encode()
BYTES = {
    "latin-1": (GOOD.replace(b"look", b"lo\xe9k"), "is not UTF-8: byte .* is 0xe9; save the file"),
    "utf-16": (GOOD.decode().encode("utf-16"), "is not UTF-8: byte 1 of the line is 0xff"),
    "mark": (b"\xef\xbb\xbf" + GOOD, r"begins with a byte-order mark \(BOM\); save the file"),
    "half": (GOOD.replace(b"look", b"lo\\udce9k"), r"has \\udce9, half of a surrogate pair"),
    "cut": (GOOD[:-2], r"is not JSON \(Expecting .* line 1 column"),
}


@pytest.mark.parametrize("name", BYTES)
def test_what_is_no_text_is_said_in_words(tmp_path, name):
    line, problem = BYTES[name]
    path = tmp_path / "chat.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(DataError, match=f"chat.jsonl:1 {problem}"):
        list(documents(SourceConfig(name="chat", kind="chat", path=str(path))))


def test_keys_beside_the_messages_are_left_alone_unless_they_belong_to_the_dialog(tmp_path):
    path = tmp_path / "chat.jsonl"
    source = SourceConfig(name="chat", kind="chat", path=str(path))
    path.write_text(json.dumps({"id": 3, "tools": None, "messages": DIALOG}) + "\n")
    (found,) = documents(source)
    path.write_text(json.dumps({"messages": DIALOG}) + "\n")
    assert [found] == list(documents(source))
    for key, hint in (("tools", "in the system message"), ("system", "make it the first message")):
        path.write_text(json.dumps({"messages": DIALOG, key: "x"}) + "\n")
        with pytest.raises(DataError, match=f"it has '{key}' beside messages.* {hint}"):
            list(documents(source))


def test_dialogs_that_rows_cut_are_counted():
    cut = functools.partial(describe_cut, np.array([3, 9, 10, 11]), packing="best_fit")
    assert cut(max_target_length=10) is None  # 11 tokens are 10 targets
    assert cut(max_target_length=9).startswith("1 dialogs of 4 are longer than T 9 and are cut: ")
    assert cut(max_target_length=8).startswith("2 dialogs of 4 are longer")
    assert "data.packing='best_fit'" in cut(max_target_length=99, packing="concat_then_split")


@pytest.mark.parametrize("length", [16, 128])
def test_the_start_of_a_run_says_how_many_dialogs_are_cut(tmp_path, tokenizer, length):
    path = tmp_path / "chat.jsonl"
    path.write_text((json.dumps({"messages": DIALOG}) + "\n") * 40)
    source = SourceConfig(name="chat", kind="chat", path=str(path))
    data = DataConfig(
        sources=(source,),
        cache_directory=str(tmp_path / "data"),
        packing="best_fit",
        heldout_fraction=0.2,
    )
    shards = prepare(source, data, tokenizer)
    batch = BatchConfig(max_target_length=length, per_device_batch_size=1)
    config = tiny_run(tmp_path, data=data, batch=batch)
    said = "\n".join(loop._describe_data([shards], tokenizer, config))
    count = shards.split("train").documents
    cut = f"source chat: {count} dialogs of {count} are longer than T 16 and are cut"
    assert (cut in said) == (length == 16) and "source chat: " in said


def test_a_line_without_messages_is_refused(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match="expected the key 'messages'"):
        list(documents(SourceConfig(name="chat", kind="chat", path=str(path))))


@pytest.mark.parametrize("observation_loss", [0.0, 0.5, 1.0])
def test_dialogs_reach_the_batch_whole_and_masked(tmp_path, tokenizer, observation_loss):
    lines = [
        json.dumps({"messages": [*DIALOG[:-1], {"role": "assistant", "content": f"done {n}"}]})
        for n in range(60)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines) + "\n")
    source = SourceConfig(name="chat", kind="chat", path=str(tmp_path / "chat.jsonl"))
    data = DataConfig(
        sources=(source,),
        cache_directory=str(tmp_path / "data"),
        packing="best_fit",
        heldout_fraction=0.2,
        observation_loss=observation_loss,
    )
    shards = [prepare(source, data, tokenizer)]
    shares = source_shares(data.sources, shards, train_tokens=1000)
    with Loader(
        shards,
        data,
        shares=shares,
        max_target_length=128,
        seed=0,
        own_rows=(0, 1),
        micro_batch_rows=2,
    ) as rows_loader:
        rows = rows_loader.next_rows(8)
    counted = tokenizer.decode(rows["targets"][rows["loss_mask"] > 0])
    share = counted.count("a.py") / counted.count("done")
    assert 0.2 < share < 0.8 if observation_loss == 0.5 else share == observation_loss
    assert "done" in counted and "user" not in counted and "be brief" not in counted
    held = heldout_rows(shards, data, shares=shares, max_target_length=128, num_rows=3)
    assert held["loss_mask"].sum() > 0
    assert "be brief" in "".join(
        training_texts(data.sources, heldout_fraction=0.2, training_bytes=10_000)
    )


def test_a_draw_of_observations_is_of_each_alone_and_whole(tokenizer):
    dialogs = [
        parse_dialog([*DIALOG[:3], {**DIALOG[3], "content": f"ls {n}"}, *DIALOG[2:]])
        for n in range(200)
    ]
    counted = []
    for messages in dialogs:
        tokens = dialog_tokens(tokenizer, messages)
        left = loader._with_counted_observations(tokens, 0.5)
        assert (left == loader._with_counted_observations(tokens.copy(), 0.5)).all()
        observed = (tokens & OBSERVATION_MARK) > 0
        assert (left[~observed] == tokens[~observed]).all()
        shown = texts(tokenizer, left, OBSERVATION_MARK)
        whole = [f"{message.content}{END_OF_TURN}" for message in messages if message.is_tool]
        counted.append(tuple(text not in shown for text in whole))
        assert shown == "".join(t for t, c in zip(whole, counted[-1], strict=True) if not c)
    assert {*counted} == {(a, b) for a in (False, True) for b in (False, True)}
    assert 0.4 < np.mean(counted) < 0.6


@pytest.mark.parametrize(("value", "hint"), [(True, "write 1.0"), (1.5, "a share from 0 to 1")])
def test_a_share_of_observations_that_is_none_is_refused(value, hint):
    with pytest.raises(ValueError, match=hint):
        DataConfig(sources=(), observation_loss=value)


PROGRAM = """
def g(x):
    return x * 2
def f(n):
    total = 0
    for i in range(2):
        total += g(i) + n
    return total
def main():  # << START_OF_TRACE
    return f(3)
"""
WORDS = """    return f(3)
def f(n):  # n=3
    total = 0  # total=0
    for i in range(2):  # i=0
        total += g(i) + n
def g(x):  # x=0
    return x * 2  # 0
        total += g(i) + n  # total=3
    for i in range(2):  # i=1
        total += g(i) + n
def g(x):  # x=1
    return x * 2  # 2
        total += g(i) + n  # total=8
    for i in range(2):
    return total  # 8"""


def test_a_trace_in_words():
    assert trace_in_words(trace_context(PROGRAM)) == WORDS


def test_a_program_becomes_a_question_with_a_reasoned_answer():
    frames = trace_context(PROGRAM)
    episode = Episode(
        name="p#0",
        context=PROGRAM,
        frames=render_frames(frames),
        finished=True,
        status="finished",
        raised=False,
        num_events=len(frames),
        source="script",
        origin="",
        group="p",
        python="3",
        limits={},
    )
    user, assistant = output_dialog(episode)
    assert user == Message("user", user.content) and "START_OF_TRACE" not in user.content
    assert user.content.startswith("What does main() return?\n\ndef g(x):")
    assert assistant == Message("assistant", "8", WORDS)
    assert parse_dialog(to_json([user, assistant])) == [user, assistant]
