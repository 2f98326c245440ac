"""The tokenizer against tiktoken and transformers, and the chat template against its pieces."""

from __future__ import annotations

import base64
import email.message
import json
import random
import re
import textwrap
from pathlib import Path

import pytest
import tiktoken
import transformers

from cwm_jax import storage
from cwm_jax.tokenizer import (
    MAX_SLICE_CHARACTERS,
    SPECIAL_TOKEN_OFFSETS,
    SPLIT_PATTERN,
    Tokenizer,
    load_tokenizer,
    split_at_special_tokens,
    train_tokenizer,
)

SOURCES = [Path(module.__file__).read_text() for module in (textwrap, random, email.message)]
VOCAB_SIZE = 1200
NASTY = [
    "",
    " ",
    "     \n\n \t\r\n  x  \n",
    "a\r\nb\rc\n\r\n\n",
    "def f(x):\n\treturn x  # über naïve ½ ①\n",
    "1234567 3.14159 1,000,000 ٣٤٥٦ Ⅷ²",
    "I'm YOU'LL they'Re don'T 'ſ it''s",
    "🦄👨\u200d👩\u200d👧 e\u0301 ß ǅ 𝔸 中文한국어 عربى",
    "\ufeffbom\x00nul\x0b\x85\u2028\xa0\u3000end",
    "<|eot_id|><|begin_of_text|> <|frame_sep|>",
    " " * 3000 + "=" * 300 + "x" * 300,
    "lone \ud800 and pair \ud83e\udd84",
]
DIALOG = [{"role": "system", "content": "  sys  "}, {"role": "user", "content": " hi\n"}]


def write_ranks(path: Path, tokens: list[bytes]) -> Path:
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)]
    path.write_bytes(b"".join(lines))
    return path


def mergeable(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size - 256)]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(SOURCES, VOCAB_SIZE)


