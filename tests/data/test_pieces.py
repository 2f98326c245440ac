"""Laws: long dialogs split at turns are learnt once, in pieces that are dialogs, and resume."""

import itertools
import json
import random

import numpy as np
import pytest
from tiny import tiny_run

from cwm_jax.config import BatchConfig, DataConfig, SourceConfig
from cwm_jax.data import loader
from cwm_jax.data import packing as packing_module
from cwm_jax.data.chat import Message
from cwm_jax.data.dialogs import to_json
from cwm_jax.data.encoding import dialog_tokens
from cwm_jax.data.loader import Loader, heldout_rows
from cwm_jax.data.mixture import source_shares
from cwm_jax.data.packing import Cursor, pack
from cwm_jax.data.pieces import num_learnt, pieces_of
from cwm_jax.data.prepare import prepare
from cwm_jax.data.shards import MESSAGE_MARK, OBSERVATION_MARK, TOKEN_BITS, TURN_MARK
from cwm_jax.tokenizer import train_tokenizer
from cwm_jax.training import loop

T = 160
TASK = [Message("system", "be brief"), Message("user", "mend it")]


@pytest.fixture(scope="module")
def tokenizer():
    words = ["system user assistant tool: bash be brief mend it\n\n"] * 50
    return train_tokenizer([*words, *map(str, range(2000))], 576)


def said(number, length):
    """``length`` tokens of one byte each, other ones for every number."""
    return "".join(chr(97 + (number * 7 + i * (number % 5 + 1)) % 26) for i in range(length))


def agent(seed, *, num_turns=12, longest=40, asks_again=0.0):
    """A dialog whose turns have a result of a tool or two, or are the user's again."""
    draw = random.Random(seed)
    messages, number = list(TASK), itertools.count(1000 * seed)

    def add(role):
        messages.append(Message(role, said(next(number), draw.randint(1, longest))))

    for _ in range(num_turns):
        add("assistant")
        if draw.random() < asks_again:
            add("user")
            continue
        for _ in range(draw.randint(1, 2)):
            add("tool: bash")
    if messages[-1].role == "user":
        messages.pop()
    if not messages[-1].is_assistant:
        add("assistant")
    return messages


def split(tokens, max_target_length=T):
    return list(pieces_of(tokens, max_target_length, long_dialogs="split"))


def learnt(tokens):
    return tokens[1:][tokens[1:] <= TOKEN_BITS].tolist()


def learnt_in(pieces):
    return list(itertools.chain.from_iterable(learnt(piece) for _, piece in pieces))


def opening_of(tokens):
    """Tokens before the first answer: the third message of these dialogs."""
    return tokens[: np.flatnonzero(tokens & MESSAGE_MARK)[2]]


def messages_in(piece):
    return int(((piece & MESSAGE_MARK) > 0).sum())


@pytest.mark.parametrize("asks_again", [0.0, 0.4])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_is_learnt_is_learnt_once_and_in_order(tokenizer, share, asks_again):
    num_pieces = 0
    for seed in range(40):
        whole = dialog_tokens(tokenizer, agent(seed, asks_again=asks_again))
        whole = loader._with_counted_observations(whole, share)
        pieces = split(whole)
        assert learnt_in(pieces) == learnt(whole)
        assert max(len(piece) for _, piece in pieces) <= T + 1
        num_pieces += len(pieces)
    assert num_pieces > 120


@pytest.mark.parametrize("asks_again", [0.0, 0.4])
def test_a_piece_is_the_opening_and_whole_turns_as_many_as_fit(tokenizer, asks_again):
    for seed in range(40):
        whole = dialog_tokens(tokenizer, agent(seed, longest=20, asks_again=asks_again))
        opening, pieces = opening_of(whole), split(whole)
        first, *later = [place for place, _ in pieces]
        assert first == len(opening) and all(whole[place] & TURN_MARK for place in later)
        ends = [*later, len(whole)]
        for (place, piece), end in zip(pieces, ends, strict=True):
            np.testing.assert_array_equal(piece, np.concatenate([opening, whole[place:end]]))
            turns = np.flatnonzero(whole & TURN_MARK)
            turn_end = next(iter(turns[turns > end]), len(whole))
            assert end == len(whole) or len(piece) + turn_end - end > T + 1  # no other would fit


def test_turns_begin_with_the_user_or_after_a_tool(tokenizer):
    messages = [
        *TASK,
        Message("assistant", "a"),
        Message("tool: bash", "b"),
        Message("tool: bash", "c"),
        Message("assistant", "d"),
        Message("user", "e"),
        Message("assistant", "f"),
    ]
    tokens = dialog_tokens(tokenizer, messages)
    begins = tokens[(tokens & MESSAGE_MARK) > 0]
    marked = [0, 1, 0, 0, 0, 1, 1, 0]
    assert ((begins & TURN_MARK) > 0).astype(int).tolist() == marked


def test_a_dialog_that_fits_is_left_alone_to_the_token(tokenizer):
    whole = dialog_tokens(tokenizer, agent(1, num_turns=3))
    ((place, piece),) = split(whole, len(whole) - 1)
    assert place == 0 and piece.tolist() == whole.tolist()
    assert len(split(whole, len(whole) - 2)) == 2


