"""The sweep of configs/sweeps/cpu.py with four times the compute, its runs side by side on a GPU.

Command:   python -m cwm_jax sweep --config configs/sweeps/gpu.py --budget 2.4e15
Hardware:  one GPU of 16 GB or more; bubblewrap for the sandbox
Time:      not measured yet
Result:    not run yet
Values:    as there

The models are too small for kernels of attention: at 256 tokens the scores of all runs are little.
"""

import dataclasses

from configs.sweeps import cpu
from cwm_jax.config import ConfirmationConfig, ExecutionConfig, SweepConfig, SweepScale

TIMES = 4
MICRO_ROWS = 8  # a device that waits for launches gains by twice as many


def get_config() -> SweepConfig:
    small = cpu.get_config()
    assert small.confirmation is not None and small.repetition is not None
    return dataclasses.replace(
        small,
        base=dataclasses.replace(
            small.base,
            run_name="sweep_gpu",
            batch=dataclasses.replace(small.base.batch, per_device_batch_size=MICRO_ROWS),
            execution=ExecutionConfig(attention="reference"),
        ),
        seeds=(0, 1),  # each a group of runs that go side by side
        scales=tuple(map(longer, small.scales)),
        confirmation=ConfirmationConfig(scale=longer(small.confirmation.scale)),
        repetition=dataclasses.replace(small.repetition, scale=longer(small.repetition.scale)),
    )


def longer(scale: SweepScale) -> SweepScale:
    return dataclasses.replace(scale, compute_flops=TIMES * scale.compute_flops)