@pytest.fixture(scope="module")
def folder(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "new" / "folder"
    trained.save(path, model_max_length=4096)
    return path


@pytest.fixture(scope="module")
def auto(folder: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def oracle(trained: Tokenizer) -> tiktoken.Encoding:
    ranks = {token: rank for rank, token in enumerate(mergeable(trained))}
    return tiktoken.Encoding(
        "oracle", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    special = list(SPECIAL_TOKEN_OFFSETS)
    parts = [*"".join(NASTY[1:10]), *SOURCES[0].split(" "), *special, "'s", "\r\n", "    ", "<|"]
    return ["".join(rng.choices(parts, k=rng.randint(1, 40))) for _ in range(count)]


def test_ids_equal_tiktokens(trained, oracle):
    texts = [*NASTY, *SOURCES, *random_texts(2000)]
    expected = [oracle.encode_ordinary(text) for text in texts]
    assert [trained.encode(text) for text in texts] == expected
    assert trained.encode_batch(texts) == expected


@pytest.mark.parametrize("seed", range(20))
def test_merges_from_arbitrary_ranks_equal_tiktokens(seed, tmp_path):
    """Ranks that no training gives: tokens that only a detour, or nothing, leads to."""
    rng = random.Random(seed)
    words = {"".join(rng.choices("ab", k=rng.randint(2, 6))).encode() for _ in range(25)}
    tokens = [bytes([byte]) for byte in range(256)] + rng.sample(sorted(words), len(words))
    tokenizer = load_tokenizer(write_ranks(tmp_path / "tokenizer.model", tokens))
    ranks = {token: rank for rank, token in enumerate(tokens)}
    reference = tiktoken.Encoding(
        "random", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    for _ in range(300):
        text = "".join(rng.choices("ab", k=rng.randint(1, 14)))
        assert tokenizer.encode(text) == reference.encode_ordinary(text)


def test_formats_round_trip(trained, folder, auto, tmp_path):
    from_ranks = load_tokenizer(write_ranks(tmp_path / "tokenizer.model", mergeable(trained)))
    from_json = load_tokenizer(folder / "tokenizer.json")
    plain = [text for text in [*NASTY[:-1], *SOURCES] if "<|" not in text]
    for other in (from_ranks, from_json, load_tokenizer(folder), load_tokenizer(tmp_path)):
        assert other.fingerprint == trained.fingerprint
        assert other.special_tokens == trained.special_tokens
        assert other.encode_batch(plain) == trained.encode_batch(plain)
    for text in plain:
        assert auto(text)["input_ids"] == trained.encode(text)
        assert auto.decode(trained.encode(text)) == text
    assert train_tokenizer(SOURCES[:1], 600).fingerprint != trained.fingerprint


def test_saved_folder(folder, auto, trained):
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in folder.iterdir()} == names
    assert (auto.bos_token_id, auto.eos_token_id) == (trained.bos_id, trained.eos_id)
    assert (auto.pad_token_id, auto.model_max_length) == (trained.pad_id, 4096)
    assert len(auto) == trained.vocab_size == VOCAB_SIZE
    assert {name: auto.convert_tokens_to_ids(name) for name in trained.special_tokens} == (
        trained.special_tokens
    )
    trained.save(folder, model_max_length=4096)  # over what is there
    assert load_tokenizer(folder).fingerprint == trained.fingerprint


def test_training_is_deterministic(trained):
    again = train_tokenizer(iter(SOURCES), VOCAB_SIZE)
    assert again.fingerprint == trained.fingerprint
    assert again.encode(SOURCES[0]) == trained.encode(SOURCES[0])


def test_text_never_yields_special_ids(trained):
    for text in [*NASTY, *trained.special_tokens, *random_texts(2000)]:
        ids = trained.encode(text)
        assert max(ids, default=0) < trained.bos_id
        if not re.search("[\ud800-\udfff]", text):
            assert trained.decode(ids) == text


def test_names_of_special_tokens_are_single_ids_where_asked(trained, auto):
    texts = [
        *NASTY,
        "<|begin_of_text|><|trace_context_start|>def f():\n    ...\n<|frame_sep|><|end_of_text|>",
        "a <|frame_sep|>\n b<|frame_sep|><|frame_sep|> <|frame_sep| <|no_name|> <|arg_sep|>",
        *trained.special_tokens,
    ]
    encoded = trained.encode_with_special_tokens_batch(texts)
    for text, ids in zip(texts, encoded, strict=True):
        assert trained.encode_with_special_tokens(text) == ids
        expected = auto(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        assert ids == expected["input_ids"]
        named = [i for i in ids if i >= trained.vocab_size - 256]
        assert [trained.decode([i]) for i in named] == split_at_special_tokens(text)[1::2]
    assert encoded[-256:] == [[i] for i in trained.special_tokens.values()]


def test_any_bytes_round_trip(trained):
    rng = random.Random(1)
    data = [
        b"",
        b"\xff",
        b"ok \xe4\xb8 cut",
        b"\xed\xa0\x80 surrogate",
        b"caf\xc3\xa9 \xc3",
        b"\xc0\x80",
    ]
    data += [rng.randbytes(rng.randint(1, 60)) for _ in range(500)]
    data += [text.encode("utf-8", "replace") for text in NASTY]
    encoded = [trained.encode_bytes(document) for document in data]
    assert [trained.decode_bytes(ids) for ids in encoded] == data
    assert trained.encode_bytes_batch(data) == encoded
    assert max(max(ids, default=0) for ids in encoded) < trained.bos_id
    assert trained.encode_bytes(NASTY[4].encode()) == trained.encode(NASTY[4])
    assert len(trained.encode_bytes(b"\xfe\xff")) == 2


def test_decode(trained):
    ids = [trained.bos_id, *trained.encode("é"), trained.special_tokens["<|frame_sep|>"]]
    assert trained.decode(ids) == "<|begin_of_text|>é<|frame_sep|>"
    assert trained.decode(trained.encode_bytes(b"a\xffb")) == "a\ufffdb"
    for wrong in (-1, trained.vocab_size):
        with pytest.raises(ValueError, match=f"token id {wrong}: expected 0 to 1199"):
            trained.decode([0, wrong])


def test_long_text_is_encoded_in_slices(trained):
    text = "x" + " word" * (MAX_SLICE_CHARACTERS // 5) + " tail"
    slices = [text[:MAX_SLICE_CHARACTERS], text[MAX_SLICE_CHARACTERS:]]
    expected = trained.encode(slices[0]) + trained.encode(slices[1])
    assert trained.encode(text) == expected
    assert trained.encode_batch(["a", text, ""]) == [trained.encode("a"), expected, []]
    assert trained.decode(expected) == text


def test_released_ids():
    """The table of Meta's code, over 128,000 ranks; the ranks do not matter here."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b"%x" % number for number in range(0x10000, 0x10000 + 128_000 - 256)]
    ids = Tokenizer(tokens, []).special_tokens
    expected = {
        "<|begin_of_text|>": 128000,
        "<|end_of_text|>": 128001,
        "<|reserved_special_token_2|>": 128002,
        "<|pad|>": 128004,
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eom_id|>": 128008,
        "<|eot_id|>": 128009,
        "<|frame_sep|>": 128100,
        "<|action_sep|>": 128101,
        "<|return_sep|>": 128102,
        "<|call_sep|>": 128103,
        "<|line_sep|>": 128104,
        "<|exception_sep|>": 128105,
        "<|arg_sep|>": 128106,
        "<|trace_context_start|>": 128107,
        "<|reasoning_thinking_start|>": 128120,
        "<|reasoning_thinking_end|>": 128121,
        "<|reserved_special_token_255|>": 128255,
    }
    assert {name: ids[name] for name in expected} == expected
    assert list(ids.values()) == list(range(128_000, 128_256))


# Chat template ---------------------------------------------------------------------------------


def message(tokenizer: Tokenizer, role: str, body: str, *, end: bool = True) -> list[int]:
    """A message as Meta's code encodes it, piece by piece."""
    special, encode = tokenizer.special_tokens, tokenizer.encode
    header = [special["<|start_header_id|>"], *encode(role), special["<|end_header_id|>"]]
    return header + encode("\n\n") + encode(body) + ([special["<|eot_id|>"]] if end else [])


def render(auto, messages, *, add_generation_prompt=True, **options) -> list[int]:
    return auto.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, return_dict=False, **options
    )


def test_dialog_prompt(auto, trained):
    start = [
        trained.bos_id,
        *message(trained, "system", "sys"),
        *message(trained, "user", "hi"),
    ]
    answer = message(trained, "assistant", "", end=False)
    assert render(auto, DIALOG, add_generation_prompt=False) == start
    assert render(auto, DIALOG) == start + answer + trained.encode("<think>\n")
    assert render(auto, DIALOG, enable_thinking=False) == start + answer
    prefix = [*DIALOG, {"role": "assistant", "content": "<think>\n"}]
    assert render(auto, prefix) == render(auto, DIALOG)


def test_default_system_prompt(auto, trained):
    prompt = (
        "You are a helpful AI assistant. You always reason before responding, using the following "
        "format:\n\n<think>\nyour internal reasoning\n</think>\nyour external response"
    )
    explicit = [{"role": "system", "content": prompt}, DIALOG[1]]
    assert render(auto, DIALOG[1:]) == render(auto, explicit)
    assert render(auto, DIALOG[1:], enable_thinking=False) == [
        trained.bos_id,
        *message(trained, "user", "hi"),
        *message(trained, "assistant", "", end=False),
    ]


def test_tool_and_assistant_turns(auto, trained):
    turns = [
        *DIALOG,
        {"role": "assistant", "content": " call \n"},
        {"role": "tool", "name": "bash", "content": "  out \n"},
        {"role": "tool: python ", "content": None},
        {"role": "assistant", "content": "an open "},
    ]
    expected = [
        *render(auto, DIALOG, add_generation_prompt=False),
        *message(trained, "assistant", "call"),
        *message(trained, "tool: bash", "  out \n"),
        *message(trained, "tool: python", ""),
    ]
    assert render(auto, turns[:-1]) == (
        expected + message(trained, "assistant", "<think>\n", end=False)
    )
    assert render(auto, turns) == expected + message(trained, "assistant", "an open ", end=False)
    closed = expected + message(trained, "assistant", "an open")
    assert render(auto, turns, add_generation_prompt=False) == closed


def test_reasoning_of_previous_turns(auto):
    def dialog(*answers: dict[str, str]) -> list[dict[str, str]]:
        turns = [
            [{"role": "assistant"} | answer, {"role": "user", "content": "and?"}]
            for answer in answers
        ]
        return DIALOG + [turn for pair in turns for turn in pair]

    spelled = {"content": "<think>\nhm </think\n</think>\nyes </think>"}
    separate = {"content": "yes </think>", "reasoning_content": "hm </think"}
    dropped = {"content": "yes </think>"}
    assert render(auto, dialog(separate)) == render(auto, dialog(spelled))
    for turn in (spelled, separate):
        short = render(auto, dialog(turn, turn), preserve_previous_think=False)
        assert short == render(auto, dialog(dropped, dropped))
        last = dialog(turn, turn)[:-1]
        half = render(auto, last, preserve_previous_think=False, add_generation_prompt=False)
        kept = dialog(dropped, spelled)[:-1]
        assert half == render(auto, kept, add_generation_prompt=False)
    assert render(auto, dialog(spelled)) != render(auto, dialog(dropped))


def test_content_parts(auto):
    parts = [{"type": "text", "text": " h"}, {"type": "text", "text": "i\n"}]
    assert render(auto, [DIALOG[0], {"role": "user", "content": parts}]) == render(auto, DIALOG)


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        ({"role": "critic", "content": "x"}, "message role 'critic'"),
        ({"role": "tool", "content": "x"}, "a tool message has no name"),
        ({"role": "user", "content": [{"type": "image"}]}, "message part of type 'image'"),
    ],
)
def test_template_refuses(auto, turn, problem):
    with pytest.raises(Exception, match=problem):
        render(auto, [turn])


# Faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"\x0c\x0bsentencepiece", r"line 2: got .*expected tiktoken's 'base64 rank'"),
        (b"YQ", "line 2: got b'YQ'"),
        (b"Y 1", "line 2: got b'Y 1'"),
        (b"YWI= x", "line 2: got b'YWI= x'"),
        (b"=A== 1", "line 2: got b'=A== 1'"),
        (b"AQ== 1\nYWI= 1", "token b'ab' has rank 1; expected 2"),
        (b"YWI= 9999", "has rank 2; expected 1"),
        (b"AA== 1", "has rank 1; expected 0"),
    ],
)
def test_damaged_rank_files(line, problem, tmp_path):
    path = write_ranks(tmp_path / "tokenizer.model", [bytes([byte]) for byte in range(256)])
    lines = path.read_bytes().splitlines()
    lines[1] = line
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=problem):
        load_tokenizer(path)


