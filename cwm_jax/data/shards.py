"""Folders of tokenised documents and the manifest that each is checked against.

A folder ``<source name>-<key>`` holds ``{train,heldout}-00000-of-000NN.arrayrecord``,
``{train,heldout}-lengths.npy`` and ``manifest.json``; ``cwm_jax.data.prepare`` writes it. A record
is one document: ``bos``, its text, ``eos``, as little-endian uint32; of an execution trace its own
tokens alone, with bit 31 (``CONTEXT_MARK``) set in those before the first frame; of a dialog with
bits 30 and 29 in those that the assistant has not written, and 28 and 27 where messages and turns
begin. The lengths are the documents' tokens, uint32 in the order of the records.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from cwm_jax.config import SourceConfig
from cwm_jax.config.schema import check_types
from cwm_jax.data.sources import DataError
from cwm_jax.storage import MANIFEST, StoredFile, check_file, read_manifest

KIND, SCHEMA_VERSION = "token-shards", 4
TOKEN_DTYPE = np.dtype("<u4")
LENGTH_DTYPE = np.dtype("<u4")
# On tokens that are no targets of the loss: context of a trace and results of tools, unless the
# config says so; what users and systems say, and headers, in any case.
CONTEXT_MARK = np.uint32(1 << 31)
MASKED_MARK = np.uint32(1 << 30)
OBSERVATION_MARK = np.uint32(1 << 29)
# On the first token of each message of a dialog, and of those with which a turn begins: the user's,
# and the assistant's after a tool's result. Both are tokens of headers, so never targets.
MESSAGE_MARK = np.uint32(1 << 28)
TURN_MARK = np.uint32(1 << 27)
TOKEN_BITS = np.uint32((1 << 27) - 1)
SPLITS = ("train", "heldout")

# Up to this size, about two seconds of hashing, shards are verified each time they are opened.
VERIFY_BYTES = 1 << 30


@runtime_checkable
class TextTokenizer(Protocol):
    """What the shards need of ``cwm_jax.tokenizer.Tokenizer``."""

    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_batch(self, texts: list[str], /) -> Sequence[Sequence[int]]: ...
    def encode_bytes(self, data: bytes, /) -> Sequence[int]: ...
    def encode_with_special_tokens_batch(self, texts: list[str], /) -> Sequence[Sequence[int]]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitManifest:
    """One split: ``tokens`` counts ``bos`` and ``eos``; ``tokens_sha256`` is of ordered records."""

    documents: int
    tokens: int
    tokens_sha256: str
    files: tuple[StoredFile, ...]
    lengths: StoredFile

    def __post_init__(self) -> None:
        check_types(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds and what it was made from."""

    kind: str
    schema_version: int
    source: SourceConfig
    corpus_fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    heldout_fraction: float
    split_rule: str
    skipped_non_utf8_documents: int
    bytes_documents: int
    empty_documents: int
    train: SplitManifest
    heldout: SplitManifest

    def __post_init__(self) -> None:
        check_types(self)


@dataclasses.dataclass(frozen=True)
class Shards:
    """A folder of shards whose manifest has been checked."""

    folder: Path
    manifest: Manifest

    def split(self, name: str) -> SplitManifest:
        """The manifest of ``train`` or ``heldout``."""
        return getattr(self.manifest, name)

    def paths(self, split: str) -> list[str]:
        """The files of a split in the order of their records."""
        return [str(self.folder / file.name) for file in self.split(split).files]

    def lengths(self, split: str) -> np.ndarray:
        """Tokens of each document of a split, in the order of its records; not held in memory."""
        return np.load(self.folder / self.split(split).lengths.name, mmap_mode="r")


def open_shards(
    folder: str | os.PathLike,
    tokenizer: TextTokenizer,
    *,
    model_vocab_size: int | None = None,
    verify: bool | None = None,
) -> Shards:
    """Opens a folder that ``prepare`` has written and checks it against its manifest.

    Args:
        folder: the folder.
        tokenizer: of the run; its fingerprint must be the one the text was encoded with.
        model_vocab_size: the model's; the tokenizer's must not exceed it.
        verify: compare the files' SHA-256; None does so up to ``VERIFY_BYTES`` in all, beyond that
            only sizes are compared here (a damaged record also fails when it is read).

    Raises:
        DataError: another tokenizer, or a vocabulary above the model's.
        StorageError: no or a damaged manifest, or a file that is missing, of another size or of
            another content.
    """
    folder = Path(folder)
    again = f"delete {folder} to tokenise again"
    path = folder / MANIFEST
    manifest = read_manifest(path, Manifest, kind=KIND, version=SCHEMA_VERSION, next_step=again)
    if manifest.tokenizer_fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"{folder}: tokenised with the tokenizer {manifest.tokenizer_fingerprint}, but the "
            f"run's is {tokenizer.fingerprint}; use that tokenizer, or delete the folder to "
            "tokenise again"
        )
    check_vocab_size(manifest.vocab_size, model_vocab_size, where=str(folder))
    splits = (manifest.train, manifest.heldout)
    files = [file for split in splits for file in (*split.files, split.lengths)]
    if verify is None:
        verify = sum(file.bytes for file in files) <= VERIFY_BYTES
    for file in files:
        check_file(folder / file.name, file, verify=verify, next_step=again)
    return Shards(folder, manifest)


def tokens_from_record(record: bytes) -> np.ndarray:
    """The tokens of a document as uint32, with their marks."""
    return np.frombuffer(record, TOKEN_DTYPE)


def check_vocab_size(vocab_size: int, model_vocab_size: int | None, *, where: str) -> None:
    """Raises DataError if the tokenizer has more tokens than the model (None: any number)."""
    if model_vocab_size is not None and vocab_size > model_vocab_size:
        raise DataError(
            f"{where}: the tokenizer has {vocab_size} tokens, the model {model_vocab_size}; "
            "expected at most the model's: raise model.vocab_size or use another tokenizer"
        )
