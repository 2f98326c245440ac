"""Problems that stand in training data are found wherever it lies, and others are not."""

import json
import textwrap
from pathlib import Path

import pytest
import trace_corpora

from cwm_jax.config import DataConfig, SourceConfig
from cwm_jax.data.prepare import prepare
from cwm_jax.evals import contamination
from cwm_jax.evals.contamination import check, contamination_from_json, words_of
from cwm_jax.tokenizer import train_tokenizer

WORDS = [f"word{n}" for n in range(200)]
LONG = " ".join(WORDS[:40])
PROBLEMS = {
    "long": LONG,
    "ten": " ".join(WORDS[50:60]),
    "short": "too few words",
    "absent": " ".join(WORDS[100:140]),
}


def found(path: Path, tokenizer=None, problems=PROBLEMS) -> list[str]:
    return [item.problem for item in check(problems, [path], tokenizer).found]


def jsonl(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"a": {"b": [1, text]}}) + "\n" for text in texts))
    return path


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not(tmp_path):
    thirteen = "before " + "\n-- ".join(WORDS[10:23]).upper() + " after"
    result = check(PROBLEMS, [jsonl(tmp_path / "a.jsonl", "other", thirteen)], None)
    (item,) = result.found
    assert (item.problem, item.document) == ("long", "a.jsonl:2")
    assert item.share == pytest.approx(1 / 28) and item.jaccard == 0
    assert result.num_documents == 2 and result.num_short == 1
    twelve = "before before before " + " ".join(WORDS[10:22]) + " after after after"
    assert found(jsonl(tmp_path / "b.jsonl", twelve)) == []
    assert contamination_from_json(json.loads(json.dumps(result.to_json()))) == result


def test_of_shorter_problems_all_words_must_be_there(tmp_path):
    assert found(jsonl(tmp_path / "a.jsonl", f"x {' '.join(WORDS[50:60])} y")) == ["ten"]
    assert found(jsonl(tmp_path / "b.jsonl", f"x {' '.join(WORDS[51:60])} y too few words")) == []


def test_what_many_problems_share_is_no_evidence(tmp_path):
    ending = " ".join(WORDS[160:180])
    problems = {f"p{n}": f"{n} is the number of this one; {ending}" for n in range(11)}
    path = jsonl(tmp_path / "a.jsonl", ending)
    assert found(path, problems=problems) == []
    assert found(path, problems=dict([*problems.items()][:10])) == [f"p{n}" for n in range(10)]


def test_near_duplicates_are_found_though_no_long_run_is_equal(tmp_path):
    words = [f"w{n % 90}x{n}" for n in range(400)]
    changed = [f"new{n}" if n % 12 == 0 else word for n, word in enumerate(words)]
    problems = {"long": " ".join(words), "half": " ".join(words[:200])}
    assert found(jsonl(tmp_path / "far.jsonl", " ".join(changed)), problems=problems) == []
    few = [word for n, word in enumerate(words) if n % 60]
    result = check(problems, [jsonl(tmp_path / "near.jsonl", " ".join(few))], None)
    by_name = {item.problem: item for item in result.found}
    assert by_name["long"].jaccard >= 0.8 and by_name["half"].jaccard == 0


def test_texts_shards_and_trace_corpora_are_read(tmp_path):
    texts = tmp_path / "texts"
    (texts / "below").mkdir(parents=True)
    (texts / "a.py").write_text("nothing of it")
    (texts / "below" / "b.md").write_text(f"see {LONG}")
    (texts / "c.jsonl").write_text(json.dumps({"x": PROBLEMS["ten"]}) + "\n")
    assert found(texts) == ["long", "ten"]

    tokenizer = train_tokenizer([Path(textwrap.__file__).read_text()], 576)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for n in range(12):
        (corpus / f"{n}.txt").write_text(f"{n} {LONG}")
    source = SourceConfig(name="texts", kind="folder", path=str(corpus))
    config = DataConfig(
        sources=(source,), cache_directory=str(tmp_path / "cache"), heldout_fraction=0.3
    )
    shards = prepare(source, config, tokenizer)
    for path in (shards.folder, tmp_path / "cache"):
        assert found(path, tokenizer) == ["long"]
    num_train = shards.split("train").documents
    assert check(PROBLEMS, [shards.folder], tokenizer).num_documents == num_train < 12
    with pytest.raises(ValueError, match="expected the tokenizer"):
        found(shards.folder)


def test_traces_are_read_from_corpora_and_from_shards_whose_tokens_are_marked(tmp_path):
    context = f"# {LONG}\n" + trace_corpora.CONTEXT
    episodes = [trace_corpora.episode(f"p{n}", 3, context=context) for n in range(12)]
    trace_corpora.write_trace_corpus(tmp_path / "traces", episodes)
    assert found(tmp_path / "traces") == ["long"]
    tokenizer = train_tokenizer([Path(textwrap.__file__).read_text()], 576)
    source = SourceConfig(name="traces", kind="traces", path=str(tmp_path / "traces"))
    config = DataConfig(
        sources=(source,), cache_directory=str(tmp_path / "cache"), heldout_fraction=0.3
    )
    assert found(prepare(source, config, tokenizer).folder, tokenizer) == ["long"]


def test_what_is_no_training_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not there"):
        found(tmp_path / "no")
    (tmp_path / "a.jsonl").write_text("{}\n{\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2 is not JSON"):
        found(tmp_path / "a.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"no readable manifest\.json"):
        found(tmp_path / "folder")


def test_words_are_letters_digits_and_underscores():
    assert words_of("Def f_1(x): return 'Ä-3.5'") == ["def", "f_1", "x", "return", "ä", "3", "5"]
    assert contamination.NGRAM_WORDS == 13
