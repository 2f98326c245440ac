"""The tokenizer of a run: loaded, or trained once on the training split and kept by the shards."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from cwm_jax.config import DataConfig, TokenizerConfig
from cwm_jax.data.sources import corpus_fingerprint
from cwm_jax.data.split import SPLIT_RULE, training_texts
from cwm_jax.tokenizer import Tokenizer, load_tokenizer, train_tokenizer


def load_or_train_tokenizer(config: TokenizerConfig, data_config: DataConfig) -> Tokenizer:
    """The configured tokenizer; a BPE trained by an earlier call on the same text is found again.

    Raises:
        ValueError: the file is no tokenizer, or the text is too short for the vocabulary.
    """
    if config.path is not None:
        return load_tokenizer(config.path)
    assert config.vocab_size is not None  # TokenizerConfig has one of the two
    described = {
        "vocab_size": config.vocab_size,
        "training_bytes": config.training_bytes,
        "heldout_fraction": data_config.heldout_fraction,
        "split_rule": SPLIT_RULE,
        "sources": [
            [s.name, s.kind, s.text_field, s.weight, corpus_fingerprint(s)]
            for s in data_config.sources
        ],
    }
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    folder = Path(data_config.cache_directory) / f"tokenizer-{key}"
    if not folder.exists():
        _train(config, data_config, folder)
    return load_tokenizer(folder)


def _train(config: TokenizerConfig, data_config: DataConfig, folder: Path) -> None:
    texts = training_texts(
        data_config.sources,
        heldout_fraction=data_config.heldout_fraction,
        training_bytes=config.training_bytes,
    )
    assert config.vocab_size is not None
    tokenizer = train_tokenizer(texts, config.vocab_size)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-tokenizer-", dir=folder.parent) as beside:
        tokenizer.save(Path(beside) / "tokenizer")
        try:
            os.replace(Path(beside) / "tokenizer", folder)
        except OSError:
            if not folder.exists():  # otherwise another process was first, with the same text
                raise
