"""The tokenizer of a run: trained once, on training text alone, whole or not there."""

import dataclasses
import textwrap
from pathlib import Path

import pytest

from cwm_jax.config import DataConfig, SourceConfig, TokenizerConfig
from cwm_jax.data import vocabulary
from cwm_jax.data.split import is_heldout
from cwm_jax.data.vocabulary import load_or_train_tokenizer

CONFIG = TokenizerConfig(vocab_size=540)
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")
TEXTS = [f"{a} {b}_{a} = {b}\n".encode() * 3 for a in WORDS for b in WORDS[:4]]


@pytest.fixture
def trainings(monkeypatch) -> list[list[str]]:
    """The texts of each training that really happens."""
    seen = []
    train = vocabulary.train_tokenizer

    def note(texts, vocab_size):
        seen.append(list(texts))
        return train(seen[-1], vocab_size)

    monkeypatch.setattr(vocabulary, "train_tokenizer", note)
    return seen


def test_it_is_trained_once_and_found_again(make_config, trainings):
    config = make_config({"a": TEXTS})
    first = load_or_train_tokenizer(CONFIG, config)
    again = load_or_train_tokenizer(CONFIG, config)
    assert len(trainings) == 1
    assert first.fingerprint == again.fingerprint
    assert first.vocab_size == CONFIG.vocab_size


def test_what_the_training_depends_on_makes_another(make_config, trainings):
    config = make_config({"a": TEXTS})
    load_or_train_tokenizer(CONFIG, config)
    (source,) = config.sources
    for tokenizer_config, data_config in (
        (dataclasses.replace(CONFIG, vocab_size=530), config),
        (dataclasses.replace(CONFIG, training_bytes=2000), config),
        (CONFIG, dataclasses.replace(config, heldout_fraction=0.3)),
        (
            CONFIG,
            dataclasses.replace(config, sources=(dataclasses.replace(source, glob="00[0-2]*"),)),
        ),
    ):
        before = len(trainings)
        load_or_train_tokenizer(tokenizer_config, data_config)
        assert len(trainings) == before + 1
    (Path(source.path) / "0001.txt").write_bytes(b"another text")
    load_or_train_tokenizer(CONFIG, config)
    assert len(trainings) == 6


def test_another_text_field_of_the_same_file_makes_another(tmp_path, trainings):
    line = '{"text": "one one_one one two", "code": "three three_three three four"}\n'
    (tmp_path / "a.jsonl").write_text(line * 20)
    for field in ("text", "code"):
        source = SourceConfig(
            name="a", kind="jsonl", path=str(tmp_path / "a.jsonl"), text_field=field
        )
        config = DataConfig(sources=(source,), cache_directory=str(tmp_path / "cache"))
        load_or_train_tokenizer(TokenizerConfig(vocab_size=515), config)
    assert [texts[0].split()[0] for texts in trainings] == ["one", "three"]


def test_heldout_text_does_not_reach_it(make_config, trainings):
    named = {f"{number:04d}.txt": text for number, text in enumerate(TEXTS)}
    config = make_config({"a": TEXTS})
    for name in named:
        if is_heldout(name, config.heldout_fraction):
            (Path(config.sources[0].path) / name).write_text("held_out secret\n" * 20)
    tokenizer = load_or_train_tokenizer(CONFIG, config)
    (texts,) = trainings
    expected = {t.decode() for n, t in named.items() if not is_heldout(n, config.heldout_fraction)}
    assert 0 < len(expected) < len(TEXTS) and set(texts) == expected
    assert len(tokenizer.encode("secret")) > 3


def test_too_little_text_is_refused_and_leaves_nothing(make_config):
    config = make_config({"a": [b"abc", b"def", b"ghi"]}, heldout_fraction=0.01)
    with pytest.raises(ValueError, match="vocab_size is 540, but the texts have 0 merges"):
        load_or_train_tokenizer(CONFIG, config)
    assert not Path(config.cache_directory).exists()


_KILLED = """
import os, signal
from cwm_jax import tokenizer
from cwm_jax.config import DataConfig, SourceConfig, TokenizerConfig
from cwm_jax.data.vocabulary import load_or_train_tokenizer

write_whole = tokenizer.write_whole
def killed(path, data):
    if path.name == "tokenizer.json":
        os.kill(os.getpid(), signal.SIGKILL)
    write_whole(path, data)

tokenizer.write_whole = killed
source = SourceConfig(name="a", kind="folder", path={path!r})
config = DataConfig(sources=(source,), cache_directory={cache!r}, heldout_fraction=0.2)
load_or_train_tokenizer(TokenizerConfig(vocab_size=540), config)
"""


def test_a_killed_training_is_not_taken_for_whole(make_config, trainings, run_until_killed):
    config = make_config({"a": TEXTS})
    script = textwrap.dedent(_KILLED).format(
        path=config.sources[0].path, cache=config.cache_directory
    )
    run_until_killed(script)
    (left,) = Path(config.cache_directory).iterdir()
    assert left.name.startswith(".tmp-") and list(left.rglob("chat_template.jinja"))
    load_or_train_tokenizer(CONFIG, config)
    assert len(trainings) == 1


def test_the_first_of_two_processes_provides_it(make_config, monkeypatch):
    config = make_config({"a": TEXTS})
    train = vocabulary.train_tokenizer

    def be_overtaken(texts, vocab_size):
        monkeypatch.setattr(vocabulary, "train_tokenizer", train)
        load_or_train_tokenizer(CONFIG, config)
        return train(texts, vocab_size)

    monkeypatch.setattr(vocabulary, "train_tokenizer", be_overtaken)
    tokenizer = load_or_train_tokenizer(CONFIG, config)
    assert tokenizer.vocab_size == CONFIG.vocab_size
    (folder,) = Path(config.cache_directory).iterdir()
    assert folder.name.startswith("tokenizer-")
