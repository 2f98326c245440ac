"""A corpus of execution traces: read, split by program, tokenised and masked."""

import dataclasses
import json

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from trace_corpora import CALLER, episode, write_trace_corpus

from cwm_jax.config import DataConfig, SourceConfig
from cwm_jax.data.loader import Loader, heldout_rows
from cwm_jax.data.mixture import source_shares
from cwm_jax.data.prepare import prepare
from cwm_jax.data.shards import CONTEXT_MARK, tokens_from_record
from cwm_jax.data.sources import DataError, corpus_fingerprint, documents
from cwm_jax.data.split import is_heldout, training_texts
from cwm_jax.tokenizer import split_at_special_tokens

EPISODES = [
    episode(f"program{p}", n, num_frames=2 + (p + n) % 5, finished=(p + n) % 4 > 0)
    for p in range(30)
    for n in range(3)
]


@pytest.fixture
def source(tmp_path):
    write_trace_corpus(tmp_path / "traces", EPISODES[:50], EPISODES[50:])
    return SourceConfig(name="traces", kind="traces", path=str(tmp_path / "traces"))


@pytest.fixture
def data_config(source, tmp_path):
    return DataConfig(
        sources=(source,), cache_directory=str(tmp_path / "cache"), heldout_fraction=0.2
    )


def records_of(shards, split):
    with ArrayRecordDataSource(shards.paths(split)) as records:
        return [tokens_from_record(records[i]) for i in range(len(records))]


def split_of(one_episode):
    return "heldout" if is_heldout(one_episode["name"].split("#")[0], 0.2) else "train"


def test_documents_are_the_episodes_in_the_order_of_the_manifest(source):
    found = [(d.name, d.context, d.data.decode()) for d in documents(source)]
    assert found == [(e["name"], e["prompt"], e["frames"]) for e in EPISODES]


def test_records_are_the_tokens_of_prompt_and_frames_with_the_prompt_marked(data_config, tokenizer):
    shards = prepare(data_config.sources[0], data_config, tokenizer)
    for split in ("train", "heldout"):
        expected = [e for e in EPISODES if split_of(e) == split]
        assert expected
        for tokens, one in zip(records_of(shards, split), expected, strict=True):
            prompt, frames = tokenizer.encode_with_special_tokens_batch(
                [one["prompt"], one["frames"]]
            )
            assert (tokens & ~CONTEXT_MARK).tolist() == [*prompt, *frames]
            marked = (tokens & CONTEXT_MARK) > 0
            assert marked.tolist() == [True] * len(prompt) + [False] * len(frames)
            assert (tokens[-1] == tokenizer.eos_id) == one["finished"]


def test_all_episodes_of_a_program_fall_on_one_side():
    sides = {}
    for one in EPISODES:
        sides.setdefault(one["name"].split("#")[0], set()).add(split_of(one))
    assert all(len(found) == 1 for found in sides.values())
    assert {side for found in sides.values() for side in found} == {"train", "heldout"}
    by_whole_name = {is_heldout(e["name"], 0.2) == (split_of(e) == "heldout") for e in EPISODES}
    assert by_whole_name == {True, False}  # the rule makes a difference here


@pytest.mark.parametrize("packing", ["concat_then_split", "first_fit", "best_fit"])
@pytest.mark.parametrize("context_loss", [False, True])
def test_the_loss_counts_the_frames_and_on_request_the_context(
    data_config, tokenizer, packing, context_loss
):
    config = dataclasses.replace(data_config, packing=packing, trace_context_loss=context_loss)
    shards = [prepare(config.sources[0], config, tokenizer)]
    shares = source_shares(config.sources, shards, train_tokens=1000)
    rows = heldout_rows(
        shards, config, shares=shares, max_target_length=64, num_rows=10**6
    )  # the whole split, once
    ours = [e for e in EPISODES if split_of(e) == "heldout"]
    lengths = [
        [len(ids) for ids in tokenizer.encode_with_special_tokens_batch([e["prompt"], e["frames"]])]
        for e in ours
    ]
    expected = sum(
        frames + (prompt - 1 if context_loss else 0) for prompt, frames in lengths
    )  # a document's first token is nobody's target
    assert int(rows["loss_mask"].sum()) == expected
    assert rows["tokens"].max() < tokenizer.vocab_size and rows["targets"].min() >= 0
    assert int((rows["segment_ids"] > 0).sum()) == sum(map(sum, lengths)) - len(ours)


def test_masked_targets_are_those_before_the_frames(data_config, tokenizer):
    config = dataclasses.replace(data_config, shuffle=False)
    shards = [prepare(config.sources[0], config, tokenizer)]
    shares = source_shares(config.sources, shards, train_tokens=1000)
    with Loader(shards, config, shares=shares, max_target_length=600, seed=0) as loader:
        row = loader.next_rows(1)
    first = next(e for e in EPISODES if split_of(e) == "train")
    prompt = tokenizer.encode_with_special_tokens_batch([first["prompt"]])[0]
    mask = row["loss_mask"][0][row["segment_ids"][0] == 1]
    np.testing.assert_array_equal(mask, np.arange(1, len(mask) + 1) >= len(prompt))


def test_a_tokenizer_learns_from_the_text_between_special_tokens(source):
    texts = list(training_texts([source], heldout_fraction=0.2, training_bytes=10**9))
    expected = [
        piece
        for e in EPISODES
        if split_of(e) == "train"
        for piece in split_at_special_tokens(e["prompt"] + e["frames"])[::2]
        if piece
    ]
    assert texts == expected and not any("<|" in text for text in texts)


