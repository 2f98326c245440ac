"""Contract: the whole 32B step of both phases compiles for clusters that are not here, and fits.

The step that the loop runs, donated, with the first stage's accumulation, our kernels and the
sharding rules, planned by the command that users give. Nothing is run.
"""

import json

import pytest

import train
from configs import pretrain_32b
from cwm_jax.planning.cluster import plan_cluster
from cwm_jax.planning.targets import has_gpu_compiler, has_tpu_compiler, parse_target

pytestmark = pytest.mark.aot
PHASES = {"pretrain": 2**23, "midtrain": 2**25}  # tokens of a step


def check(found: dict, phase: str, kernel: str) -> None:
    """A plan's JSON: it fits, holds the whole model, and runs our kernel."""
    assert found["fits"] and found["compiled"]
    memory, devices = found["memory"], found["num_devices"]
    assert memory["needed"] <= memory["usable"] and memory["excess"] == 0
    assert memory["peak"] <= sum(memory["parts"].values())
    held = memory["parts"]["params"] + memory["parts"]["optimizer"]
    assert held * devices >= 12 * 32_581_097_472
    assert any(kernel in name for name in found["compile"]["custom_calls"])
    assert found["step_tokens"] == PHASES[phase]
    sent = sum(use["sent_bytes"] for use in found["collectives"])
    gathered = 2 * 2 * 32_581_097_472 * found["accumulation_steps"] / found["mesh"]["tensor"]
    assert sent > 0.9 * gathered  # the weights, in bfloat16, forward and backward


@pytest.mark.skipif(not has_gpu_compiler(), reason="needs jax's CUDA plugin")
@pytest.mark.parametrize("phase", PHASES)
def test_on_64_h200(phase, tmp_path, capsys):
    file = tmp_path / "plan.json"
    config = f"configs/{phase}_32b.py"
    assert train.main(["--config", config, "--plan", "h200:64", "--plan-json", str(file)]) == 0
    found = json.loads(file.read_text())
    check(found, phase, "mosaic_gpu")
    assert capsys.readouterr().out.startswith("64 h200 GPUs, 8 nodes of 8\n")
    context = found["mesh"]["context"]
    axes = {tuple(use["axes"]) for use in found["collectives"]}
    assert (("context",) in axes) == (phase == "midtrain") == (context > 1)


@pytest.mark.skipif(not has_gpu_compiler(), reason="needs jax's CUDA plugin")
def test_eight_h100_are_too_few():
    plan = plan_cluster(pretrain_32b.get_config(), parse_target("h100:8"))
    assert not plan.fits and plan.remedy is None and plan.smallest_num_devices >= 16


@pytest.mark.skipif(not has_tpu_compiler(), reason="needs libtpu")
def test_a_refusal_on_sixteen_v5e_is_a_result_with_its_numbers():
    plan = plan_cluster(pretrain_32b.get_config(), parse_target("v5e:4x4"))
    assert not plan.fits and plan.attempt.program is None and plan.smallest_num_devices
    assert plan.attempt.needed_bytes > 12 * 32_581_097_472 / 16


@pytest.mark.skipif(not has_tpu_compiler(), reason="needs libtpu")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "phase"),
    [
        ("v6e:8x8", "pretrain"),
        ("v5p:4x4x4", "pretrain"),
        ("v5p:4x4x8", "midtrain"),
        ("v6e:16x16", "midtrain"),
    ],
)
def test_on_tpus(target, phase, tmp_path):
    file = tmp_path / "plan.json"
    config = f"configs/{phase}_32b.py"
    assert train.main(["--config", config, "--plan", target, "--plan-json", str(file)]) == 0
    check(json.loads(file.read_text()), phase, "tpu_custom_call")
