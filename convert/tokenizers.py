"""The tokenizer that travels with a model's weights."""

from __future__ import annotations

import base64
from pathlib import Path

from convert.names import ConversionError
from cwm_jax.config import ModelConfig
from cwm_jax.tokenizer import NUM_RESERVED_TOKENS, Tokenizer, load_tokenizer


def read_tokenizer(folder: Path, model_config: ModelConfig) -> Tokenizer | None:
    """The tokenizer in ``folder``; None if it has neither tokenizer.json nor tokenizer.model.

    Raises:
        ConversionError: a tokenizer with ids that the model has no embedding for.
        ValueError: a file that is not CWM's kind of tokenizer.
    """
    tokenizer = read_tokenizer_of(folder)
    if tokenizer is not None:
        check_vocabulary(tokenizer, model_config, str(folder))
    return tokenizer


def read_tokenizer_of(folder: Path) -> Tokenizer | None:
    """As ``read_tokenizer``, before the model is known."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    return load_tokenizer(folder)


def write_ranks(tokenizer: Tokenizer, file: Path) -> None:
    """Writes a tiktoken ``tokenizer.model``: a line of base64 and rank for each token."""
    num_ranks = tokenizer.vocab_size - NUM_RESERVED_TOKENS
    lines = [
        base64.b64encode(tokenizer.decode_bytes([rank])) + f" {rank}\n".encode()
        for rank in range(num_ranks)
    ]
    file.write_bytes(b"".join(lines))


def check_vocabulary(tokenizer: Tokenizer, model_config: ModelConfig, where: str) -> None:
    """Raises ConversionError if the tokenizer has more ids than the model."""
    if tokenizer.vocab_size > model_config.vocab_size:
        raise ConversionError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} ids, the model only "
            f"{model_config.vocab_size} (vocab_size): they belong to different models"
        )
