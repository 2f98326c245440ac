"""Oracle: published objectives, as their papers state them, and their gradients; the metrics."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rl import published
from rl.drawn import draw_trajectories, pack, spread
from tiny import sharp_params, tiny_model, tiny_run
from tolerances import ACCUMULATION_RTOL, LOSS_RTOL, POLICY_RTOL

from cwm_jax.config import (
    DataConfig,
    EnvironmentConfig,
    ExecutionConfig,
    PolicyLossConfig,
    RLConfig,
)
from cwm_jax.model.transformer import forward
from cwm_jax.rl import objective
from cwm_jax.rl.advantages import group_advantages
from cwm_jax.rl.objective import (
    REFERENCE,
    add_sums,
    policy_loss_sums,
    policy_objective,
    sums_from_logprobs,
    zero_sums,
)
from cwm_jax.training.plan import make_plan
from cwm_jax.training.state import init_state
from cwm_jax.training.step import make_train_step

T = 48
ROWS = [[0, 4], [3, 1], [2, 5]]
PATTERN = re.compile(r"^(\S.{10}) (.*(?:\n {12}.*)*)$", re.MULTILINE)
MODEL = tiny_model(num_hidden_layers=2)


def settings_in_the_docstring() -> dict[str, PolicyLossConfig]:
    """Of each published name in the table of ``cwm_jax.rl.objective``."""
    assert objective.__doc__
    found = {}
    for name, text in PATTERN.findall(objective.__doc__.split("\n\n")[1]):
        pairs = re.findall(r"(\w+)=(\"\w+\"|[\w.-]+)", text)
        values = {key: _value(value) for key, value in pairs}
        if name[0] not in "=p":
            found[name.strip()] = PolicyLossConfig(**values)
    return found


def _value(text: str):
    if text[0] == '"':
        return text.strip('"')
    return {"True": True}[text] if text[0].isalpha() else float(text)


NAMED = settings_in_the_docstring()
GSPO = NAMED["GSPO"]
# What each name is, and what is computed by its settings.
CASES = {
    "the report": (published.report, NAMED["the report"]),
    "GRPO": (published.grpo, NAMED["GRPO"]),
    "Dr.GRPO": (published.dr_grpo, NAMED["Dr.GRPO"]),
    "RLOO": (published.rloo, NAMED["RLOO"]),
    "DAPO": (published.dapo, NAMED["DAPO"]),
    "GSPO": (published.gspo, GSPO),
    "CISPO": (
        published.cispo,
        dataclasses.replace(NAMED["CISPO"], clip_high=published.CISPO_HIGH),
    ),
    "truncated": (published.truncated, PolicyLossConfig(importance_cap=published.CAP)),
    "truncated GSPO": (
        published.truncated_gspo,
        dataclasses.replace(GSPO, importance_cap=published.CAP),
    ),
}


def run_config(folder, loss=PolicyLossConfig(), **changes):  # noqa: B008
    environments = (EnvironmentConfig(name="output", kind="output_prediction", path="corpus"),)
    rl = RLConfig(environments=environments, loss=loss)
    return tiny_run(folder, model=MODEL, rl=rl, data=DataConfig(sources=()), **changes)


def with_advantages(drawn, loss):
    for group in {one.group for one in drawn}:
        own = [one for one in drawn if one.group == group]
        returns, lengths = [one.reward for one in own], [one.num_actions for one in own]
        for one, A in zip(own, group_advantages(returns, lengths, loss), strict=True):
            one.advantage = float(A)
    return drawn


def check_close(found, expected, rtol=POLICY_RTOL):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * float(np.abs(b).max()))


def check_gradients(found, expected, rtol=ACCUMULATION_RTOL):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.linalg.norm(a - b) <= rtol * np.linalg.norm(b) > 0


# ------------------------------------------------------------ formulas


def test_every_name_in_the_table_has_its_formula():
    assert set(NAMED) == set(CASES) - {"truncated", "truncated GSPO"}
    assert NAMED["the report"] == PolicyLossConfig()


@pytest.mark.parametrize("name", CASES)
def test_a_published_objective_and_its_gradient_are_the_slow_ones(tmp_path, name):
    formula, loss = CASES[name]
    drawn = with_advantages(draw_trajectories(), loss)
    now = [one.logprobs for one in drawn]
    batch = pack(drawn, ROWS, T)
    divisor = policy_objective(run_config(tmp_path, loss)).divisor(batch)

    @jax.jit
    def ours(logprobs):
        return sums_from_logprobs(logprobs, logprobs, batch, loss).objective / divisor

    value, gradient = jax.value_and_grad(ours)(spread(drawn, ROWS, T, now))
    room = len(ROWS) * T
    np.testing.assert_allclose(value, formula(drawn, now, now, room), rtol=POLICY_RTOL)
    expected = published.derivative(formula, drawn, now, room)
    expected = spread(drawn, ROWS, T, expected) * batch["action_mask"]
    assert np.count_nonzero(expected) > 10
    check_close(gradient, expected)


def test_the_drawn_ratios_lie_on_both_sides_of_the_range_with_both_signs():
    """Or the tests above would not see the clipping."""
    drawn = with_advantages(draw_trajectories(), PolicyLossConfig())
    seen = set()
    for one in drawn:
        ratio = np.exp(one.logprobs - one.behaviour)[one.is_action]
        for kind in np.sign((ratio > 1.25).astype(int) - (ratio < 0.8).astype(int)):
            seen.add((int(kind), one.advantage > 0))
    assert seen == {(kind, sign) for kind in (-1, 0, 1) for sign in (False, True)}


def test_metrics_are_those_of_a_loop_over_tokens():
    loss = PolicyLossConfig(kl_weight=0.1)
    drawn = with_advantages(draw_trajectories(), loss)
    now = [one.logprobs for one in drawn]
    entropy = [np.abs(values) for values in now]
    rows = {name: spread(drawn, ROWS, T, v) for name, v in (("now", now), ("H", entropy))}
    sums = sums_from_logprobs(rows["now"], rows["H"], pack(drawn, ROWS, T), loss)
    n = sum(one.num_actions for one in drawn)
    ratios, low, high, sampler, reference, H, differences = [], 0, 0, 0.0, 0.0, 0.0, []
    for one in drawn:
        for t in np.flatnonzero(one.is_action):
            away = one.logprobs[t] - one.behaviour[t]
            ratio = np.exp(away)
            ratios.append(ratio)
            low += ratio < 0.8 and one.advantage < 0
            high += ratio > 1.25 and one.advantage > 0
            sampler += ratio - 1 - away
            back = one.reference[t] - one.logprobs[t]
            reference += np.exp(back) - 1 - back
            H += abs(one.logprobs[t])
            if one.group == 0:
                differences.append(abs(away))
    expected = {
        "num_actions": n,
        "ratio": sum(ratios),
        "ratio_max": max(ratios),
        "clipped_low": low,
        "clipped_high": high,
        "entropy": H,
        "sampler_kl": sampler,
        "reference_kl": reference,
        "num_current": len(differences),
        "mismatch": sum(differences),
        "mismatch_max": max(differences),
    }
    assert {field.name for field in dataclasses.fields(sums)} == {"objective", *expected}
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(sums, name), value, rtol=POLICY_RTOL, err_msg=name)


def test_cispo_counts_what_is_truncated_whatever_the_sign():
    loss = PolicyLossConfig(surrogate="cispo")
    drawn = with_advantages(draw_trajectories(), loss)
    logprobs = spread(drawn, ROWS, T, [one.logprobs for one in drawn])
    sums = sums_from_logprobs(logprobs, logprobs, pack(drawn, ROWS, T), loss)
    ratios = np.concatenate([np.exp(o.logprobs - o.behaviour)[o.is_action] for o in drawn])
    assert float(sums.clipped_low) == (ratios < 0.8).sum()
    assert float(sums.clipped_high) == (ratios > 1.25).sum()


def test_sums_of_parts_are_those_of_the_whole():
    loss = PolicyLossConfig(kl_weight=0.1)
    drawn = with_advantages(draw_trajectories(), loss)

    def sums(rows):
        logprobs = spread(drawn, rows, T, [one.logprobs for one in drawn])
        return sums_from_logprobs(logprobs, -logprobs, pack(drawn, rows, T), loss)

    parts = zero_sums()
    for row in ROWS:
        parts = add_sums(parts, sums([row]))
    check_close(parts, sums(ROWS))


# ------------------------------------------------------------ divisors


def test_the_constant_is_the_reports_at_the_reports_size(tmp_path):
    """A row of 131,072 tokens at each of 64 ranks: by N on each, then the mean over ranks."""
    for loss in (PolicyLossConfig(), PolicyLossConfig(normalization_tokens=131_072)):
        divisor = policy_objective(run_config(tmp_path, loss)).divisor
        mask = jnp.ones((2, 64, 131_072), jnp.float32)
        assert float(divisor({"action_mask": mask})) == 2 * 64 * 131_072


def test_the_divisor_counts_all_micro_batches_and_what_it_says(tmp_path):
    drawn = draw_trajectories()
    batch = {k: v[None] for k, v in pack(drawn, ROWS, T).items()}
    expected = {
        "constant": len(ROWS) * T,
        "tokens": sum(one.num_actions for one in drawn),
        "sequence": len(drawn),
    }
    for name, value in expected.items():
        divisor = policy_objective(run_config(tmp_path, PolicyLossConfig(normalization=name)))
        twice = {k: jnp.concatenate([v, v]) for k, v in batch.items()}
        np.testing.assert_allclose(divisor.divisor(batch), value, rtol=LOSS_RTOL)
        np.testing.assert_allclose(divisor.divisor(twice), 2 * value, rtol=LOSS_RTOL)
    fixed = PolicyLossConfig(normalization_tokens=100)
    assert policy_objective(run_config(tmp_path, fixed)).divisor(batch) == len(ROWS) * 100


# ------------------------------------------------------------ through the network

EXECUTION = ExecutionConfig(loss_chunk_tokens=40, attention_block_tokens=16)
EVERYTHING = dataclasses.replace(GSPO, kl_weight=0.1)  # all that looks at more than a token
FOUR_ROWS = [*ROWS, []]  # the last is padding


def value_and_gradient(params, batch, loss, execution=EXECUTION, temperature=1.0):
    def value(params):
        sums = policy_loss_sums(
            params, MODEL, batch, loss, temperature=temperature, execution=execution
        )
        return sums.objective, sums

    return jax.value_and_grad(value, has_aux=True)(params)


gradient_of = jax.jit(value_and_gradient, static_argnames=("loss", "execution", "temperature"))


@pytest.fixture(scope="module")
def params():
    return sharp_params(MODEL)


def near_the_policy(params, loss, temperature=1.0, seed=1):
    """Trajectories whose sampler and reference lie around the network's own log-probabilities."""
    drawn = with_advantages(draw_trajectories(), loss)
    rng = np.random.default_rng(seed)
    for one in drawn:
        n = len(one.is_action)
        one.logprobs = np.asarray(naive(params, one, np.zeros(n), temperature)[0], np.float64)
        one.behaviour = one.logprobs + rng.normal(0, 0.4, n)
        one.reference = one.logprobs + rng.normal(0, 0.4, n)
    return drawn


