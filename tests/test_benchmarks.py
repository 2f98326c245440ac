"""The benchmarks run: both sides of a step are taken, and real programs are compiled."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import compile_time, inference, train_step_cpu
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
