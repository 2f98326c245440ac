"""A model at which attention decides, for tests that compare ways to compute it."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import tiny_model

from cwm_jax.config import ExecutionConfig, RopeParameters
from cwm_jax.model.transformer import abstract_params

LLAMA3 = RopeParameters(rope_type="llama3", rope_theta=100.0, original_max_position_embeddings=64)
# Both layer kinds twice in the scanned group's repeats and once in the tail; GQA 2:1; window 8.
CONFIG = tiny_model(rope_parameters=LLAMA3)
EXECUTION = ExecutionConfig(attention="chunked", attention_block_tokens=16)


def make_params(config):
    """Sharp queries, norm scales that are not 1."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            return jnp.asarray(1 + 0.3 * values)
        return jnp.asarray((2 if "q_proj" in name else 1) / config.hidden_size**0.5 * values)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))
