"""A tokenizer of single bytes and small corpora on disk."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cwm_jax.config import DataConfig, SourceConfig
from cwm_jax.tokenizer import (
    ACTION_SEP,
    ARG_SEP,
    BEGIN_OF_TEXT,
    CALL_SEP,
    END_OF_TEXT,
    FRAME_SEP,
    LINE_SEP,
    PAD,
    RETURN_SEP,
    TRACE_CONTEXT_START,
    split_at_special_tokens,
)


class ByteTokenizer:
    bos_id, eos_id, pad_id, vocab_size = 256, 257, 258, 266
    special_ids = {BEGIN_OF_TEXT: 256, END_OF_TEXT: 257, PAD: 258} | {
        name: 259 + number
        for number, name in enumerate(
            (TRACE_CONTEXT_START, FRAME_SEP, CALL_SEP, LINE_SEP, RETURN_SEP, ACTION_SEP, ARG_SEP)
        )
    }
    fingerprint = "one-byte-each"

    def __init__(self):
        self.encoded_documents = 0

    def encode_batch(self, texts):
        self.encoded_documents += len(texts)
        return [list(text.encode()) for text in texts]

    def encode_with_special_tokens_batch(self, texts):
        self.encoded_documents += len(texts)
        parts = [split_at_special_tokens(text) for text in texts]
        return [
            [i for n, part in enumerate(document) for i in self._ids(part, is_name=n % 2)]
            for document in parts
        ]

    def _ids(self, part, *, is_name):
        return [self.special_ids[part]] if is_name else list(part.encode())

    def encode_bytes(self, data):
        self.encoded_documents += 1
        return list(data)


@pytest.fixture
def tokenizer():
    return ByteTokenizer()


@pytest.fixture
def run_until_killed():
    """Runs a script that kills its own process."""

    def run(script):
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        killed = subprocess.run([sys.executable, "-c", script], env=env, check=False)
        assert killed.returncode == -signal.SIGKILL

    return run


@pytest.fixture
def make_config(tmp_path):
    """``make_config({"a": [b"text", ...]}, packing=...)``: a folder source for each name."""

    def make(corpora, *, weights=None, source_settings=None, **settings):
        sources = []
        for name, texts in corpora.items():
            folder = tmp_path / "corpora" / name
            folder.mkdir(parents=True, exist_ok=True)
            for number, text in enumerate(texts):
                (folder / f"{number:04d}.txt").write_bytes(text)
            sources.append(
                SourceConfig(
                    name=name,
                    kind="folder",
                    path=str(folder),
                    weight=(weights or {}).get(name, 1.0),
                    **(source_settings or {}),
                )
            )
        settings = {"heldout_fraction": 0.2, **settings}
        return DataConfig(
            sources=tuple(sources), cache_directory=str(tmp_path / "cache"), **settings
        )

    return make
