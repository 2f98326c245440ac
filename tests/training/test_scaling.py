"""Laws: FLOPs counted by brute force, the report's fits at the points it was read at."""

import numpy as np
import pytest
from tiny import tiny_model

from configs import midtrain_32b, pretrain_32b
from cwm_jax.config.architecture import FULL_ATTENTION, SLIDING_ATTENTION
from cwm_jax.model.transformer import abstract_params, num_parameters
from cwm_jax.training.plan import make_plan
from cwm_jax.training.scaling import flops
from cwm_jax.training.scaling.laws import REPORT_LAWS

MODELS = {
    "tiny": tiny_model(),
    "window_longer_than_row": tiny_model(sliding_window=200),
    "all_local": tiny_model(layer_types=(SLIDING_ATTENTION,) * 5, sliding_window=1),
    "all_global": tiny_model(layer_types=(FULL_ATTENTION,) * 5, sliding_window=None),
    "narrow_heads": tiny_model(num_attention_heads=6, num_key_value_heads=3, head_dim=4),
    "32b": pretrain_32b.MODEL,
}


@pytest.mark.parametrize("name", MODELS)
def test_closed_form_is_the_number_of_parameters(name):
    model = MODELS[name]
    closed = flops.num_non_embedding_parameters(model) + flops.num_embedding_parameters(model)
    assert closed == num_parameters(model)


def test_the_released_model_has_32_58_billion_parameters():
    assert num_parameters(pretrain_32b.MODEL) == 32_581_097_472
    assert flops.num_non_embedding_parameters(pretrain_32b.MODEL) == 31_005_087_744


@pytest.mark.parametrize("name", [n for n in MODELS if n != "32b"])
@pytest.mark.parametrize("T", [1, 7, 64])
def test_flops_equal_a_brute_force_count(name, T):
    """Every kernel's weights and every visible (query, key) pair, one by one."""
    model = MODELS[name]
    params = abstract_params(model)
    kernels = [params["lm_head"]["kernel"].size]
    for group, count in (("layers", model.num_repeats), ("tail", 1)):
        for layer in params.get(group, {}).values():
            leaves = [*layer["self_attn"].values(), *layer["mlp"].values()]
            shapes = [leaf["kernel"].shape for leaf in leaves]
            assert all(shape[0] == count for shape in shapes) or group == "tail"
            kernels += [int(np.prod(shape)) for shape in shapes]
    pairs = 0
    for kind in model.layer_types:
        for query in range(T):
            window = model.sliding_window if kind == SLIDING_ATTENTION else T
            pairs += sum(1 for key in range(query + 1) if query - key < window)
    # A pair costs a product over H for its score and one for its value in each head, 2 FLOP a step,
    # and the backward pass twice the forward's.
    per_pair = 3 * 2 * 2 * model.num_attention_heads * model.head_dim
    expected = 6 * sum(kernels) + per_pair * pairs / T
    assert flops.flops_per_token(model, T) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("T", "W"), [(1, None), (8, None), (8, 3), (8, 8), (8, 20), (9, 1)])
def test_mean_visible_keys(T, W):
    seen = [min(query + 1, W or T) for query in range(T)]
    assert flops.mean_visible_keys(T, W) == pytest.approx(np.mean(seen), rel=1e-12)


def test_the_reports_count_differs_by_head_norms_and_the_diagonal_alone():
    """At 8192 no window bites; ours counts the head and each query's own key, not the norms."""
    model, T = pretrain_32b.MODEL, 8192
    D, L = model.hidden_size, model.num_hidden_layers
    head, norms = 6 * model.vocab_size * D, 6 * (2 * L + 1) * D
    diagonal = 6 * D * L  # T + 1 keys on average over two, where the report has T
    theirs = flops.report_flops_per_token(model, T)
    ours = flops.flops_per_token(model, T)
    assert ours - theirs == pytest.approx(head - norms + diagonal, rel=1e-9)
    assert ours == pytest.approx(theirs, rel=0.03)