def test_rank_file_without_a_byte(tmp_path):
    path = write_ranks(tmp_path / "tokenizer.model", [bytes([byte]) for byte in range(1, 256)])
    with pytest.raises(ValueError, match="1 single bytes are no tokens, 0x00 first"):
        load_tokenizer(path)


def test_nothing_to_load(tmp_path):
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        with pytest.raises(ValueError, match="nothing to read there; expected"):
            load_tokenizer(path)


def _unigram(spec):
    spec["model"] = {"type": "Unigram", "vocab": [["a", 0.0]]}


def _no_byte_level(spec):
    spec["pre_tokenizer"] = {"type": "Whitespace"}


def _other_split(spec):
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+"


def _normalizer(spec):
    spec["normalizer"] = {"type": "NFC"}


def _no_ignore_merges(spec):
    del spec["model"]["ignore_merges"]


def _no_special(spec):
    spec["added_tokens"].clear()


def _renamed_special(spec):
    spec["added_tokens"][9]["content"] = "<|other|>"


def _extra_special(spec):
    spec["added_tokens"].append({"content": "<|image|>", "id": VOCAB_SIZE})


def _not_bytes(spec):
    spec["model"]["vocab"]["中"] = spec["model"]["vocab"].pop("Ġ")


def _no_model(spec):
    del spec["model"]


