"""A model folder as everything that serves needs it."""

from __future__ import annotations

import dataclasses
import os

from cwm_jax.config import ModelConfig
from cwm_jax.model.transformer import Params, separate_layers
from cwm_jax.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights, what they are the weights of, and the text that they read."""

    model_config: ModelConfig
    params: Params
    tokenizer: Tokenizer


def load_pretrained(
    path: str | os.PathLike[str], *, dtype: str | None = None, scan_layers: bool = False
) -> Pretrained:
    """Reads a folder as ``convert.save_hf``, a run's export, or ``convert quantize`` write it.

    Args:
        path: the folder, with its tokenizer.
        dtype: of the weights; None keeps the stored one. Quantized weights keep theirs.
        scan_layers: keeps the layers in stacks, as ``init`` makes them: programs compile faster and
            decode slower; see ``separate_layers``.

    Raises:
        ValueError: as ``convert.load_hf`` and ``load_tokenizer``, or a vocabulary that is larger
            than the model's.
    """
    # The one place where the package reaches up: converters know files, and stand above the model.
    from convert import load_hf

    model_config, params = load_hf(path, dtype=dtype)
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > model_config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} ids and the model "
            f"{model_config.vocab_size}; expected at least as many in the model: they do not "
            "belong together"
        )
    if not scan_layers:
        params = separate_layers(params, model_config, delete=True)
    return Pretrained(model_config, params, tokenizer)