def test_a_turn_that_fits_no_piece_is_divided_between_messages(tokenizer):
    results = [Message("tool: bash", said(n, 70)) for n in range(3)]
    messages = [*TASK, Message("assistant", "look"), *results, Message("assistant", "done")]
    whole = loader._with_counted_observations(dialog_tokens(tokenizer, messages), 1.0)
    opening, pieces = opening_of(whole), split(whole)
    assert [messages_in(piece) for _, piece in pieces] == [4, 3, 4]  # two are the opening
    assert all(piece[: len(opening)].tolist() == opening.tolist() for _, piece in pieces)
    assert all(whole[place] & MESSAGE_MARK for place, _ in pieces)
    assert learnt_in(pieces) == learnt(whole)


def test_a_message_that_fits_no_piece_loses_its_tail_alone(tokenizer):
    long, end = Message("assistant", said(3, 2 * T)), Message("assistant", "done")
    for messages in (
        [*TASK, long, Message("user", "so"), end],
        [*TASK, Message("assistant", "a"), Message("tool: bash", "b"), long],
    ):
        whole = dialog_tokens(tokenizer, messages)
        pieces = split(whole)
        (number,) = [n for n, (_, piece) in enumerate(pieces) if len(piece) == T + 1]
        opening = opening_of(whole).tolist()
        assert pieces[number][1][: len(opening)].tolist() == opening
        kept, everything = learnt_in(pieces), learnt(whole)
        lost, at = len(everything) - len(kept), len(learnt_in(pieces[: number + 1]))
        assert 0 < lost < 2 * T and kept == everything[:at] + everything[at + lost :]


