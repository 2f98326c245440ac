"""One continuation of one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.inference.decoder import Decoder
from cwm_jax.model.transformer import DEFAULT_EXECUTION, Params


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
        num_tokens: drawn at most; less where the model's max_position_embeddings end.
        key: a JAX random key.
        temperature: divides the logits; 0 takes the most likely token.
        stop_ids: end the sample; not part of it.

    Raises:
        ValueError: an empty or too long prompt, an id that the model does not have, a negative
            length or temperature.
    """
    if len(prompt) == 0 or num_tokens < 0 or temperature < 0:
        raise ValueError(
            f"sample got {len(prompt)} prompt tokens, num_tokens {num_tokens} and temperature "
            f"{temperature}; expected at least 1 token, and 0 or more of the others"
        )
    if num_tokens == 0:
        return []
    max_length = min(len(prompt) + num_tokens, model_config.max_position_embeddings)
    decoder = Decoder(
        params, model_config, max_length=max_length, batch_size=1, execution=execution
    )
    (made,) = decoder.generate(
        [prompt], max_new_tokens=num_tokens, stop_ids=stop_ids, temperature=temperature, key=key
    )
    return made.tokens[:-1] if made.finished else made.tokens
