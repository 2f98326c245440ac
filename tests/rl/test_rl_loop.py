"""Fault and contract: a run of reinforcement learning, in turns and all the time."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from rl import small_runs
from rl.small_runs import rl_run

from cwm_jax.config import EnvironmentConfig, PolicyLossConfig
from cwm_jax.rl import loop, selection
from cwm_jax.rl.envs import kinds
from cwm_jax.rl.evaluation import Evaluation, changes, read_evaluations
from cwm_jax.rl.learner import NothingToLearnError
from cwm_jax.rl.report import describe_change
from cwm_jax.rl.trajectory import read_trajectories
from cwm_jax.training import checkpoint as ckpt
from cwm_jax.training.metrics import TIMING_FIELDS, read_metrics
from cwm_jax.training.signals import StopRequest
from cwm_jax.training.step import NonFiniteError

TIMES = TIMING_FIELDS | {"play_time_s"}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return small_runs.write_tokenizer(folder / "t")


@pytest.fixture(autouse=True)
def games(monkeypatch):
    """Environments that random weights solve half of the time, in the kinds' places."""

    one_device(monkeypatch)
    monkeypatch.setattr(loop, "make_environments", small_runs.make_environments)
    monkeypatch.setattr(loop, "load_tasks", small_runs.load_tasks)


def one_device(monkeypatch, count=1):
    found = jax.local_devices()[:count]
    monkeypatch.setattr(jax, "devices", lambda *_: found)


def comparable(result):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in result.metrics]


def assert_same_params(a, b):
    for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        assert np.array_equal(x, y)


@pytest.fixture(scope="module")
def played_run(tmp_path_factory, tokenizer_folder):
    with pytest.MonkeyPatch.context() as patch:
        games.__wrapped__(patch)
        folder = tmp_path_factory.mktemp("rl")
        config = rl_run(folder, tokenizer_folder, kinds=("output_prediction", "swe"))
        return config, loop.run(config)


def test_two_runs_of_one_seed_are_identical(played_run, tmp_path, tokenizer_folder):
    config, first = played_run
    again = loop.run(dataclasses.replace(config, base_output_directory=str(tmp_path)))
    assert comparable(first) == comparable(again)
    assert_same_params(first, again)
    other = loop.run(
        dataclasses.replace(config, base_output_directory=str(tmp_path / "s"), seed=1, steps=1)
    )
    assert comparable(first)[1] != comparable(other)[1]


def test_a_task_that_cannot_be_used_ends_a_run_before_it_touches_anything(
    tmp_path, tokenizer_folder, monkeypatch
):
    monkeypatch.setattr(loop, "load_tasks", kinds.load_tasks)
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"name": "a", "data": {"problem": "x", "answer": 42}}\n')
    environment = EnvironmentConfig(name="mine", kind="math", path=str(path))
    config = rl_run(tmp_path / "runs", tokenizer_folder, rl={"environments": (environment,)})
    with pytest.raises(
        ValueError, match=rf"'mine' \(math\): {path}:1: math task 'a': answer is 42"
    ):
        loop.run(config)
    assert not (tmp_path / "runs").exists()


def test_a_run_that_was_cut_goes_on_as_if_nothing_had_happened(
    played_run, tmp_path, tokenizer_folder
):
    config, whole = played_run
    config = dataclasses.replace(config, base_output_directory=str(tmp_path))
    loop.run(dataclasses.replace(config, steps=2))
    rest = loop.run(config)
    assert comparable(whole) == comparable(rest)
    assert_same_params(whole, rest)
    episodes = [
        [t for f in sorted((r.folder / "trajectories").glob("*")) for t in read_trajectories(f)]
        for r in (whole, rest)
    ]
    assert episodes[0] == episodes[1] != []


def test_the_metrics_say_what_was_played(played_run):
    _, result = played_run
    assert [line["step"] for line in result.metrics] == [0, 1, 2, 3, 4]
    for line in result.metrics[1:]:
        assert line["mismatch_max"] <= 1e-4 and line["entropy"] > 0
        assert line["groups"] > 0 and line["episodes"] == 4 * line["groups"]
        assert -1 <= line["reward_output_prediction"] <= 1
        assert line["rejected_failed"] == line["rejected_crashed"] == 0
    rates = [line["solve_rate_swe"] for line in result.metrics if "solve_rate_swe" in line]
    assert rates and all(0 <= rate <= 1 for rate in rates)
    assert {"eval_output_prediction", "eval_swe"} <= set(result.metrics[0])
    assert [len(before.solve_rates) for before, _ in changes(result.folder)] == [8, 8]
    assert (result.folder / "rl.png").stat().st_size > 10_000