def test_windows_save_most_of_the_attention_at_131072_tokens():
    T = 131_072
    keys = [
        flops.mean_visible_keys(T, midtrain_32b.MODEL.window(k))
        for k in midtrain_32b.MODEL.layer_types
    ]
    assert sum(keys) / (64 * (T + 1) / 2) == pytest.approx(0.34, abs=0.005)


@pytest.mark.parametrize(("T", "gflops"), [(8192, 210), (32_768, 235), (131_072, 296)])
def test_gflop_per_token_of_the_32b(T, gflops):
    assert flops.flops_per_token(midtrain_32b.MODEL, T) / 1e9 == pytest.approx(gflops, rel=0.01)


@pytest.mark.parametrize("cap", [1, 5, 40])
def test_a_capped_global_layer_costs_what_a_local_one_of_that_window_does(cap):
    layers = dict(num_hidden_layers=3, sliding_window=cap)
    local = tiny_model(layer_types=(SLIDING_ATTENTION,) * 3, **layers)
    both = tiny_model(layer_types=(SLIDING_ATTENTION, FULL_ATTENTION, FULL_ATTENTION), **layers)
    capped = flops.flops_per_token(both, 32, attention_cap=cap)
    assert capped == flops.flops_per_token(local, 32)
    assert (capped < flops.flops_per_token(both, 32)) == (cap < 32)


def test_each_bucket_of_mid_training_is_counted_with_its_cap_and_its_longest_document():
    plan = make_plan(midtrain_32b.get_config(), num_devices=2048)
    shortest, capped, whole = (count / 1e9 for count in plan.bucket_flops_per_token)
    assert shortest == pytest.approx(222, rel=0.01)
    assert 235 < capped < 296 and whole == plan.flops_per_token / 1e9


@pytest.mark.parametrize("name", [n for n in MODELS if n != "32b"])
@pytest.mark.parametrize("T", [1, 7, 64])
def test_a_laws_flops_count_the_whole_context_or_the_windows(name, T):
    """Attention of d L S, as the report; or of every visible pair, 12 N H each."""
    model = MODELS[name]
    d, L, N = model.hidden_size, model.num_hidden_layers, flops.num_non_embedding_parameters(model)
    assert flops.law_flops_per_token(model, T) == 6 * N + 6 * d * L * T
    pairs = 0
    for kind in model.layer_types:
        window = model.sliding_window if kind == SLIDING_ATTENTION else None
        pairs += sum(min(query + 1, window or T) for query in range(T))
    expected = 6 * N + 12 * model.num_attention_heads * model.head_dim * pairs / T
    counted = flops.law_flops_per_token(model, T, count="windows")
    assert counted == pytest.approx(expected, rel=1e-12)


def test_an_unknown_count_is_refused():
    with pytest.raises(ValueError, match="FLOPs count 'window': expected one of report, windows"):
        flops.law_flops_per_token(MODELS["tiny"], 8, count="window")


@pytest.mark.parametrize(
    ("compute", "learning_rate", "batch_tokens"),
    [(2e18, 1.1e-2, 0.51e6), (2e20, 4.9e-3, 1.48e6)],  # secondary: the ends of the report's sweep
)
def test_laws_at_the_ends_of_the_sweep(compute, learning_rate, batch_tokens):
    assert REPORT_LAWS.learning_rate(compute) == pytest.approx(learning_rate, rel=0.02)
    assert REPORT_LAWS.batch_tokens(compute) == pytest.approx(batch_tokens, rel=0.02)


def test_laws_at_cwms_own_compute():
    """8T tokens at 8k and 5T at 131k: the report's M counts the longer context."""
    model = pretrain_32b.MODEL
    pre = 8e12 * flops.report_flops_per_token(model, 8192)
    mid = 5e12 * flops.report_flops_per_token(model, 131_072)
    assert pre + mid == pytest.approx(4.1e24, rel=0.01)
    assert REPORT_LAWS.learning_rate(pre + mid) == pytest.approx(8.5e-4, rel=0.01)
    assert REPORT_LAWS.batch_tokens(pre + mid) == pytest.approx(14.6e6, rel=0.01)
