"""The model: one result whatever the execution, pure functions, packing, parameter counts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import VOCAB_SIZE, tiny_model
from tolerances import LOGITS_ATOL

from cwm_jax.config import ExecutionConfig, RopeParameters, layer_types_3_to_1
from cwm_jax.model.rope import inverse_frequencies
from cwm_jax.model.transformer import (
    abstract_params,
    forward,
    hidden_states,
    init,
    num_parameters,
    separate_layers,
)


@pytest.fixture(scope="module")
def model():
    config = tiny_model(
        num_hidden_layers=10, layer_types=layer_types_3_to_1(10, last_global=True)
    )  # two groups and a tail
    return config, init(config, jax.random.key(0))


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 40)))


def run(model, tokens, **kwargs):
    config, params = model
    return jax.jit(lambda p, t: forward(p, config, t, **kwargs))(params, tokens)


@pytest.mark.parametrize(
    "execution",
    [
        ExecutionConfig(scan_layers=False),
        ExecutionConfig(remat_policy="full"),
        ExecutionConfig(remat_policy="minimal", attention="reference"),
        ExecutionConfig(attention="chunked", attention_block_tokens=8),
    ],
    ids=["unrolled", "full remat", "minimal remat, dense", "blocks of 8"],
)
def test_execution_changes_no_logit(model, tokens, execution):
    expected = run(model, tokens, execution=ExecutionConfig(attention="reference"))
    np.testing.assert_allclose(run(model, tokens, execution=execution), expected, atol=LOGITS_ATOL)


def test_layers_apart_are_the_same_model(model, tokens):
    config, params = model
    apart = separate_layers(params, config)
    assert separate_layers(apart, config) is apart
    expected = run(model, tokens)
    np.testing.assert_allclose(run((config, apart), tokens), expected, atol=LOGITS_ATOL)
    copy = jax.tree.map(jnp.copy, params)
    again = separate_layers(copy, config, delete=True)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), apart, again))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(copy["layers"]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(again))


def test_remat_policies_keep_what_they_say(model, tokens):
    """Counted in the gradient's program: products of two weights' sizes, and of all kinds."""
    config, params = model

    def products(policy):
        execution = ExecutionConfig(remat_policy=policy)
        program = str(
            jax.make_jaxpr(
                jax.grad(lambda p: forward(p, config, tokens, execution=execution).sum())
            )(params)
        )
        unbatched = re.findall(r"dimension_numbers=\(\(.*?\), \(\[\], \[\]\)\)", program)
        return len(unbatched), program.count("dot_general[")

    none, minimal, full = (products(policy) for policy in ("none", "minimal", "full"))
    assert none[0] == minimal[0] < full[0]
    assert none[1] < minimal[1] <= full[1]


def test_bfloat16_compute_gives_float32_logits_near_the_exact_ones(model, tokens):
    logits = run(model, tokens, execution=ExecutionConfig(dtype="bfloat16"))
    assert logits.dtype == jnp.float32
    exact = run(model, tokens)
    assert float(jnp.abs(logits - exact).max()) < 0.1 * float(jnp.abs(exact).max())


def test_packed_rows_equal_the_documents_one_by_one(model, tokens):
    documents = [tokens[:1, :13], tokens[:1, 13:30], tokens[:1, 30:]]
    segments = np.repeat([1, 2, 3], [13, 17, 10])[None].astype(np.int32)
    packed = run(model, tokens[:1], segment_ids=jnp.asarray(segments))
    alone = jnp.concatenate([run(model, document) for document in documents], axis=1)
    np.testing.assert_allclose(packed, alone, atol=LOGITS_ATOL)


def test_the_future_and_keys_beyond_every_window_do_not_matter(tokens):
    config = tiny_model(num_hidden_layers=3, layer_types=("sliding_attention",) * 3)
    model = config, init(config, jax.random.key(1))
    logits = run(model, tokens)
    reach = 3 * (config.sliding_window - 1)  # tokens back that three layers carry information
    changed = tokens.at[:, 39 - reach - 1].add(1).at[:, 39].add(0)
    np.testing.assert_array_equal(run(model, changed)[:, 39], logits[:, 39])
    within = tokens.at[:, 39 - reach].add(1)
    assert (run(model, within)[:, 39] != logits[:, 39]).any()
    np.testing.assert_array_equal(run(model, tokens.at[:, 20].add(1))[:, :20], logits[:, :20])


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_an_attention_cap_makes_global_layers_local_and_leaves_local_ones(tokens, implementation):
    execution = ExecutionConfig(attention=implementation, attention_block_tokens=8)

    def states(kind, *, window, cap):
        kinds = (kind,) * 3
        config = tiny_model(num_hidden_layers=3, layer_types=kinds, sliding_window=window)
        params = init(config, jax.random.key(0))
        settings = {"execution": execution, "attention_cap": cap}
        return jax.jit(lambda p, t: hidden_states(p, config, t, **settings))(params, tokens)

    windows = states("sliding_attention", window=5, cap=None)
    np.testing.assert_array_equal(states("full_attention", window=9, cap=5), windows)
    np.testing.assert_array_equal(states("sliding_attention", window=5, cap=3), windows)
    everything = states("full_attention", window=9, cap=None)
    assert np.abs(everything - windows)[:, 5:].max() > 0.01
    np.testing.assert_allclose(everything[:, :5], windows[:, :5], atol=LOGITS_ATOL)
    np.testing.assert_array_equal(states("full_attention", window=9, cap=40), everything)


def test_forward_works_under_vmap_over_parameters_and_grad(model, tokens):
    config, params = model
    two = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)

    @jax.jit
    def sums(params):
        return jax.vmap(jax.grad(lambda p: forward(p, config, tokens).sum()))(params)

    grads = sums(two)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert all(bool(jnp.any(g[0] != g[1])) for g in jax.tree.leaves(grads))


def test_init_is_a_function_of_the_key(model):
    config, params = model
    again, other = init(config, jax.random.key(0)), init(config, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    kernel = ("layers", "0", "mlp", "up_proj", "kernel")
    assert (_at(params, kernel) != _at(other, kernel)).any()
    assert (_at(params, kernel)[0] != _at(params, kernel)[1]).any(), "layers must differ"


def test_group_and_tail_hold_every_layer_once():
    for num_layers, last_global, expected in (
        (64, False, (4, 16)),
        (64, True, (4, 15)),
        (3, False, (3, 1)),
    ):
        kinds = layer_types_3_to_1(num_layers, last_global=last_global)
        config = tiny_model(num_hidden_layers=num_layers, layer_types=kinds)
        assert (config.period, config.num_repeats) == expected
        params = abstract_params(config)
        stacked = [x["mlp"]["up_proj"]["kernel"].shape[0] for x in params["layers"].values()]
        assert sum(stacked) + len(params.get("tail", {})) == num_layers


@pytest.mark.parametrize(("name", "count"), [("cwm_32b", 32_581_097_472)])
def test_parameter_count_of_the_release(name, count):
    import importlib

    assert num_parameters(importlib.import_module(f"configs.{name}").MODEL) == count


def test_llama3_frequencies_of_cwm():
    plain = inverse_frequencies(RopeParameters(), 128)
    scaled = inverse_frequencies(RopeParameters(rope_type="llama3"), 128)
    ratio = plain / scaled  # 0..26 unscaled, 27..33 blended, 34..63 divided by 16
    np.testing.assert_array_equal(ratio[:27], 1.0)
    assert ((ratio[27:34] > 1) & (ratio[27:34] < 16)).all()
    np.testing.assert_array_equal(ratio[34:], 16.0)


def test_refusals(model, tokens, unchecked_types):
    config, params = model
    with pytest.raises(ValueError, match="tokens is float32"):
        forward(params, config, tokens.astype(jnp.float32))
    with pytest.raises(ValueError, match="positions has shape"):
        forward(params, config, tokens, positions=tokens[:, 1:])
    with pytest.raises(ValueError, match="belong to another model"):
        forward(params, tiny_model(vocab_size=VOCAB_SIZE + 1), tokens)


def _at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def test_a_group_of_more_than_ten_layers_runs_in_order(tokens):
    kinds = ("full_attention",) + ("sliding_attention",) * 11
    whole_window = dict(num_hidden_layers=12, sliding_window=64)  # both kinds see the whole row
    one_group = tiny_model(layer_types=kinds, **whole_window)
    repeated = tiny_model(layer_types=kinds[:1] * 12, **whole_window)
    assert (one_group.period, repeated.period) == (12, 1)
    params = init(repeated, jax.random.key(0))
    stacked = params["layers"]["0"]
    grouped = {str(j): jax.tree.map(lambda x, j=j: x[j : j + 1], stacked) for j in range(12)}
    expected = run((repeated, params), tokens)
    ours = run((one_group, {**params, "layers": grouped}), tokens)
    assert np.abs(ours - expected).max() <= LOGITS_ATOL
