"""The benchmarks run: both sides of a step are taken, and real programs are compiled."""

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import compile_time, inference, trace_ablation, train_step_cpu
from cwm_jax.model.transformer import init

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "benchmarks").glob("*.py")), ids=lambda p: p.stem
)
def test_its_documented_command_starts_from_the_repository(file):
    command = f"-m benchmarks.{file.stem}"
    assert f"python {command}" in file.read_text()
    result = subprocess.run(
        [sys.executable, *command.split(), "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


def test_both_sides_of_the_step_benchmark_take_a_step():
    tokens = np.zeros((2, 17), np.int32)
    for step in (
        train_step_cpu.our_step(tokens, 2),
        train_step_cpu.torch_step(tokens, 2, "sdpa"),
    ):
        assert train_step_cpu.seconds(step, 1) > 0


def test_both_sides_of_the_decoding_benchmark_make_the_same_tokens():
    params = init(inference.MODEL, jax.random.key(0))
    prompts = np.arange(6).reshape(2, 3)
    speed, tokens = inference.cached(params, prompts, 5)
    uncached_speed, expected = inference.uncached(params, prompts, 5)
    np.testing.assert_array_equal(tokens, expected)
    assert speed > 0 and uncached_speed > 0


def test_compile_times_are_measured():
    stage, compile_ = compile_time.compile_seconds(2, scan=True)
    assert stage > 0 and compile_ > 0


def test_the_arms_of_the_ablation_differ_in_their_sources_alone(monkeypatch):
    monkeypatch.setattr(trace_ablation, "tokenizer_path", lambda: "tokenizer")
    arguments = argparse.Namespace(steps=100, episodes=10)
    configs = {arm: trace_ablation.make_config(arm, 3, arguments) for arm in trace_ablation.ARMS}
    for arm, config in configs.items():
        same = dataclasses.replace(
            config,
            run_name="same",
            data=dataclasses.replace(
                config.data, sources=(trace_ablation.TRACES,), trace_context_loss=False
            ),
            trace_evaluation=dataclasses.replace(config.trace_evaluation, modes=("direct",)),
        )
        first = dataclasses.replace(
            configs["outputs"],
            run_name="same",
            data=dataclasses.replace(configs["outputs"].data, sources=(trace_ablation.TRACES,)),
        )
        assert same == first, arm
        assert config.optimizer.train_tokens == 100 * config.batch.global_batch_tokens
        assert config.data.trace_context_loss == (arm == "outputs_language")
        asked = {"direct": "trace_outputs", "free_running": "traces", "single_step": "traces"}
        kinds = {source.kind for source in config.data.sources}
        assert {asked[mode] for mode in config.trace_evaluation.modes} == kinds
