"""The step: exact under accumulation, AdamW as published, non-finite steps skipped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import random_batch, tiny_model, tiny_run
from tolerances import ACCUMULATION_RTOL, LOSS_RTOL

from cwm_jax.training.state import init_state
from cwm_jax.training.step import make_train_step


@pytest.fixture
def run_config(tmp_path):
    return tiny_run(tmp_path, rows=4)


def step_once(config, batch, *, optimizer=None, key=0, **settings):
    state = init_state(config, jax.random.key(key), optimizer=optimizer)
    step = jax.jit(make_train_step(config, plan=_plan(config), optimizer=optimizer, **settings))
    return state, *step(state, jax.tree.map(jnp.asarray, batch))


def _plan(config):
    from cwm_jax.training.plan import make_plan

    return make_plan(config, num_devices=1)


def test_accumulation_changes_neither_loss_nor_gradient(run_config):
    """The gradients themselves, as an optimizer gets them: Adam amplifies rounding near zero."""
    recorder = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, _, __: (grads, grads)
    )
    config = dataclasses.replace(
        run_config,
        optimizer=dataclasses.replace(run_config.optimizer, gradient_clipping_threshold=None),
    )
    rows = random_batch((4, 32))
    gradients, losses = [], []
    for count in (1, 2, 4):
        batch = {k: v.reshape(count, 4 // count, 32) for k, v in rows.items()}
        _, new, metrics = step_once(config, batch, optimizer=recorder)
        gradients.append(new.opt_state)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, losses[0], rtol=LOSS_RTOL)
    for other in gradients[1:]:
        for a, b in zip(jax.tree.leaves(gradients[0]), jax.tree.leaves(other), strict=True):
            assert np.linalg.norm(a - b) <= ACCUMULATION_RTOL * np.linalg.norm(a)


def test_a_capped_step_is_that_of_a_model_with_windows(run_config):
    batch = random_batch((4, 32))
    losses = []
    for kind, window, cap in (
        ("sliding_attention", 5, None),
        ("full_attention", 9, 5),
        ("full_attention", 9, None),
    ):
        model = tiny_model(num_hidden_layers=2, layer_types=(kind,) * 2, sliding_window=window)
        config = dataclasses.replace(run_config, model=model)
        _, new, metrics = step_once(config, batch, attention_cap=cap)
        losses.append((float(metrics["loss"]), np.asarray(new.params["norm"]["scale"]).tolist()))
    assert losses[0] == losses[1] != losses[2]


def test_step_is_adamw_with_clipping(run_config):
    batch = random_batch((4, 32))
    old, new, metrics = step_once(run_config, batch)
    old, new, grads = jax.device_get((old.params, new.params, _sgd_gradients(run_config, batch)))
    decay = {"scale": 0.0}
    clip = run_config.optimizer.gradient_clipping_threshold
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    rate, factor = float(metrics["learning_rate"]), min(1.0, clip / norm)

    def expected(path, p, g):
        g = g * factor  # first step: both moments are bias-corrected to g and g^2
        direction = g / (np.sqrt(g * g) + run_config.optimizer.adam_eps)
        weight_decay = decay.get(path[-1].key, run_config.optimizer.weight_decay)
        return p - rate * (direction + weight_decay * p)

    want = jax.tree_util.tree_map_with_path(expected, old, grads)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(new), strict=True
    ):
        unsure = np.abs(_leaf(grads, path)) < 1e-6  # the sign of a gradient that is rounding
        assert not unsure.all()
        np.testing.assert_allclose(np.where(unsure, 0, a), np.where(unsure, 0, b), atol=2e-5)


def test_norms_are_not_decayed_and_weights_are(run_config):
    optimizer = dataclasses.replace(run_config.optimizer, weight_decay=0.5)
    config = dataclasses.replace(run_config, optimizer=optimizer)
    batch = random_batch((4, 32))
    batch["loss_mask"][:] = 0.0  # no gradient: decay alone moves
    old, new, metrics = step_once(config, batch)
    rate = float(metrics["learning_rate"])
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(old.params), jax.tree.leaves(new.params), strict=True
    ):
        shrunk = a if path[-1].key == "scale" else a * (1 - rate * 0.5)
        np.testing.assert_allclose(b, shrunk, rtol=1e-6)


def test_a_nonfinite_step_is_skipped_and_counted(run_config):
    state = init_state(run_config, jax.random.key(0))
    step = jax.jit(make_train_step(run_config, plan=_plan(run_config)))
    good = jax.tree.map(jnp.asarray, random_batch((4, 32)))
    bad = {**good, "loss_mask": good["loss_mask"].at[0, 0].set(jnp.nan)}
    state, _ = step(state, good)
    after, metrics = step(state, bad)
    for name in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
    assert int(metrics["skipped_steps"]) == int(metrics["skipped_in_a_row"]) == 1
    assert int(after.step) == 2
    again, metrics = step(after, good)
    assert (int(metrics["skipped_steps"]), int(metrics["skipped_in_a_row"])) == (1, 0)
    assert any(
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (again.params, after.params)), strict=True)
    )


def test_training_learns_a_repeated_batch(run_config):
    optimizer = dataclasses.replace(run_config.optimizer, train_tokens=60 * 4 * 32)
    config = dataclasses.replace(run_config, optimizer=optimizer)
    state = init_state(config, jax.random.key(0))
    step = jax.jit(make_train_step(config, plan=_plan(config)))
    batch = jax.tree.map(jnp.asarray, random_batch((4, 32)))
    losses = []
    for _ in range(60):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 2.0


def _sgd_gradients(config, batch):
    from cwm_jax.training.losses import loss

    params = init_state(config, jax.random.key(0)).params
    batch = jax.tree.map(jnp.asarray, batch)
    return jax.jit(jax.grad(lambda p: loss(p, config.model, batch)[0]))(params)


def _leaf(tree, path):
    for key in path:
        tree = tree[key.key]
    return np.asarray(tree)