def naive(params, one, cotangent, temperature):
    """(log-probabilities of a trajectory by itself, the cotangent's gradient)."""
    n = len(one.is_action)
    tokens = np.pad(one.tokens, (0, 16 - n))  # one program for all lengths; attention is causal
    cotangent = np.pad(np.float32(cotangent), (0, 16 - n))
    logprobs, gradient = _naive(params, tokens, cotangent, temperature)
    return logprobs[:n], gradient


@jax.jit
def _naive(params, tokens, cotangent, temperature):
    def logprobs(params):
        logits = forward(params, MODEL, tokens[None, :-1])[0]
        found = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
        return jnp.take_along_axis(found, tokens[1:, None], -1)[:, 0]

    found, back = jax.vjp(logprobs, params)
    return found, back(cotangent)[0]


@pytest.mark.parametrize(
    ("formula", "loss"), [(published.report, PolicyLossConfig()), (published.gspo, GSPO)]
)
def test_gradients_are_those_through_all_logits_at_a_temperature(params, formula, loss):
    """Each trajectory by itself through the dense model, its cotangent from the slow formula."""
    drawn = near_the_policy(params, loss, temperature=0.7)
    batch = pack(drawn, ROWS, T)
    (value, _), gradient = gradient_of(params, batch, loss, temperature=0.7)
    now = [one.logprobs for one in drawn]
    room = len(ROWS) * T
    scale = len(drawn) if loss.normalization == "sequence" else room  # sums are not divided
    np.testing.assert_allclose(value / scale, formula(drawn, now, now, room), rtol=2 * POLICY_RTOL)
    total = jax.tree.map(jnp.zeros_like, params)
    for one, d in zip(drawn, published.derivative(formula, drawn, now, room), strict=True):
        _, part = naive(params, one, d * scale, 0.7)
        total = jax.tree.map(jnp.add, total, part)
    check_gradients(gradient, total, rtol=2 * POLICY_RTOL)


