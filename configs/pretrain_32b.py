"""Pre-training of the 32B model as the report describes it: 8T tokens at 8192 tokens of context.

Command:   python train.py --config configs/pretrain_32b.py
Hardware:  2048 H100 (secondary: 1024 data-parallel ranks x tensor 2, one row for each rank)
Time:      not run; 24 days if H100s reach 40 % MFU (assumed)
Result:    unknown, not run
Values:    architecture from configs/cwm_32b.py but for the plain RoPE (report; that theta is 1e6
           already here is implied there, not stated); optimizer, schedule and batch from the
           report, section 4

One cosine over 13T tokens lowers the learning rate; configs/midtrain_32b.py runs its last 5T.
"""

import dataclasses

from configs import cwm_32b
from cwm_jax.config import (
    BatchConfig,
    BatchPhase,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    RopeParameters,
    RunConfig,
    SourceConfig,
)

MODEL = dataclasses.replace(
    cwm_32b.MODEL,
    rope_parameters=RopeParameters(rope_theta=1_000_000.0),  # report: scaled from mid-training on
    max_position_embeddings=8192,  # report
)

PRETRAIN_TOKENS = 8_000_000_000_000  # report
MIDTRAIN_TOKENS = 5_000_000_000_000  # report
PRETRAIN_BATCH_TOKENS = 2**23  # report: 8.4M
MIDTRAIN_BATCH_TOKENS = 2**25  # report: 33.6M

# One schedule of batch and learning rate for both phases; the second starts where the first ends.
BATCH_SCHEDULE = (
    BatchPhase(from_tokens=0, batch_tokens=PRETRAIN_BATCH_TOKENS),
    BatchPhase(from_tokens=PRETRAIN_TOKENS, batch_tokens=MIDTRAIN_BATCH_TOKENS),
)
OPTIMIZER = OptimizerConfig(
    learning_rate=8e-4,  # report
    warmup_tokens=2000 * PRETRAIN_BATCH_TOKENS,  # report: 2000 steps
    horizon_tokens=PRETRAIN_TOKENS + MIDTRAIN_TOKENS,  # report
    final_learning_rate_fraction=0.01,  # report: to 8e-6
    adam_b1=0.9,  # report
    adam_b2=0.95,  # report
    weight_decay=0.1,  # report
    gradient_clipping_threshold=1.0,  # report
    train_tokens=PRETRAIN_TOKENS,
)


def get_config() -> RunConfig:
    return RunConfig(
        run_name="pretrain_32b",
        model=MODEL,
        data=DataConfig(
            sources=(  # report: about 30 % code; folders and the rest's one source are assumed
                SourceConfig(name="text", kind="jsonl", path="corpus/text", weight=0.7),
                SourceConfig(name="code", kind="jsonl", path="corpus/code", weight=0.3),
            ),
            num_streams=256,  # as many as hosts of eight GPUs (assumed)
        ),
        tokenizer=cwm_32b.LLAMA3_TOKENIZER,
        batch=BatchConfig(
            max_target_length=8192,  # report
            per_device_batch_size=0.5,  # one row for the two devices of a tensor group
            global_batch_tokens=BATCH_SCHEDULE,
        ),
        optimizer=OPTIMIZER,
        execution=cwm_32b.EXECUTION,
        mesh=MeshConfig(fsdp=1024, tensor=2),  # secondary
    )