def test_rewards_rise(tmp_path, tokenizer_folder):
    config = rl_run(tmp_path, tokenizer_folder, steps=32)
    checkpoint = dataclasses.replace(config.checkpoint, checkpoint_period=100)
    lines = loop.run(dataclasses.replace(config, checkpoint=checkpoint)).metrics
    rates = [line["solve_rate_output_prediction"] for line in lines[1:]]
    first, last = np.mean(rates[:8]), np.mean(rates[-8:])
    assert first < 0.6 and last > first + 0.1, rates


def test_playing_all_the_time_pushes_weights_into_running_episodes(tmp_path, tokenizer_folder):
    rl = dict(mode="asynchronous", ready_groups=4)
    result = loop.run(
        rl_run(tmp_path, tokenizer_folder, kinds=("output_prediction", "swe"), steps=6, rl=rl)
    )
    assert result.finished and len(result.metrics) == 7
    assert any(line["staleness_max"] > 0 for line in result.metrics[1:])
    resumed = loop.run(
        rl_run(tmp_path, tokenizer_folder, kinds=("output_prediction", "swe"), steps=6, rl=rl)
    )
    assert len(resumed.metrics) == 7  # it was at its end


def test_playing_on_other_devices_than_training(tmp_path, tokenizer_folder, monkeypatch):
    one_device(monkeypatch, count=4)
    engines = []

    def make_engine(*args):
        engines.append(made := real(*args))
        return made

    real = loop.make_engine
    monkeypatch.setattr(loop, "make_engine", make_engine)
    rl = dict(mode="asynchronous", rollout_devices=2)
    config = rl_run(tmp_path, tokenizer_folder, steps=2, rl=rl)
    mesh = dataclasses.replace(config.mesh, fsdp=2)
    batch = dataclasses.replace(config.batch, per_device_batch_size=1)
    result = loop.run(dataclasses.replace(config, mesh=mesh, batch=batch))
    devices = [
        {d.id for leaf in jax.tree.leaves(params) for d in leaf.devices()}
        for params in (result.state.params, engines[0]._params)
    ]
    assert result.finished and devices == [{0, 1}, {2, 3}]


def test_more_devices_to_play_than_there_are_is_refused(tmp_path, tokenizer_folder):
    rl = dict(mode="asynchronous", rollout_devices=1)
    with pytest.raises(ValueError, match=r"rollout_devices is 1 and 1 here; expected fewer"):
        loop.run(rl_run(tmp_path, tokenizer_folder, rl=rl))


def test_a_failing_environment_is_counted_and_not_learnt_from(tmp_path, tokenizer_folder):
    config = rl_run(tmp_path, tokenizer_folder, kinds=("output_prediction", "math"), steps=2)
    result = loop.run(config)
    line = result.metrics[-1]
    assert line["rejected_crashed"] > 0 == line["rejected_failed"]
    assert "reward_math" not in line
    assert line["reward_output_prediction"] is not None


def test_a_run_without_anything_to_learn_says_so(tmp_path, tokenizer_folder):
    rl = dict(max_groups_per_step=8)
    with pytest.raises(NothingToLearnError, match=r"32 of 32 episodes are crashed: .* a bug"):
        loop.run(rl_run(tmp_path, tokenizer_folder, kinds=("math",), rl=rl))


def test_groups_that_fit_no_batch_are_left_out(tmp_path, tokenizer_folder):
    rl = dict(group_size=40, max_groups_per_step=4)
    with pytest.raises(NothingToLearnError, match="160 of 160 episodes are too_long: a group fits"):
        loop.run(rl_run(tmp_path, tokenizer_folder, rl=rl))


@pytest.mark.parametrize("calls", [2, 5, 8])
def test_a_stop_while_groups_are_gathered_loses_none(
    played_run, tmp_path, tokenizer_folder, monkeypatch, calls
):
    """In the first step, in a later one, just after a save: the run goes on as if uncut."""
    config, whole = played_run
    config = dataclasses.replace(config, base_output_directory=str(tmp_path))
    asked = itertools.count()

    def reached(stop):
        stop.name = "SIGTERM"
        return next(asked) >= calls

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "reached", reached)
        cut = loop.run(config)
    assert not cut.finished and int(cut.state.step) < 4
    rest = loop.run(config)
    assert comparable(whole) == comparable(rest)
    assert_same_params(whole, rest)


