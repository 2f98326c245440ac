"""Drawing tokens from the model. Without a KV cache: each token costs a forward pass over the whole
row.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.model.transformer import DEFAULT_EXECUTION, Params, hidden_states


def sample(
    params: Params,
    model_config: ModelConfig,
    prompt: Sequence[int],
    *,
    num_tokens: int,
    key: jax.Array,
    temperature: float = 1.0,
    stop_ids: Sequence[int] = (),
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> list[int]:
    """Continues a prompt.

    Args:
        prompt: at least one token id.
        num_tokens: drawn at most.
        key: a JAX random key.
        temperature: divides the logits; 0 takes the most likely token.
        stop_ids: end the sample; not part of it.

    Raises:
        ValueError: an empty prompt, an id that the model does not have, a negative length or
            temperature.
    """
    if len(prompt) == 0 or num_tokens < 0 or temperature < 0:
        raise ValueError(
            f"sample got {len(prompt)} prompt tokens, num_tokens {num_tokens} and temperature "
            f"{temperature}; expected at least 1 token, and 0 or more of the others"
        )
    wrong = [token for token in prompt if not 0 <= token < model_config.vocab_size]
    if wrong:  # JAX would clamp it silently
        raise ValueError(
            f"sample got token {wrong[0]}; expected 0 to {model_config.vocab_size - 1}: encode the "
            "prompt with the model's tokenizer"
        )
    row = np.zeros(len(prompt) + num_tokens, np.int32)
    row[: len(prompt)] = prompt
    end = len(prompt)
    while end < len(row):
        key, draw = jax.random.split(key)
        token = int(_next_token(params, model_config, execution, row, end, draw, temperature))
        if token in stop_ids:
            break
        row[end] = token
        end += 1
    return row[len(prompt) : end].tolist()


@functools.partial(jax.jit, static_argnums=(1, 2))
def _next_token(params, model_config, execution, row, end, key, temperature):
    x = hidden_states(params, model_config, row[None], execution=execution)[0, end - 1]
    logits = jnp.dot(x, params["lm_head"]["kernel"].astype(x.dtype)).astype(jnp.float32)
    drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits))
