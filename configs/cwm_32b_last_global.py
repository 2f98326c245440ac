"""The 32B architecture with the last layer global too: 17 global layers of 64.

Command:   python train.py --config configs/cwm_32b_last_global.py --dry-run
Hardware:  64 GPUs with 80 GB
Time:      not run; 9.6 days if H100s reach 40 % MFU (assumed)
Result:    unknown, not run
Values:    Meta's code makes the last layer global by default, and a third-party listing of the
           released files shows 17 global layers; HF's default has 16. Up to 8192 tokens both give
           the same logits.
"""

import dataclasses

from configs import cwm_32b
from cwm_jax.config import RunConfig, layer_types_3_to_1

MODEL = dataclasses.replace(cwm_32b.MODEL, layer_types=layer_types_3_to_1(64, last_global=True))


def get_config() -> RunConfig:
    config = cwm_32b.get_config()
    return dataclasses.replace(config, run_name="cwm_32b_last_global", model=MODEL)
