"""Teacher forcing against forward's logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_batch, tiny_model
from tolerances import LOGITS_ATOL

from cwm_jax.config import ExecutionConfig
from cwm_jax.inference.scoring import score
from cwm_jax.model.transformer import forward, init

CONFIG = tiny_model()


@pytest.mark.parametrize(
    "loss_chunk_tokens", [24, 2048]
)  # of 8 positions, the last of 3; all at once
def test_scores_are_those_of_the_whole_logits(loss_chunk_tokens):
    params = init(CONFIG, jax.random.key(0))
    batch = {name: jnp.asarray(array) for name, array in random_batch((3, 43)).items()}
    packed = {name: batch[name] for name in ("positions", "segment_ids")}
    logits = np.asarray(
        jax.jit(forward, static_argnums=1)(params, CONFIG, batch["tokens"], **packed)
    )
    execution = ExecutionConfig(loss_chunk_tokens=loss_chunk_tokens)
    scores = jax.jit(score, static_argnums=1, static_argnames="execution")(
        params, CONFIG, batch["tokens"], targets=batch["targets"], execution=execution, **packed
    )
    assert (scores.predictions == logits.argmax(-1)).all()
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    expected = np.take_along_axis(logprobs, np.asarray(batch["targets"])[..., None], axis=-1)
    assert np.abs(scores.logprobs - expected[..., 0]).max() <= LOGITS_ATOL
    assert scores.predictions.dtype == jnp.int32


def test_logits_of_all_positions_never_exist():
    params = init(CONFIG, jax.random.key(0))
    tokens = jnp.zeros((2, 512), jnp.int32)
    compiled = (
        jax.jit(score, static_argnums=1, static_argnames="execution")
        .lower(
            params, CONFIG, tokens, targets=tokens, execution=ExecutionConfig(loss_chunk_tokens=64)
        )
        .compile()
    )
    logits_bytes = tokens.size * CONFIG.vocab_size * 4
    assert compiled.memory_analysis().temp_size_in_bytes < logits_bytes


def test_targets_of_another_shape_are_refused(unchecked_types):
    params = init(CONFIG, jax.random.key(0))
    with pytest.raises(ValueError, match=r"targets has shape \(1, 3\); expected that of tokens"):
        score(params, CONFIG, jnp.zeros((1, 4), int), targets=jnp.zeros((1, 3), int))
