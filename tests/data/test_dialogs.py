"""Contract: dialogs to be trained on, token by token; broken ones are refused with their line."""

import json

import numpy as np
import pytest

from cwm_jax.config import DataConfig, SourceConfig
from cwm_jax.data.chat import Message, encode_message
from cwm_jax.data.dialogs import output_dialog, parse_dialog, to_json, trace_in_words
from cwm_jax.data.encoding import dialog_tokens
from cwm_jax.data.loader import Loader, heldout_rows
from cwm_jax.data.mixture import source_shares
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


def test_a_line_without_messages_is_refused(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match="expected the key 'messages'"):
        list(documents(SourceConfig(name="chat", kind="chat", path=str(path))))


@pytest.mark.parametrize("observation_loss", [False, True])
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
    ) as loader:
        rows = loader.next_rows(2)
    counted = tokenizer.decode(rows["targets"][rows["loss_mask"] > 0])
    assert ("a.py" in counted) == observation_loss
    assert "done" in counted and "user" not in counted and "be brief" not in counted
    held = heldout_rows(shards, data, shares=shares, max_target_length=128, num_rows=3)
    assert held["loss_mask"].sum() > 0
    assert "be brief" in "".join(
        training_texts(data.sources, heldout_fraction=0.2, training_bytes=10_000)
    )


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
WORDS = """def f(n):  # n=3
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
