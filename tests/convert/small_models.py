"""Models of a few thousand parameters whose attention matters, for the converters' tests."""

from __future__ import annotations

import jax
import numpy as np
from tiny import sharp_params as random_params

from cwm_jax.config import ModelConfig, RopeParameters, layer_types_3_to_1

__all__ = ["assert_equal_trees", "random_params", "small_config"]


def small_config(num_layers: int = 10, **changes) -> ModelConfig:
    """10 layers make two groups of four and a tail of two (the last layer is global); 8 none."""
    values = {
        "vocab_size": 96,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "layer_types": layer_types_3_to_1(num_layers, last_global=num_layers == 10),
        "sliding_window": 8,
        "rope_parameters": RopeParameters(
            rope_type="llama3", rope_theta=1000.0, original_max_position_embeddings=16
        ),
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": (1, 2),
    }
    return ModelConfig(**(values | changes))


def assert_equal_trees(a, b) -> None:
    """Same structure, dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert x.dtype == y.dtype, name
        assert x.shape == y.shape, name
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), name
