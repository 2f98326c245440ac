"""The sweep of configs/sweeps/cpu.py with larger models, its runs side by side on a GPU.

Command:   python -m cwm_jax sweep --config configs/sweeps/gpu.py --budget 8e14
Hardware:  one GPU of 16 GB or more; bubblewrap for the sandbox
Time:      not measured: another search of 264 runs, 1.9e15 FLOP, took 500 s on an H200
Result:    not run yet
Values:    as there

The models are too small for kernels of attention: at 256 tokens the scores of all runs are little.
"""

import dataclasses

from configs.sweeps import cpu
from cwm_jax.config import ConfirmationConfig, ExecutionConfig, RepetitionConfig, SweepConfig

MODELS = tuple(map(cpu.small_model, (64, 96, 128, 192)))


def get_config() -> SweepConfig:
    small = cpu.get_config()
    *searched, largest = MODELS
    each = cpu.TOKENS_PER_PARAMETER
    return dataclasses.replace(
        small,
        base=dataclasses.replace(
            small.base,
            run_name="sweep_gpu",
            model=largest,
            batch=dataclasses.replace(small.base.batch, per_device_batch_size=2),
            execution=ExecutionConfig(attention="reference"),
        ),
        scales=tuple(cpu.scale(model, each) for model in searched),
        batch_tokens=(2 * cpu.T, 32 * cpu.T),
        seeds=(0, 1),  # each a group of runs that go side by side
        loss_scales=cpu.longer(searched),
        confirmation=ConfirmationConfig(scale=cpu.scale(largest, each)),
        repetition=RepetitionConfig(scale=cpu.scale(MODELS[1], each)),
    )
