"""Laws: the schedule's end points, batches by tokens, and what a plan refuses."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_model, tiny_run

from configs import cwm_60m, midtrain_32b, pretrain_32b
from cwm_jax.config import BatchConfig, BatchPhase, MeshConfig, OptimizerConfig, RunConfig
from cwm_jax.training.plan import Plan, make_plan
from cwm_jax.training.state import abstract_state

PRETRAIN = make_plan(pretrain_32b.get_config(), num_devices=2048)
MIDTRAIN = make_plan(midtrain_32b.get_config(), num_devices=2048)
T = 32


def plan_of(tmp_path, *, batch_tokens=T, num_devices=1, **changes) -> Plan:
    """A plan of rows of 32 tokens, one row on each device."""
    batch = BatchConfig(
        max_target_length=T, per_device_batch_size=1, global_batch_tokens=batch_tokens
    )
    values = {"batch": batch, "mesh": MeshConfig()} | changes
    return make_plan(tiny_run(tmp_path, **values), num_devices=num_devices)


def optimizer(**changes) -> OptimizerConfig:
    return OptimizerConfig(**{"learning_rate": 1.0, "train_tokens": 100 * T} | changes)


def closed_form(config: RunConfig, tokens: int, peak: float, horizon: int) -> float:
    """The schedule in float64, from its definition."""
    warmup, final = config.optimizer.warmup_tokens, config.optimizer.final_learning_rate_fraction
    if tokens < warmup:
        return peak * tokens / warmup
    if config.optimizer.schedule == "constant":
        return peak
    progress = min((tokens - warmup) / (horizon - warmup), 1.0)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


# The report's schedule


def test_pretraining_milestones():
    assert PRETRAIN.total_steps == math.ceil(8e12 / 2**23) == 953_675
    assert float(PRETRAIN.learning_rate(0)) == pytest.approx(8e-4 / 2000, rel=1e-6)
    assert float(PRETRAIN.learning_rate(1999)) == pytest.approx(8e-4, rel=1e-6)
    assert float(PRETRAIN.learning_rate(953_674)) == pytest.approx(2.64e-4, rel=0.01)


def test_midtraining_goes_on_where_pretraining_ended():
    assert MIDTRAIN.total_steps == math.ceil(5e12 / 2**25) == 149_012
    before, after = PRETRAIN.learning_rate(953_674), MIDTRAIN.learning_rate(0)
    assert float(after) == pytest.approx(float(before), rel=1e-4)
    assert float(MIDTRAIN.learning_rate(149_011)) == pytest.approx(8e-6, rel=1e-5)


@pytest.mark.parametrize("plan", [PRETRAIN, MIDTRAIN], ids=["pretrain", "midtrain"])
def test_learning_rate_of_an_int32_step_under_jit(plan):
    steps = {0, 1, 1998, 1999, 2000, plan.total_steps - 1}
    steps |= set(np.random.default_rng(0).integers(0, plan.total_steps, 300).tolist())
    rate = jax.jit(jax.vmap(plan.learning_rate))(jnp.asarray(sorted(steps), jnp.int32))
    peak, horizon = plan.peak_learning_rate, plan.horizon_tokens
    expected = [
        closed_form(plan.config, plan.tokens_before(step + 1), peak, horizon)
        for step in sorted(steps)
    ]
    np.testing.assert_allclose(np.asarray(rate, np.float64), expected, rtol=0, atol=1e-6 * peak)


def test_tokens_are_exact_at_13_trillion():
    assert MIDTRAIN.tokens_before(0) == 8 * 10**12
    tokens = MIDTRAIN.tokens_before(MIDTRAIN.total_steps)
    assert type(tokens) is int and tokens == 8 * 10**12 + 149_012 * 2**25
    assert tokens - 2**25 < 13 * 10**12 <= tokens


def test_weights_and_moments_spread_over_every_device():
    for plan in (PRETRAIN, MIDTRAIN):
        spread = 12 * plan.num_parameters / 2048
        norms = 12 * 129 * 6144  # kept whole on every device
        assert spread <= plan.state_bytes_per_device <= spread + norms + 64


# Shapes of the schedule


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_end_points(tmp_path, schedule):
    config = optimizer(schedule=schedule, warmup_tokens=10 * T, final_learning_rate_fraction=0.1)
    plan = plan_of(tmp_path, optimizer=config)
    rates = [float(plan.learning_rate(step)) for step in range(plan.total_steps)]
    assert len(rates) == 100
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert rates[-1] == pytest.approx(0.1 if schedule == "cosine" else 1.0, rel=1e-5)
    steps = np.diff(rates[10:])
    assert (steps < 0).all() if schedule == "cosine" else (steps == 0).all()


def test_without_warm_up_the_first_step_has_nearly_the_peak(tmp_path):
    plan = plan_of(tmp_path, optimizer=optimizer())
    assert 0.999 < float(plan.learning_rate(0)) < 1


def test_after_the_horizon_the_rate_stays(tmp_path):
    plan = plan_of(tmp_path, optimizer=optimizer(horizon_tokens=50 * T))
    np.testing.assert_allclose([plan.learning_rate(s) for s in (49, 50, 99)], 0.01, rtol=1e-5)


def test_steps_cut_a_run_without_changing_its_schedule(tmp_path):
    whole, cut = (
        plan_of(tmp_path, optimizer=optimizer()),
        plan_of(tmp_path, optimizer=optimizer(), steps=7),
    )
    assert (whole.total_steps, cut.total_steps) == (100, 7)
    assert all(whole.learning_rate(s) == cut.learning_rate(s) for s in range(7))


# Batches by tokens


def test_phases_change_the_batch_at_their_tokens(tmp_path):
    """A phase ends with the step that reaches the next one's tokens."""
    phases = (
        BatchPhase(from_tokens=0, batch_tokens=T),
        BatchPhase(from_tokens=10 * T, batch_tokens=4 * T),
        BatchPhase(from_tokens=21 * T, batch_tokens=2 * T),
    )
    plan = plan_of(tmp_path, batch_tokens=phases, optimizer=optimizer(train_tokens=27 * T))
    assert [(s.first_step, s.first_tokens // T, s.accumulation_steps) for s in plan.stages] == [
        (0, 0, 1),
        (10, 10, 4),
        (13, 22, 2),  # the third step of 4 rows began at 18
    ]
    assert plan.total_steps == 16
    before = [plan.tokens_before(step) // T for step in range(17)]
    assert before == [*range(10), 10, 14, 18, 22, 24, 26, 28]
    assert [plan.stage(step).batch_tokens // T for step in (0, 9, 10, 12, 13, 15)] == [
        *(1, 1, 4, 4, 2, 2)
    ]
    rates = jax.jit(jax.vmap(plan.learning_rate))(jnp.arange(16, dtype=jnp.int32))
    expected = [closed_form(plan.config, n * T, 1.0, 27 * T) for n in before[1:]]
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_a_run_starts_in_the_phase_of_its_start_tokens(tmp_path):
    phases = (
        BatchPhase(from_tokens=0, batch_tokens=T),
        BatchPhase(from_tokens=10 * T, batch_tokens=2 * T),
    )
    late = plan_of(
        tmp_path, batch_tokens=phases, optimizer=optimizer(start_tokens=10 * T, train_tokens=4 * T)
    )
    assert [s.batch_tokens for s in late.stages] == [2 * T] and late.total_steps == 2
    early = plan_of(tmp_path, batch_tokens=phases, optimizer=optimizer(train_tokens=10 * T))
    assert [s.batch_tokens for s in early.stages] == [T] and early.total_steps == 10


def test_a_phase_shorter_than_a_step_is_passed_over(tmp_path):
    phases = (
        BatchPhase(from_tokens=0, batch_tokens=8 * T),
        BatchPhase(from_tokens=T, batch_tokens=2 * T),
        BatchPhase(from_tokens=2 * T, batch_tokens=4 * T),
    )
    plan = plan_of(tmp_path, batch_tokens=phases, optimizer=optimizer(train_tokens=16 * T))
    assert [(s.first_step, s.batch_tokens // T) for s in plan.stages] == [(0, 8), (1, 4)]


def test_accumulation_gives_the_batch_where_no_tokens_do(tmp_path):
    section = BatchConfig(
        max_target_length=T, per_device_batch_size=2, gradient_accumulation_steps=3
    )
    plan = plan_of(tmp_path, num_devices=2, optimizer=optimizer(), batch=section)
    assert plan.stages[0].batch_tokens == 3 * 2 * 2 * T and plan.micro_batch_rows == 4


# The report's laws in a run


def test_laws_of_a_run():
    plan = make_plan(cwm_60m.get_config(), num_devices=1)
    model = cwm_60m.MODEL
    N = model.num_hidden_layers * (2 * 768 * 128 * 7 + 3 * 768 * 2688 + 2 * 768) + 768
    C = (6 * N + 6 * 768 * model.num_hidden_layers * 8192) * 20 * N
    assert plan.law_compute_flops == pytest.approx(C, rel=1e-12)
    assert plan.peak_learning_rate == pytest.approx(19.29 * C**-0.177, rel=1e-12)
    micro = 4 * 8192
    assert plan.stages[0].batch_tokens == round(30.17 * C**0.231 / micro) * micro
    text = plan.describe()
    for number in (f"{C:.4g} FLOP", "19.29 x C^-0.177", "30.17 x C^0.231"):
        assert number in text


# Refusals


def test_a_batch_that_is_no_multiple_names_the_nearest(tmp_path):
    with pytest.raises(
        ValueError, match=re.escape("of 100 tokens") + ".*" + re.escape("[96, 128]")
    ):
        plan_of(tmp_path, batch_tokens=100, optimizer=optimizer())
    with pytest.raises(ValueError, match=re.escape("nearest: [256]")):
        plan_of(tmp_path, batch_tokens=100, num_devices=8, optimizer=optimizer())
    phases = (
        BatchPhase(from_tokens=0, batch_tokens=T),
        BatchPhase(from_tokens=T, batch_tokens=T + 1),
    )
    with pytest.raises(ValueError, match="a batch of 33 tokens"):
        plan_of(tmp_path, batch_tokens=phases, optimizer=optimizer())


@pytest.mark.parametrize(
    ("mesh", "rows", "message"),
    [
        (MeshConfig(fsdp=4, tensor=2), 0.25, "gives 2 rows; expected a multiple of 4"),
        (MeshConfig(fsdp=4, tensor=2), 0.3, "gives 2.4 rows"),
        (MeshConfig(fsdp=3), 1, "takes 3 devices; got 8"),
        (MeshConfig(fsdp=-1, tensor=3), 1, "takes 6 devices; got 8"),
    ],
)
def test_rows_and_meshes_that_do_not_fit(tmp_path, mesh, rows, message):
    section = BatchConfig(max_target_length=T, per_device_batch_size=rows)
    with pytest.raises(ValueError, match=re.escape(message)):
        plan_of(tmp_path, num_devices=8, mesh=mesh, batch=section)


def test_weights_that_do_not_divide_over_the_mesh(tmp_path):
    model = tiny_model(intermediate_size=50)
    section = BatchConfig(max_target_length=T, per_device_batch_size=0.25)
    with pytest.raises(ValueError, match="logical axis 'mlp' of size 50 does not divide into 4"):
        plan_of(tmp_path, num_devices=4, model=model, mesh=MeshConfig(tensor=4), batch=section)


def test_state_bytes_are_those_of_the_arrays(tmp_path):
    plan = plan_of(tmp_path, optimizer=optimizer())
    leaves = jax.tree.leaves(abstract_state(plan.config))
    assert plan.state_bytes_per_device == sum(x.size * x.dtype.itemsize for x in leaves)


# The text


def test_describe_has_every_milestone(tmp_path):
    phases = (
        BatchPhase(from_tokens=0, batch_tokens=T),
        BatchPhase(from_tokens=60 * T, batch_tokens=2 * T),
    )
    config = optimizer(warmup_tokens=10 * T)
    text = plan_of(tmp_path, batch_tokens=phases, optimizer=config).describe()
    assert "steps                  80\n" in text
    for step in (1, 10, 41, 61, 80):  # first, end of warm-up, middle, change of the batch, last
        assert f" at step {step}" in text
    assert "1 at step 10," in text and "0.01 at step 80" in text
    for row in ("parameters", "FLOPs per token", "FLOPs of the run", "bytes per device", "tokens"):
        assert f"  {row} " in text
    assert "batch from step 0      32 tokens = 1 x 1 rows x 32" in text
    assert "batch from step 60     64 tokens = 2 x 1 rows x 32" in text


def test_describe_of_pretraining():
    text = PRETRAIN.describe()
    for part in (
        "32,581,097,472 (31,005,087,744 without embeddings)",
        "2048 (data 1, fsdp 1024, context 1, tensor 2)",
        "953,675",
        "8,388,608 tokens = 1 x 1024 rows x 8192",
        "0.0008 at step 2,000",
        "0.000264 at step 953,675",
    ):
        assert part in text


def test_describe_of_midtraining_has_its_buckets():
    text = MIDTRAIN.describe()
    assert "(windows counted, T 131072)" in text
    assert re.findall(r"length bucket \d +(.*)", text) == [
        "documents to 16,385 tokens, global attention not capped, 2.222e+11 FLOP per token",
        "documents to 65,537 tokens, global attention capped at 32,768, 2.469e+11 FLOP per token",
        "all longer documents, global attention not capped, 2.961e+11 FLOP per token",
    ]


def test_a_run_of_one_step_is_described(tmp_path):
    config = dataclasses.replace(optimizer(), train_tokens=1, warmup_tokens=10 * T)
    assert "0.1 at step 1" in plan_of(tmp_path, optimizer=config).describe()
