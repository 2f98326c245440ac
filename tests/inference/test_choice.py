"""The choice of a token: exact probabilities, and the nucleus."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwm_jax.inference.choice import choose, make_choice

PROBABILITIES = np.array([0.05, 0.4, 0.3, 0.2, 0.05])
NUM_DRAWS = 4000


def drawn_shares(temperature: float, top_p: float) -> np.ndarray:
    choice = make_choice(temperature, top_p, jax.random.key(0))
    logits = jnp.tile(jnp.log(PROBABILITIES.astype(np.float32)), (NUM_DRAWS, 1))
    index = jnp.arange(NUM_DRAWS)
    tokens = choose(choice, logits, numbers=index % 50, positions=index // 50)
    return np.bincount(tokens, minlength=5) / NUM_DRAWS


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, PROBABILITIES),
        (0.5, 1.0, PROBABILITIES**2),
        (1.0, 0.71, PROBABILITIES * [0, 1, 1, 1, 0]),  # 0.7 is not enough
        (1.0, 0.69, PROBABILITIES * [0, 1, 1, 0, 0]),
        (1.0, 1e-9, PROBABILITIES * [0, 1, 0, 0, 0]),
        (0.5, 0.8, PROBABILITIES**2 * [0, 1, 1, 0, 0]),  # of the tempered probabilities
    ],
)
def test_draws_have_the_stated_distribution(temperature, top_p, expected):
    expected = expected / expected.sum()
    shares = drawn_shares(temperature, top_p)
    assert (shares[expected == 0] == 0).all()
    deviations = np.sqrt(expected * (1 - expected) / NUM_DRAWS)
    assert (np.abs(shares - expected) <= 4 * deviations).all()


def test_temperature_0_takes_the_first_of_the_most_likely():
    logits = jnp.array([[0.0, 3.0, 3.0], [1.0, 0.0, -jnp.inf]])
    index = jnp.arange(2)
    chosen = choose(make_choice(0, 0.5, None), logits, numbers=index, positions=index)
    assert chosen.tolist() == [1, 0]
