"""Oracle: every variant of the objective against loops in NumPy over one trajectory at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rl.trajectories import random_trajectory, with_logprobs
from tiny import sharp_params, tiny_model
from tolerances import ACCUMULATION_RTOL, LOSS_RTOL

from cwm_jax.config import ExecutionConfig, MeshConfig, PolicyLossConfig
from cwm_jax.model.transformer import forward
from cwm_jax.rl import objective
from cwm_jax.rl.batches import Learnable, RowPacker, flatten
from cwm_jax.rl.objective import REFERENCE, add_sums, batch_logprobs, zero_sums
from cwm_jax.sharding import make_mesh, put_batch

MODEL = tiny_model(num_hidden_layers=2)
T, ROWS = 32, 9
EXECUTION = ExecutionConfig(loss_chunk_tokens=24)
GRPO = dict(
    baseline="mean", divide_by_std=True, clip_high=0.2, normalization="sequence", kl_weight=0.04
)
GSPO = dict(
    baseline="mean",
    divide_by_std=True,
    ratio="sequence",
    normalization="sequence",
    clip_low=3e-4,
    clip_high=4e-4,
)
VARIANTS = {
    "report": {},
    "GRPO": GRPO,
    "Dr.GRPO": dict(baseline="mean", clip_high=0.2),
    "RLOO": dict(baseline="leave_one_out"),
    "DAPO": dict(baseline="mean", divide_by_std=True, clip_high=0.28, normalization="tokens"),
    "GSPO": GSPO,
    "CISPO": dict(surrogate="cispo", normalization="tokens"),
    "truncated weights": dict(importance_cap=1.1),
    "truncated weights of sequences": dict(importance_cap=1.1, ratio="sequence"),
}
ADVANTAGES = [1.3, -0.7, 0.4, -1.1, 0.9, -0.2, 2.0, -1.6, 0.5]
sums_of = jax.jit(
    lambda params, batch, loss: objective.policy_loss_sums(
        params, MODEL, batch, loss, execution=EXECUTION
    ),
    static_argnums=2,
)
logits_of = jax.jit(lambda params, tokens: forward(params, MODEL, tokens))


@pytest.fixture(scope="module")
def params():
    return sharp_params(MODEL)


@functools.cache
def trajectories():
    """Of a sampler that was a little off, so that ratios lie on both sides of the range."""
    rng, params = np.random.default_rng(0), sharp_params(MODEL)
    made = []
    for _ in ADVANTAGES:
        t = random_trajectory(rng, MODEL.vocab_size)
        tokens, is_action, _ = flatten(t)
        drawn = true_logprobs(params, tokens)[is_action[1:] > 0]
        off = np.minimum(-1e-3, drawn + 0.3 * rng.normal(size=len(drawn)))
        made.append(with_logprobs(t, off))
    return made


def true_logprobs(params, tokens):
    row = np.zeros((1, T), np.int32)
    row[0, : len(tokens) - 1] = tokens[:-1]
    logits = np.asarray(logits_of(params, jnp.asarray(row)))[0, : len(tokens) - 1]
    return np.asarray(jax.nn.log_softmax(logits))[np.arange(len(tokens) - 1), tokens[1:]]


def packed(order, num_rows=ROWS):
    packer = RowPacker(num_rows, T)
    for n in order:
        learnable = Learnable(trajectory=trajectories()[n], advantage=ADVANTAGES[n])
        assert packer.add([learnable])
    return jax.tree.map(jnp.asarray, packer.batch(version=0))


def with_reference(batch, reference):
    found, _ = batch_logprobs(reference, MODEL, batch, execution=EXECUTION)
    return {**batch, REFERENCE: found}


def slow_sum(loss, params, reference):
    """(sum, action tokens) as the formulas say, one token after another."""
    total, num_tokens = 0.0, 0
    for t, advantage in zip(trajectories(), ADVANTAGES, strict=True):
        tokens, is_action, old = flatten(t)
        new, start = true_logprobs(params, tokens), true_logprobs(reference, tokens)
        places = [i for i in range(len(tokens) - 1) if is_action[i + 1]]
        terms = []
        for i in places:
            log_ratio, weight = new[i] - old[i + 1], 1.0
            if loss.ratio == "sequence":
                log_ratio = sum(new[j] - old[j + 1] for j in places) / len(places)
            if loss.importance_cap is not None:
                weight, log_ratio = min(np.exp(new[i] - old[i + 1]), loss.importance_cap), 0.0
            ratio = np.exp(log_ratio)
            clipped = min(max(ratio, 1 - loss.clip_low), 1 + loss.clip_high)
            if loss.surrogate == "cispo":
                term = -weight * clipped * advantage * new[i]
            else:
                term = -weight * min(ratio * advantage, clipped * advantage)
            away = start[i] - new[i]
            terms.append(term + loss.kl_weight * (np.exp(away) - 1 - away))
        total += sum(terms) / (len(terms) if loss.normalization == "sequence" else 1)
        num_tokens += len(terms)
    return total, num_tokens


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_its_formula(params, name):
    loss = PolicyLossConfig(**VARIANTS[name])
    reference = sharp_params(MODEL, seed=1)
    sums = sums_of(params, with_reference(packed(range(9)), reference), loss)
    total, num_tokens = slow_sum(loss, params, reference)
    np.testing.assert_allclose(sums.objective, total, rtol=20 * LOSS_RTOL)
    assert sums.num_actions == num_tokens
    if name == "report":
        assert sums.clipped_low > 0 and sums.clipped_high > 0  # the data reach both borders


@pytest.mark.parametrize("name", ["report", "GSPO", "CISPO", "truncated weights", "GRPO"])
def test_gradients_are_those_of_whole_logits(params, name):
    """The same surrogate over logits that exist at once, differentiated by JAX."""
    loss = PolicyLossConfig(**VARIANTS[name])
    batch = with_reference(packed(range(9)), sharp_params(MODEL, seed=1))

    def whole(x, kernel, targets, chunk_tokens, temperature):
        logprobs = jax.nn.log_softmax(x @ kernel / temperature)
        return jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0], 0.0 * targets

    def gradient():
        def of(params):
            return objective.policy_loss_sums(
                params, MODEL, batch, loss, execution=EXECUTION
            ).objective

        return jax.jit(jax.grad(of))(params)

    ours = gradient()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "token_logprobs", whole)
        expected = gradient()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= 10 * ACCUMULATION_RTOL * np.linalg.norm(b)
    assert np.linalg.norm(ours["lm_head"]["kernel"]) > 0


def test_packing_and_micro_batches_change_nothing(params):
    loss = PolicyLossConfig(ratio="sequence", normalization="sequence")
    one, joined = sums_of(params, packed(range(9)), loss), zero_sums()
    other = packed(reversed(range(9)), num_rows=8)
    assert (other["segment_ids"] > 1).any()
    for row in range(0, 8, 2):
        micro = {key: value[row : row + 2] for key, value in other.items()}
        joined = add_sums(joined, sums_of(params, micro, loss))
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(joined, field.name)
        np.testing.assert_allclose(a, b, rtol=1e-4, err_msg=field.name)


@pytest.mark.parametrize(
    "mesh", [dict(fsdp=2, tensor=2, context=2), dict(data=2, fsdp=2, tensor=2)]
)
def test_a_mesh_computes_what_one_device_does(params, mesh):
    loss = PolicyLossConfig(ratio="sequence")
    batch = packed(range(9), num_rows=8)

    def of(params, batch):
        sums = objective.policy_loss_sums(params, MODEL, batch, loss, execution=EXECUTION)
        return sums.objective, sums

    run = jax.jit(jax.grad(of, has_aux=True))
    expected = run(params, batch)
    devices = make_mesh(MeshConfig(**mesh))
    with jax.set_mesh(devices):
        found = run(params, put_batch(batch, devices))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(float(np.linalg.norm(b)), 1e-6)
        assert np.linalg.norm(np.asarray(a) - np.asarray(b)) <= 1e-4 * scale


def test_what_the_policy_draws_itself_has_ratio_one_and_no_mismatch(params):
    tokens, is_action, _ = flatten(trajectories()[0])
    own = with_logprobs(trajectories()[0], true_logprobs(params, tokens)[is_action[1:] > 0])
    packer = RowPacker(1, T)
    packer.add([Learnable(trajectory=own, advantage=2.0)])
    sums = sums_of(params, packer.batch(version=0), PolicyLossConfig())
    assert sums.mismatch_max < 1e-5 and abs(sums.ratio / sums.num_actions - 1) < 1e-5
    assert sums.num_current == sums.num_actions and abs(sums.sampler_kl) < 1e-6
    np.testing.assert_allclose(sums.objective, -2.0 * sums.num_actions, rtol=1e-5)
    later = packer.batch(version=3)
    assert not later["is_current"].any()  # other weights drew it: that is no mismatch
