"""The choice of a token: exact probabilities, and the nucleus."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cwm_jax.inference.choice import Choice, allowed_tokens, choose, pack_allowed

PROBABILITIES = np.array([0.05, 0.4, 0.3, 0.2, 0.05])
NUM_ROWS, NUM_POSITIONS = 50, 80


def choice_of(rows: int, V: int = 5, *, allowed=None, **settings) -> Choice:
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **settings}
    dtypes = {"top_k": jnp.int32}
    fields = {
        name: jnp.full(rows, value, dtypes.get(name, jnp.float32)) for name, value in values.items()
    }
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), rows))
    words = pack_allowed(range(V) if allowed is None else allowed, V)
    words = words if allowed is not None else np.full_like(words, 0xFFFFFFFF)
    return Choice(**fields, keys=keys, allowed=jnp.tile(jnp.asarray(words), (rows, 1)))


def drawn_shares(**settings) -> np.ndarray:
    logits = jnp.tile(jnp.log(PROBABILITIES.astype(np.float32)), (NUM_ROWS, 1))
    choice = choice_of(NUM_ROWS, **settings)
    draw = jax.vmap(lambda position: choose(choice, logits, jnp.full(NUM_ROWS, position)))
    return np.bincount(np.ravel(draw(jnp.arange(NUM_POSITIONS))), minlength=5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(), PROBABILITIES),
        (dict(temperature=0.5), PROBABILITIES**2),
        (dict(top_p=0.71), PROBABILITIES * [0, 1, 1, 1, 0]),  # 0.7 is not enough
        (dict(top_p=0.69), PROBABILITIES * [0, 1, 1, 0, 0]),
        (dict(top_p=1e-9), PROBABILITIES * [0, 1, 0, 0, 0]),
        # of the tempered probabilities
        (dict(temperature=0.5, top_p=0.8), PROBABILITIES**2 * [0, 1, 1, 0, 0]),
        (dict(top_k=1), PROBABILITIES * [0, 1, 0, 0, 0]),
        (dict(top_k=3), PROBABILITIES * [0, 1, 1, 1, 0]),
        (dict(top_k=9), PROBABILITIES),
        (dict(top_k=3, top_p=0.7), PROBABILITIES * [0, 1, 1, 0, 0]),  # of 0.9, 0.7 are too few
        (dict(min_p=0.51), PROBABILITIES * [0, 1, 1, 0, 0]),
        (dict(min_p=0.49), PROBABILITIES * [0, 1, 1, 1, 0]),
        (dict(temperature=2.0, min_p=0.51), PROBABILITIES**0.5 * [0, 1, 1, 1, 0]),
        (dict(allowed=[0, 3]), PROBABILITIES * [1, 0, 0, 1, 0]),
        (dict(allowed=[0, 3, 4], top_k=1), PROBABILITIES * [0, 0, 0, 1, 0]),
    ],
)
def test_draws_have_the_stated_distribution(settings, expected):
    expected = expected / expected.sum()
    counts = drawn_shares(**settings)
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    if possible.sum() > 1:
        expected = expected[possible] * counts.sum()
        assert scipy.stats.chisquare(counts[possible], expected).pvalue > 1e-3


def test_rows_are_chosen_each_by_their_own_settings():
    logits = jnp.tile(jnp.log(PROBABILITIES.astype(np.float32)), (3, 1))
    choice = choice_of(3)._replace(
        temperature=jnp.array([0.0, 1.0, 1.0]), top_k=jnp.array([0, 1, 0])
    )
    drawn = np.array([choose(choice, logits, jnp.full(3, n)) for n in range(40)])
    assert (drawn[:, :2] == 1).all() and len(set(drawn[:, 2])) > 2


def test_temperature_0_takes_the_first_of_the_most_likely():
    logits = jnp.array([[0.0, 3.0, 3.0], [1.0, 0.0, -jnp.inf]])
    choice = choice_of(2, 3, temperature=0.0, top_p=0.5)
    assert choose(choice, logits, jnp.arange(2)).tolist() == [1, 0]


@pytest.mark.parametrize("V", [5, 32, 70])
def test_masks_are_unpacked_as_they_were_packed(V):
    allowed = [token for token in (0, 4, 31, 32, 63, 69) if token < V]
    words = jnp.asarray(pack_allowed([*allowed, V, -1], V))[None]
    assert np.flatnonzero(allowed_tokens(words, V)[0]).tolist() == allowed