def test_accumulation_changes_neither_the_loss_of_a_step_nor_its_gradient(tmp_path, params):
    drawn = near_the_policy(params, EVERYTHING)
    rows = pack(drawn, FOUR_ROWS, T)
    recorder = optax.GradientTransformation(
        lambda p: jax.tree.map(jnp.zeros_like, p), lambda grads, _, __: (grads, grads)
    )
    config = run_config(tmp_path, EVERYTHING, rows=4)
    unclipped = dataclasses.replace(config.optimizer, gradient_clipping_threshold=None)
    config = dataclasses.replace(config, optimizer=unclipped, execution=EXECUTION)
    plan = make_plan(config, num_devices=1)
    start = init_state(config, jax.random.key(0), optimizer=recorder)
    state = dataclasses.replace(start, params=params)
    found = []
    for count in (1, 2):
        step = make_train_step(
            config, plan=plan, optimizer=recorder, objective=policy_objective(config)
        )
        batch = {k: v.reshape(count, -1, T) for k, v in rows.items()}
        new, metrics = jax.jit(step)(state, batch)
        found.append((metrics, new.opt_state))
    (expected, gradient), (metrics, other) = found
    assert set(metrics) >= {"ratio_max", "clip_low_fraction", "mismatch_max", "num_targets"}
    for key, value in metrics.items():
        np.testing.assert_allclose(value, expected[key], rtol=POLICY_RTOL, err_msg=key)
    check_gradients(other, gradient)


def test_only_action_tokens_are_learnt_from(params):
    """Neither observations' log-probabilities nor their advantages matter."""
    drawn = near_the_policy(params, EVERYTHING)
    batch = pack(drawn, FOUR_ROWS, T)
    (_, expected), gradient = gradient_of(params, batch, EVERYTHING)
    changed = {"behaviour_logprobs": -60.0, "advantages": 5.0, "is_current": 1.0}
    for key, value in {**changed, REFERENCE: -30.0}.items():
        batch[key] = jnp.where(batch["action_mask"] > 0, batch[key], value)
    (_, sums), same = gradient_of(params, batch, EVERYTHING)
    check_close(sums, expected)
    check_gradients(same, gradient)
    assert 0 < float(expected.num_actions) < (batch["segment_ids"] > 0).sum()
