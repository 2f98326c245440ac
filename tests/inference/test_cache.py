"""The cache as pure functions: equal to the model without it, in the bytes that windows need."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference.models import CONFIG, EXECUTION
from tiny import VOCAB_SIZE, sharp_params, tiny_model
from tolerances import LOGITS_ATOL

from cwm_jax.config import MeshConfig, ModelConfig, layer_types_3_to_1
from cwm_jax.inference.cache import (
    CacheLayout,
    cache_bytes,
    decode,
    empty_rows,
    extend,
    init_cache,
)
from cwm_jax.inference.scoring import cached_score, score
from cwm_jax.model.transformer import (
    abstract_params,
    forward,
    logical_axes,
    logits_from_hidden,
    separate_layers,
)
from cwm_jax.sharding import make_mesh, tree_shardings

LENGTH = 120  # fifteen windows
PAGE = 4
ROWS = np.random.default_rng(7).integers(VOCAB_SIZE, size=(3, LENGTH)).astype(np.int32)
START = np.array([90, 1, 33], np.int32)  # tokens of each row that are prefilled
PIECE = 40  # of them in a call: five windows, and ten pages

jitted_extend = jax.jit(extend, static_argnames=("num_cached", "execution"))
jitted_decode = jax.jit(decode, static_argnames=("num_keys", "execution"))


@pytest.fixture(scope="module")
def params():
    return sharp_params(CONFIG)


@pytest.fixture(scope="module")
def expected(params):
    return np.asarray(jax.jit(forward, static_argnums=1)(params, CONFIG, ROWS))


def prefilled(params, cache, *, rows=(0, 1, 2), execution=EXECUTION):
    """The first START tokens of each row in pieces, and the logits at all of them."""
    logits = [[] for _ in ROWS]
    for begin in range(0, START.max(), PIECE):
        lengths = np.clip(START - begin, 0, PIECE)
        tokens = np.zeros((3, PIECE), np.int32)
        tokens[:, : min(PIECE, LENGTH - begin)] = ROWS[:, begin : begin + PIECE]
        x, cache = jitted_extend(
            params,
            cache,
            jnp.asarray(tokens),
            lengths=jnp.asarray(lengths),
            rows=jnp.asarray(rows),
            execution=execution,
        )
        for row, length in enumerate(lengths):
            logits[row].append(np.asarray(logits_from_hidden(params, x[row : row + 1])[0, :length]))
    return [np.concatenate(pieces) for pieces in logits], cache


def assert_decodes_like(expected, params, cache, steps=25, *, tolerance=LOGITS_ATOL, **options):
    for n in range(steps):
        place = np.minimum(START + n, LENGTH - 1)
        logits, cache = jitted_decode(params, cache, jnp.asarray(ROWS[range(3), place]), **options)
        worst = np.abs(np.asarray(logits) - expected[range(3), place]).max()
        assert worst <= tolerance, f"step {n}"
    assert cache.lengths.tolist() == (START + steps).tolist()


@pytest.mark.parametrize("scan_layers", [True, False])
def test_pieces_and_steps_give_the_logits_of_forward(params, expected, scan_layers):
    execution = dataclasses.replace(EXECUTION, scan_layers=scan_layers)
    cache = init_cache(CONFIG, 3, LENGTH, page_tokens=PAGE)
    logits, cache = prefilled(params, cache, execution=execution)
    for row, length in enumerate(START):
        assert np.abs(logits[row] - expected[row, :length]).max() <= LOGITS_ATOL
    assert_decodes_like(expected, params, cache, execution=execution)


def test_rows_are_emptied_and_used_again(params, expected):
    cache = init_cache(CONFIG, 3, LENGTH, page_tokens=PAGE)
    _, cache = prefilled(params, cache, rows=(2, 0, 7))  # the third is written nowhere
    assert cache.lengths.tolist() == [1, 0, 90]
    cache = empty_rows(cache, jnp.array([0, 2]))
    _, cache = prefilled(params, cache)
    assert_decodes_like(expected, params, cache, steps=6)


def test_a_row_that_begins_reads_no_context(params, expected):
    cache = init_cache(CONFIG, 3, LENGTH, page_tokens=PAGE)
    x, _ = jitted_extend(
        params,
        cache,
        jnp.asarray(ROWS),
        lengths=jnp.full(3, LENGTH),
        rows=jnp.arange(3),
        num_cached=0,
        execution=EXECUTION,
    )
    assert np.abs(logits_from_hidden(params, x) - expected).max() <= LOGITS_ATOL


def test_a_cache_of_layers_apart(params, expected):
    apart = separate_layers(params, CONFIG)
    cache = init_cache(CONFIG, 3, LENGTH, page_tokens=PAGE, stacked=False)
    _, cache = prefilled(apart, cache)
    assert_decodes_like(expected, apart, cache, steps=4)
    with pytest.raises(ValueError, match="make the cache with stacked=True"):
        prefilled(params, cache)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=2), jax.devices()[:2])
    sharded = jax.device_put(params, tree_shardings(mesh, logical_axes(CONFIG), params))
    kernel = separate_layers(sharded, CONFIG)["tail"]["3"]["mlp"]["up_proj"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[1] == CONFIG.intermediate_size // 2


def test_a_full_row_stays_full(params):
    cache = init_cache(CONFIG, 3, 91, page_tokens=PAGE)
    _, cache = prefilled(params, cache)
    for _ in range(3):
        _, cache = jitted_decode(params, cache, jnp.zeros(3, jnp.int32))
    assert cache.lengths.tolist() == [91, 4, 36]


def test_keys_outside_of_the_window_are_gone(params, expected):
    """The ring is as short as it says: another window finds the wrong keys there."""
    cache = init_cache(CONFIG, 3, LENGTH, page_tokens=PAGE)
    _, cache = prefilled(params, cache)
    shapes = {layer.keys.shape[1] for layer in cache.caches.layers}
    assert shapes == {3 * 30, 3 * 3}  # whole rows, and rings of a window and a page
    wide = dataclasses.replace(CONFIG, sliding_window=12)
    layout = dataclasses.replace(cache.layout, model_config=wide)
    with pytest.raises(AssertionError, match="step 0"):
        assert_decodes_like(
            np.asarray(jax.jit(forward, static_argnums=1)(params, wide, ROWS)),
            params,
            dataclasses.replace(cache, layout=layout),
        )


def test_an_int8_cache_is_close(params, expected):
    cache = init_cache(CONFIG, 3, LENGTH, page_tokens=PAGE, dtype="int8")
    logits, cache = prefilled(params, cache)
    scale = np.abs(expected).max()
    for row, length in enumerate(START):
        assert np.abs(logits[row] - expected[row, :length]).max() <= 0.05 * scale
    assert_decodes_like(expected, params, cache, tolerance=0.05 * scale)
    wide = init_cache(CONFIG, 3, LENGTH, page_tokens=PAGE)
    # 8 bytes and a scale instead of 32: heads are 8 wide here, 128 in the 32B
    assert cache_bytes(cache) / cache_bytes(wide) == 12 / 32


def test_a_sharded_cache_changes_nothing(params, expected):
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=2), jax.devices()[:2])
    sharded = jax.device_put(params, tree_shardings(mesh, logical_axes(CONFIG), params))
    with jax.set_mesh(mesh):
        make = functools.partial(init_cache, CONFIG, 3, LENGTH, page_tokens=PAGE)
        cache = jax.jit(make)()
        _, cache = prefilled(sharded, cache)
        for layer in (*cache.caches.layers, *cache.caches.tail):
            shard = layer.keys.sharding.shard_shape(layer.keys.shape)
            assert shard[2] == CONFIG.num_key_value_heads // 2
        assert_decodes_like(expected, sharded, cache, steps=4)


def test_scores_of_continuations_are_those_without_a_cache(params):
    rows = jnp.asarray(ROWS)
    uncached = jax.jit(score, static_argnums=1, static_argnames="execution")(
        params, CONFIG, rows[:, :-1], targets=rows[:, 1:], execution=EXECUTION
    )
    cache = init_cache(CONFIG, 3, LENGTH, page_tokens=PAGE)
    half = (LENGTH - 1) // 2  # in two pieces, with one program
    given = {"lengths": jnp.full(3, half), "rows": jnp.arange(3), "execution": EXECUTION}
    jitted_score = jax.jit(cached_score, static_argnames="execution")
    for begin in (0, half):
        piece, targets = ROWS[:, begin:][:, :half], ROWS[:, begin + 1 :][:, :half]
        scores, cache = jitted_score(params, cache, piece, targets=targets, **given)
        expected = uncached.logprobs[:, begin:][:, :half]
        assert np.abs(scores.logprobs - expected).max() <= LOGITS_ATOL
    assert (scores.predictions == uncached.predictions[:, half:][:, :half]).all()


@pytest.mark.parametrize(("last_global", "gib"), [(False, 9.5), (True, 10.0)])
def test_a_full_row_of_the_32b_takes_a_third(last_global, gib):
    kinds = layer_types_3_to_1(64, last_global=last_global)
    config = ModelConfig(
        vocab_size=128256,
        hidden_size=6144,
        intermediate_size=21504,
        num_hidden_layers=64,
        num_attention_heads=48,
        num_key_value_heads=8,
        head_dim=128,
        layer_types=kinds,
        sliding_window=8192,
        max_position_embeddings=131072,
    )
    layout = CacheLayout(config, 131072)
    total = sum(
        layout.row_pages(kind) * layout.page_bytes(kind, "bfloat16") for kind in layout.kinds
    )
    dense = 131072 * 64 * 2 * 8 * 128 * 2
    assert round(total / 2**30, 1) == gib and dense == 32 * 2**30
    caches = jax.eval_shape(lambda: init_cache(config, 1, 131072, dtype="bfloat16").caches)
    assert sum(leaf.size * 2 for leaf in jax.tree.leaves(caches)) == total


def test_cost_of_compiling_is_independent_of_depth():
    def operations(num_layers):
        config = tiny_model(num_hidden_layers=num_layers)
        staged = jax.make_jaxpr(decode)(
            abstract_params(config), init_cache(config, 2, 32), jnp.zeros(2, jnp.int32)
        )
        return str(staged).count("dot_general")

    assert operations(4) == operations(40) > 0


def test_the_cache_is_written_in_place(params):
    cache = init_cache(CONFIG, 16, 256, page_tokens=16)

    def step(params, caches, tokens):
        logits, after = decode(
            params, dataclasses.replace(cache, caches=caches), tokens, num_keys=64
        )
        return logits, after.caches

    step = jax.jit(step, donate_argnums=1)
    compiled = step.lower(params, cache.caches, jnp.zeros(16, jnp.int32)).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache_bytes(cache)
    assert memory.temp_size_in_bytes < cache_bytes(cache) / 2  # a layer's slots that are read, x