def test_steps_that_are_never_finite_end_the_run(tmp_path, tokenizer_folder, monkeypatch):
    nowhere = lambda returns, *_: np.full(len(returns), np.nan)  # noqa: E731
    monkeypatch.setattr(selection, "group_advantages", nowhere)
    config = rl_run(tmp_path, tokenizer_folder)
    optimizer = dataclasses.replace(config.optimizer, max_nonfinite_steps=2)
    with pytest.raises(NonFiniteError, match="steps 1 to 2 all had a loss or gradient"):
        loop.run(dataclasses.replace(config, optimizer=optimizer))
    lines = read_metrics(tmp_path / "runs/tiny/metrics.jsonl")
    assert lines[-1]["skipped_in_a_row"] == 2 and lines[-1]["loss"] is None


def test_an_evaluation_averages_the_answers_to_each_task(tmp_path, tokenizer_folder):
    rl = dict(eval_samples=4)
    config = rl_run(tmp_path, tokenizer_folder, steps=1, rl=rl)
    (found, _) = read_evaluations(loop.run(config).folder)
    assert len(found.solve_rates) == 8
    assert {4 * rate for rate in found.solve_rates.values()} <= {0, 1, 2, 3, 4}
    assert not {found.solve_rates[name] for name in found.solve_rates} <= {0.0, 1.0}


def test_a_single_held_out_task_ends_without_an_interval(tmp_path, tokenizer_folder):
    result = loop.run(rl_run(tmp_path, tokenizer_folder, steps=1, rl=dict(eval_tasks=1)))
    assert "too few tasks for an interval" in loop.describe_result(None, result)


def test_answers_that_change_in_no_task_have_no_interval():
    rates = {str(n): float(n % 2) for n in range(30)}
    before, same, gained = (
        Evaluation(environment="game", step=step, solve_rates=found, mean_action_tokens=9.0)
        for step, found in ((0, rates), (5, rates), (5, {**rates, "0": 1.0}))
    )
    assert "+0.0% (the same in every task: no interval)" in describe_change((before, same))
    assert "(95 % interval" in describe_change((before, gained))


def test_evaluations_of_steps_that_are_done_again_are_forgotten(tmp_path, tokenizer_folder):
    config = rl_run(tmp_path, tokenizer_folder)
    folder = loop.run(dataclasses.replace(config, steps=2)).folder
    later = dataclasses.replace(read_evaluations(folder)[-1], step=3)
    with (folder / "evaluation.jsonl").open("a") as file:
        file.write(json.dumps(dataclasses.asdict(later)) + '\n{"environment": "outp')
    loop.run(dataclasses.replace(config, steps=2))
    assert [evaluation.step for evaluation in read_evaluations(folder)] == [0, 2]


def test_what_plays_may_change_when_a_run_goes_on(tmp_path, tokenizer_folder):
    config = rl_run(tmp_path, tokenizer_folder, steps=2)
    loop.run(dataclasses.replace(config, steps=1))
    rl = dataclasses.replace(config.rl, max_rows=4, groups_at_once=2, eval_tasks=4)
    assert loop.run(dataclasses.replace(config, rl=rl)).finished
    rl = dataclasses.replace(config.rl, group_size=2)
    with pytest.raises(ckpt.CheckpointError, match=r"rl.group_size: checkpoint 4, config 2"):
        loop.run(dataclasses.replace(config, rl=rl))


def test_many_devices_that_play_and_train_at_once_are_refused(
    tmp_path, tokenizer_folder, monkeypatch
):
    one_device(monkeypatch, count=2)
    with pytest.raises(ValueError, match=r"2 devices would both play and train; .* can block"):
        loop.run(rl_run(tmp_path, tokenizer_folder, rl=dict(mode="asynchronous")))


def test_a_divergence_from_the_start_can_be_penalised(tmp_path, tokenizer_folder):
    loss = PolicyLossConfig(normalization_tokens=None, kl_weight=0.1)
    lines = loop.run(rl_run(tmp_path, tokenizer_folder, rl=dict(loss=loss))).metrics
    assert lines[1]["reference_kl"] < 1e-6 < lines[-1]["reference_kl"]


def test_the_checkpoint_says_where_the_run_stands(played_run):
    _, result = played_run
    record = json.loads((result.folder / "checkpoints/00000004/run.json").read_text())
    assert record["loader_state"]["players"]["dealers"][0]["next"] >= sum(
        line["groups"] for line in result.metrics[1:]
    )