def test_an_opening_of_over_half_a_row_stands_once_or_never(tokenizer):
    task = [TASK[0], Message("user", said(5, T // 2))]
    turns = [Message(("assistant", "tool: bash")[n % 2], said(n, 30)) for n in range(9)]
    whole = dialog_tokens(tokenizer, [*task, *turns])
    opening, (first, *later) = opening_of(whole), [piece for _, piece in split(whole)]
    assert first[: len(opening)].tolist() == opening.tolist()
    assert all(piece[0] == whole[0] and messages_in(piece) == 4 for piece in later[:-1])
    answer = Message("assistant", said(7, 75))
    whole = dialog_tokens(tokenizer, [*task, answer, Message("user", "so"), answer])
    pieces = split(whole)
    assert [messages_in(piece) for _, piece in pieces] == [1, 2]
    assert learnt_in(pieces) == learnt(whole)


def test_a_piece_of_which_nothing_is_learnt_is_left_out(tokenizer):
    result = Message("tool: bash", said(1, T))
    messages = [*TASK, Message("assistant", "look"), result, Message("assistant", "done")]
    whole = dialog_tokens(tokenizer, messages)
    assert [messages_in(piece) for _, piece in split(whole)] == [3, 3]
    counted = loader._with_counted_observations(whole, 1.0)
    assert [messages_in(piece) for _, piece in split(counted)] == [3, 3, 3]
    ((_, tiny),) = split(whole, 2)  # where no piece holds an answer, a stream must not be empty
    assert num_learnt(tiny) == 0


def test_other_documents_are_cut_as_ever():
    documents = [np.arange(2, 2 + n, dtype=np.uint32) for n in (3, 50, 12, 31)]
    for packing in ("first_fit", "best_fit"):
        cut, same = (
            list(pack(documents, packing=packing, max_target_length=10, long_dialogs=how))
            for how in ("cut", "split")
        )
        for (row, cursor), (other, at) in zip(cut, same, strict=True):
            assert cursor == at and all((row[key] == other[key]).all() for key in row)


@pytest.mark.parametrize("packing", ["first_fit", "best_fit"])
def test_every_cursor_resumes_the_stream(tokenizer, packing, monkeypatch):
    monkeypatch.setattr(packing_module, "GROUP_ROWS", 3)
    dialogs = [dialog_tokens(tokenizer, agent(n, num_turns=1 + 3 * (n % 4))) for n in range(12)]
    settings = dict(packing=packing, max_target_length=T, long_dialogs="split")
    rows = list(pack(dialogs, **settings))
    cursors = [Cursor(), *(cursor for _, cursor in rows)]
    assert any(cursor.offset for cursor in cursors)  # a group began within a dialog
    for number, cursor in enumerate(cursors):
        resumed = list(pack(dialogs[cursor.document :], **settings, cursor=cursor))
        assert [c for _, c in resumed] == cursors[number + 1 :]
        for (row, _), (expected, _) in zip(resumed, rows[number:], strict=True):
            assert all((row[key] == expected[key]).all() for key in row)


@pytest.fixture
def make_chat(tmp_path, tokenizer):
    """Config and shards of 60 dialogs, most of them longer than T."""
    lines = (json.dumps({"messages": to_json(agent(n, num_turns=3 + n % 9))}) for n in range(60))
    (tmp_path / "chat.jsonl").write_text("\n".join(lines) + "\n")

    def make(**changes):
        source = SourceConfig(name="chat", kind="chat", path=str(tmp_path / "chat.jsonl"))
        settings = dict(packing="best_fit", heldout_fraction=0.2, long_dialogs="split", **changes)
        data = DataConfig(sources=(source,), cache_directory=str(tmp_path / "data"), **settings)
        return data, [prepare(source, data, tokenizer)]

    return make


def make_loader(data, shards, *, max_target_length=T):
    shares = source_shares(data.sources, shards, train_tokens=1000)
    return Loader(shards, data, shares=shares, max_target_length=max_target_length, seed=0)


def texts_learnt(tokenizer, rows):
    """What is learnt, in the stretches in which it stands."""
    texts = set()
    for target, mask in zip(rows["targets"], rows["loss_mask"], strict=True):
        for counted, group in itertools.groupby(range(len(mask)), key=lambda i: mask[i] > 0):
            if counted:
                texts.add(tokenizer.decode(target[list(group)]))
    return texts


def test_a_result_counts_or_not_whichever_piece_it_is_in(tokenizer, make_chat):
    data, shards = make_chat(observation_loss=0.5)
    found = []
    for max_target_length in (T, 4000):
        with make_loader(data, shards, max_target_length=max_target_length) as rows_loader:
            rows = rows_loader.next_rows(6 * 64)  # more than an epoch
        found.append(texts_learnt(tokenizer, rows))
    assert found[0] == found[1] and len(found[0]) > 300
    data, shards = make_chat(observation_loss=0.0)
    with make_loader(data, shards) as rows_loader:
        answers = texts_learnt(tokenizer, rows_loader.next_rows(6 * 64))
    num_results = sum(m.is_tool for n in range(60) for m in agent(n, num_turns=3 + n % 9))
    assert answers < found[0] and 0.2 < len(found[0] - answers) / num_results < 0.6


def test_a_run_resumes_within_a_dialog_bit_for_bit(make_chat, monkeypatch):
    monkeypatch.setattr(packing_module, "GROUP_ROWS", 5)
    data, shards = make_chat(observation_loss=0.5, prefetch_rows=3)
    with make_loader(data, shards) as whole, make_loader(data, shards) as resumed:
        states, rows = [whole.state()], []
        for _ in range(60):
            rows.append(whole.next_rows(1))
            states.append(json.loads(json.dumps(whole.state())))
        assert any(state["cursors"][0]["0"]["offset"] for state in states)
        for at in range(0, 58, 3):
            resumed.restore(states[at])
            for expected in rows[at : at + 2]:
                found = resumed.next_rows(1)
                assert all(found[key].tobytes() == expected[key].tobytes() for key in found)
            assert resumed.state() == states[at + 2]


def test_held_out_dialogs_are_split_too(tokenizer, make_chat):
    data, shards = make_chat()
    shares = source_shares(data.sources, shards, train_tokens=1000)
    split_rows, whole_rows = (
        heldout_rows(shards, data, shares=shares, max_target_length=length, num_rows=999)
        for length in (T, 4000)
    )
    assert split_rows["loss_mask"].sum() == whole_rows["loss_mask"].sum() > 0
    first = split_rows["tokens"][(split_rows["positions"] == 0) & (split_rows["segment_ids"] > 0)]
    assert {*first.tolist()} == {tokenizer.bos_id}  # a cut would begin anywhere
    assert len(first) > shards[0].split("heldout").documents


@pytest.mark.parametrize("looked_at", [1, 99])
def test_the_start_of_a_run_says_what_is_split(
    tmp_path, tokenizer, make_chat, monkeypatch, looked_at
):
    monkeypatch.setattr(loader, "_DIALOGS_LOOKED_AT", looked_at)
    data, shards = make_chat()
    lengths = shards[0].lengths("train")
    batch = BatchConfig(max_target_length=T, per_device_batch_size=1)
    text = "\n".join(
        loop._describe_data(shards, tokenizer, tiny_run(tmp_path, data=data, batch=batch))
    )
    longer = int((lengths - 1 > T).sum())
    whose = " (of the first 1 of them)" if looked_at == 1 else ""
    said_first = (
        f"source chat: {longer} dialogs of {len(lengths)} are longer than T {T} and are split"
    )
    assert f"{said_first} at turns{whose}: " in text and "; 0 of what is learnt are lost" in text
    assert loader.describe_long_dialogs(shards[0], data, max_target_length=4000) is None


def test_splitting_needs_rows_that_keep_pieces_whole():
    with pytest.raises(ValueError, match=r"'concat_then_split', which cuts .* data\.packing='best"):
        DataConfig(sources=(), long_dialogs="split")
    with pytest.raises(ValueError, match=r"long_dialogs.*'splitt'.*'cut'"):
        DataConfig(sources=(), packing="best_fit", long_dialogs="splitt")


def test_observation_marks_do_not_reach_across_results(tokenizer):
    """Two results in a row are two draws, whatever marks their headers have."""
    tokens = dialog_tokens(tokenizer, agent(3))
    marked = (tokens & OBSERVATION_MARK) > 0
    assert not (marked & ((tokens & MESSAGE_MARK) > 0)).any()
