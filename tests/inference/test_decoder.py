"""Cached decoding against the model without a cache, token by token."""

import jax
import numpy as np
import pytest
from inference.models import CONFIG, EXECUTION
from tiny import VOCAB_SIZE, sharp_params
from tolerances import LOGITS_ATOL

from cwm_jax.config import MeshConfig
from cwm_jax.inference.decoder import Decoder
from cwm_jax.model.transformer import forward, logical_axes
from cwm_jax.sharding import make_mesh, tree_shardings

LENGTHS = (37, 1, 5, 20, 90)  # most are longer than two windows; two buckets of prompts
NUM_NEW = 100  # some chunks of steps, and two buckets of keys


@pytest.fixture(scope="module")
def params():
    return sharp_params(CONFIG)


PROMPTS = [
    np.random.default_rng(length).integers(VOCAB_SIZE, size=length).tolist() for length in LENGTHS
]

_forward = jax.jit(forward, static_argnums=1)


def uncached_logits(params, row):
    """Of one row, padded on the right to one shape: the padding is never seen."""
    tokens = np.zeros((1, 192), np.int32)
    tokens[0, : len(row)] = row
    return np.asarray(_forward(params, CONFIG, tokens)[0, : len(row)])


def generate(params, prompts=PROMPTS, *, batch_size=5, max_length=256, **changes):
    decoder = Decoder(
        params, CONFIG, max_length=max_length, batch_size=batch_size, execution=EXECUTION
    )
    return decoder.generate(prompts, **{"max_new_tokens": NUM_NEW, "stop_ids": (), **changes})


@pytest.fixture(scope="module")
def greedy(params):
    return generate(params)


def assert_is_greedy(params, prompt, made):
    logits = uncached_logits(params, [*prompt, *made.tokens])[len(prompt) - 1 : -1]
    assert made.tokens == logits.argmax(-1).tolist()
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    chosen = logprobs[np.arange(len(made.tokens)), made.tokens]
    assert np.abs(chosen - made.logprobs).max() <= LOGITS_ATOL


def test_every_token_is_the_most_likely_one_without_a_cache(params, greedy):
    for prompt, made in zip(PROMPTS, greedy, strict=True):
        assert len(made.tokens) == NUM_NEW and not made.finished
        assert len(set(made.tokens)) > 5  # a model that repeats itself would hide wrong positions
        assert_is_greedy(params, prompt, made)


def test_fewer_rows_than_prompts_change_nothing(params, greedy):
    stop = greedy[0].tokens[3]
    made = generate(params, batch_size=2, stop_ids=(stop,))
    assert len({len(one.tokens) for one in made}) > 1  # rows are freed at different times
    for one, whole in zip(made, greedy, strict=True):
        assert one.finished == (stop in whole.tokens)
        length = whole.tokens.index(stop) + 1 if one.finished else NUM_NEW
        assert one.tokens == whole.tokens[:length]
        assert len(one.logprobs) == length


def test_a_row_that_reaches_max_length_stops_unfinished(params, greedy):
    made = generate(params, max_length=100)
    lengths = [min(NUM_NEW, 100 - length) for length in LENGTHS]
    assert [len(one.tokens) for one in made] == lengths
    assert not any(one.finished for one in made)
    assert [one.tokens for one in made] == [
        whole.tokens[:length] for whole, length in zip(greedy, lengths, strict=True)
    ]


def test_a_stop_token_at_the_limit_counts_as_finished(params, greedy):
    made = generate(params, PROMPTS[:1], max_new_tokens=4, stop_ids=(greedy[0].tokens[3],))
    assert made[0].finished == (made[0].tokens[-1] == greedy[0].tokens[3])
    assert made[0].finished


def test_sharded_weights_change_nothing(params, greedy):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    shardings = tree_shardings(mesh, logical_axes(CONFIG), params)
    sharded = jax.device_put(params, shardings)
    with jax.set_mesh(mesh):
        made = generate(sharded, PROMPTS[:2], batch_size=2, max_new_tokens=20)
    assert [one.tokens for one in made] == [one.tokens[:20] for one in greedy[:2]]


def test_an_interrupted_call_leaves_nothing_behind(params, monkeypatch):
    decoder = Decoder(params, CONFIG, max_length=64, batch_size=2, execution=EXECUTION)
    arguments = dict(max_new_tokens=30, stop_ids=())
    whole = decoder.generate([[1], [2], [3]], **arguments)
    step, calls = decoder._engine.step, []

    def interrupted():
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(decoder._engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoder.generate([[1], [2], [3]], **arguments)
    assert decoder.generate([[1], [2], [3]], **arguments) == whole


def test_no_prompts_give_no_continuations(params):
    assert generate(params, []) == []


def test_draws_depend_on_key_and_prompt_alone(params, greedy):
    options = dict(max_new_tokens=12, temperature=1.0, key=jax.random.key(3))
    together = generate(params, [PROMPTS[2]] * 3, **options)
    in_turn = generate(params, [PROMPTS[2]] * 3, batch_size=2, **options)
    assert [one.tokens for one in in_turn] == [one.tokens for one in together]
    other = generate(params, [PROMPTS[2]] * 3, **{**options, "key": jax.random.key(4)})
    drawn = [tuple(one.tokens) for one in (*together, *other)]
    assert len(set(drawn)) == 6
    for one in together:  # logprobs are the model's own
        logits = uncached_logits(params, [*PROMPTS[2], *one.tokens])[len(PROMPTS[2]) - 1 : -1]
        logprobs = np.asarray(jax.nn.log_softmax(logits))[np.arange(12), one.tokens]
        assert np.abs(logprobs - one.logprobs).max() <= LOGITS_ATOL


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompts": [[1], []]}, "prompt 1: .* 0 tokens; expected 1 to 15, .*begin it with bos"),
        ({"prompts": [[1] * 16]}, "prompt 0: .* 16 tokens; expected 1 to 15, .*raise .*max_length"),
        (
            {"prompts": [[VOCAB_SIZE]]},
            f"prompt 0: prompt has token {VOCAB_SIZE}; expected 0 to 575",
        ),
        ({"stop_ids": [-1]}, "stop_token_ids has token -1; expected 0 to 575"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected 1 or more"),
        ({"temperature": -1.0}, r"temperature is -1.0; expected 0 \(greedy\)"),
        ({"temperature": 1.0}, "temperature is 1.0 and key is None; expected a JAX random key"),
        ({"top_p": 0.0}, "top_p is 0.0; expected above 0"),
        ({"top_p": 1.5}, "top_p is 1.5; expected above 0 and at most 1"),
        ({"max_length": 257}, "max_length is 257; expected 2 to 256.*max_position_embeddings"),
        ({"max_length": 1}, "max_length is 1; expected 2 to 256"),
        ({"batch_size": 0}, "batch_size is 0; expected 1 row or more"),
    ],
)
def test_bad_arguments_are_refused(params, changes, expected):
    with pytest.raises(ValueError, match=expected):
        generate(params, **{"prompts": [[1]], "max_length": 16, **changes})
