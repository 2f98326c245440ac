"""Drawing tokens: greedy is the model's argmax, draws repeat with their key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import VOCAB_SIZE, tiny_model

from cwm_jax.inference.sampling import sample
from cwm_jax.model.transformer import forward, init

PROMPT = [5, 9, 300, 2, 77]
NUM_TOKENS = 12  # the row is twice as long as the window


@pytest.fixture(scope="module")
def model():
    config = tiny_model(num_hidden_layers=2)
    return init(config, jax.random.key(0)), config


def draw(model, **changes):
    arguments = dict(num_tokens=NUM_TOKENS, key=jax.random.key(1), temperature=1.0)
    return sample(*model, PROMPT, **{**arguments, **changes})


def test_greedy_takes_the_most_likely_token_at_each_step(model):
    params, config = model
    tokens = draw(model, temperature=0)
    row = [*PROMPT, *tokens]
    logits = jax.jit(forward, static_argnums=1)(params, config, jnp.asarray([row]))[0]
    most_likely = np.asarray(logits.argmax(-1))
    assert tokens == most_likely[len(PROMPT) - 1 : -1].tolist()
    assert len(tokens) == NUM_TOKENS


def test_a_key_fixes_the_sample_and_another_gives_another(model):
    tokens = draw(model)
    assert draw(model) == tokens
    assert draw(model, key=jax.random.key(2)) != tokens
    assert all(0 <= token < VOCAB_SIZE for token in tokens)


def test_a_low_temperature_is_greedy(model):
    assert draw(model, temperature=1e-5) == draw(model, temperature=0)


def test_a_stop_id_ends_the_sample_and_is_not_part_of_it(model):
    tokens = draw(model)
    stop = tokens[5]
    assert draw(model, stop_ids=(stop,)) == tokens[: tokens.index(stop)]


def test_no_tokens_are_an_empty_sample(model):
    assert draw(model, num_tokens=0) == []


@pytest.mark.parametrize(
    ("prompt", "changes", "expected"),
    [
        ([], {}, "0 prompt tokens.*expected at least 1 token"),
        ([1], {"temperature": -1.0}, "temperature -1.0"),
        ([1], {"num_tokens": -1}, "num_tokens -1"),
        ([1, VOCAB_SIZE], {}, f"token {VOCAB_SIZE}; expected 0 to {VOCAB_SIZE - 1}"),
        ([-1], {}, "token -1"),
    ],
)
def test_bad_arguments_are_refused(model, prompt, changes, expected):
    arguments = {"num_tokens": 1, "key": jax.random.key(0), **changes}
    with pytest.raises(ValueError, match=expected):
        sample(*model, prompt, **arguments)