def test_the_same_corpus_elsewhere_is_the_same_and_another_is_not(source, tmp_path):
    for name, episodes in (("copy", EPISODES), ("other", EPISODES[:-1])):
        write_trace_corpus(tmp_path / name, episodes[:50], episodes[50:])
    copy, other = (
        dataclasses.replace(source, path=str(tmp_path / name)) for name in ("copy", "other")
    )
    assert corpus_fingerprint(copy) == corpus_fingerprint(source) != corpus_fingerprint(other)


def outputs_of(tmp_path, episodes):
    write_trace_corpus(tmp_path / "traces", episodes)
    path = str(tmp_path / "traces")
    return SourceConfig(name="outputs", kind="trace_outputs", path=path)


def test_outputs_are_assertions_whose_context_is_marked(tmp_path, tokenizer):
    callers = [episode(f"p{n}", n, context=CALLER) for n in range(20)]
    source = outputs_of(tmp_path, callers)
    config = DataConfig(
        sources=(source,), cache_directory=str(tmp_path / "cache"), heldout_fraction=0.2
    )
    shards = prepare(source, config, tokenizer)
    records = [record for split in ("train", "heldout") for record in records_of(shards, split)]
    assert len(records) == 20
    programs = [
        f"def count_p{n}(x):\n    x = x + {n}\n    return x\n"
        f"def main():\n    return count_p{n}({n})\n"
        for n in range(20)
    ]
    prompts = [f"<|begin_of_text|>{program}\nassert main() == " for program in programs]
    answer = tokenizer.encode_with_special_tokens_batch(["7\n<|end_of_text|>"])[0]
    expected = [
        np.array([*(np.array(ids) | int(CONTEXT_MARK)), *answer])
        for ids in tokenizer.encode_with_special_tokens_batch(prompts)
    ]
    assert {r.tobytes() for r in records} == {e.astype("<u4").tobytes() for e in expected}


def test_episodes_without_an_output_to_assert_are_left_out(tmp_path, tokenizer):
    good = [episode(f"p{n}", n, context=CALLER) for n in range(20)]
    cut = episode("cut", 1, finished=False, context=CALLER)
    no_main = episode("nomain", 1)
    source = outputs_of(tmp_path, [*good, cut, no_main])
    config = DataConfig(
        sources=(source,), cache_directory=str(tmp_path / "cache"), heldout_fraction=0.2
    )
    manifest = prepare(source, config, tokenizer).manifest
    assert manifest.train.documents + manifest.heldout.documents == 20
    assert manifest.empty_documents == 2


def test_traces_and_outputs_of_a_program_fall_on_one_side(source, tmp_path):
    for kind in ("traces", "trace_outputs"):
        found = documents(dataclasses.replace(source, kind=kind))
        assert {d.split_name for d in found} == {e["name"].split("#")[0] for e in EPISODES}


FIRST = EPISODES[1]
assert FIRST["finished"]


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (b"{", "no episode"),
        (b"[1]", "no episode"),
        (
            {k: v for k, v in FIRST.items() if k != "frames"},
            r"keys \['frames'\] too many or too few",
        ),
        (FIRST | {"frames": "<|line_sep|>"}, "sha256 of its text is .*the file is damaged"),
        (FIRST | {"prompt": FIRST["prompt"] + "<|frame_sep|>"}, "prompt goes on with '<.frame_sep"),
        (FIRST | {"prompt": "def f(): ...<|frame_sep|>"}, "expected <.begin_of_text"),
        (FIRST | {"finished": 1}, "finished is 1, but the frames end with .*end_of_text"),
        (FIRST | {"finished": False}, "finished is False, but the frames end with .*end_of_text"),
        (FIRST | {"version": 0}, "has version 0 .*; expected version 2"),
        (FIRST | {"frames": "\ud800<|end_of_text|>"}, "surrogates not allowed"),
    ],
)
def test_a_record_that_is_no_episode_is_refused_with_its_place(source, tmp_path, record, text):
    write_trace_corpus(tmp_path / "traces", EPISODES[:2], [EPISODES[2], record])
    place = r"source 'traces' \(traces\): .*traces1-00000-of-00001\.arrayrecord:1"
    with pytest.raises(DataError, match=f"(?s){place}.*{text}.*write the corpus again"):
        list(documents(source))


def test_files_that_differ_from_the_manifest_are_refused(source, tmp_path):
    (path, _) = sorted((tmp_path / "traces").glob("*.arrayrecord"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"traces0-00000.*: sha256 is .*write the corpus again"):
        list(documents(source))
    path.unlink()
    with pytest.raises(DataError, match=r"traces0-00000.*cannot be read|missing, but its manifest"):
        list(documents(source))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema_version": 2}, "is of kind 'trace-corpus', version 2; expected 'trace-corpus', 1"),
        ({"kind": "shards"}, "is of kind 'shards'"),
        ({"files": None}, "no readable manifest"),
        ({"files": [{"name": "x"}]}, "no readable manifest"),
        ({"files": []}, "holds no document"),
    ],
)
def test_other_manifests_are_refused(source, tmp_path, change, text):
    path = tmp_path / "traces" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=f"source 'traces' .*{text}"):
        list(documents(source))
    path.unlink()
    with pytest.raises(DataError, match="no readable manifest"):
        corpus_fingerprint(source)