def _swapped_merges(spec):
    merges = spec["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


def _lost_merge(spec):
    spec["model"]["merges"].pop()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_unigram, 'type is "Unigram"; expected "BPE"'),
        (_no_byte_level, r"pre_tokenizer is \[\]; expected \[{"),
        (_other_split, r"pre_tokenizer is .*\\\\w\+"),
        (_normalizer, r'normalizer is {"type": "NFC"}; expected null'),
        (_no_ignore_merges, "ignore_merges is false; expected true"),
        (_no_special, r"0 added tokens, <\|begin_of_text\|> with id None; expected 944 to 1199"),
        (_renamed_special, r"256 added tokens, <\|eot_id\|> with id None"),
        (_extra_special, "257 added tokens, others; expected 944 to 1199"),
        (_not_bytes, "KeyError '中'; expected a byte-level BPE"),
        (_no_model, "KeyError 'model'; expected a byte-level BPE"),
        (_swapped_merges, "its merges do not follow the ids"),
        (_lost_merge, "its merges lack 1 that the ids imply"),
    ],
)
def test_foreign_json_files(damage, problem, folder, tmp_path):
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    damage(spec)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(ValueError, match=problem):
        load_tokenizer(path)


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff\xfe"])
def test_broken_json_files(data, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="expected a byte-level BPE in Hugging Face's"):
        load_tokenizer(path)


def test_training_asks_for_what_is_possible():
    with pytest.raises(ValueError, match="vocab_size is 511; expected 512 or more"):
        train_tokenizer(SOURCES, 511)
    with pytest.raises(ValueError, match="1 merges, enough for 513; ask for 513"):
        train_tokenizer(["ab ab"], 600)
    assert train_tokenizer(["ab ab"], 513).vocab_size == 513
    assert train_tokenizer([], 512).decode([*range(256)][-1:]) == "\ufffd"


def test_a_failed_save_keeps_the_old_file(trained, tmp_path, monkeypatch):
    trained.save(tmp_path)
    old = (tmp_path / "tokenizer.json").read_bytes()
    synced = []

    def fail_at_the_third(descriptor: int) -> None:  # tokenizer.json is written last
        synced.append(descriptor)
        if len(synced) == 3:
            raise OSError("disk full")

    monkeypatch.setattr(storage.os, "fsync", fail_at_the_third)
    with pytest.raises(OSError, match="disk full"):
        train_tokenizer(SOURCES[:1], 600).save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == old
    assert load_tokenizer(tmp_path).fingerprint == trained.fingerprint
