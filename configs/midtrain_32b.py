"""Mid-training of the 32B model as the report describes it: 5T tokens at 131072 tokens of context.

Command:   python train.py --config configs/midtrain_32b.py \\
               --set checkpoint.load_full_state_path=FOLDER
           (FOLDER: the last checkpoint of configs/pretrain_32b.py, with its optimizer state)
Hardware:  2048 H100 (secondary: 256 data-parallel ranks x tensor 8, one row for each rank)
Time:      not run; 21 days if H100s reach 40 % MFU (assumed)
Result:    unknown, not run
Values:    architecture from configs/cwm_32b.py, whose scaled RoPE begins here; optimizer, schedule
           and batch go on from configs/pretrain_32b.py; mixture and length buckets (report,
           section 4); trajectories are of ``python -m cwm_jax forage`` (docs/forager.md)
"""

import dataclasses

from configs import cwm_32b, pretrain_32b
from cwm_jax.config import (
    BatchConfig,
    DataConfig,
    LengthBucket,
    MeshConfig,
    RunConfig,
    SourceConfig,
)

MODEL = cwm_32b.MODEL

# Devices do not wait for one that has a long document. (report; unknown whether the first bucket
# has a cap of its own, which its documents could not reach anyway)
LENGTH_BUCKETS = (
    LengthBucket(max_document_tokens=16_385),
    LengthBucket(max_document_tokens=65_537, attention_cap=32_768),
    LengthBucket(),
)


def get_config() -> RunConfig:
    return RunConfig(
        run_name="midtrain_32b",
        model=MODEL,
        data=DataConfig(
            # report: 30 / 40 / 30 % of CWM's own data, code and rehearsal. How the first 30 are
            # divided is not published: 0.2 and 0.1 are assumed, and the folders. With epochs=1 to 4
            # (report) in the place of its weight a source gets epochs x its tokens / train_tokens
            # instead.
            sources=(
                SourceConfig(name="traces", kind="traces", path="corpus/traces", weight=0.2),
                SourceConfig(
                    name="trajectories", kind="chat", path="corpus/trajectories", weight=0.1
                ),
                SourceConfig(name="code", kind="jsonl", path="corpus/code", weight=0.4),
                SourceConfig(name="rehearsal", kind="jsonl", path="corpus/text", weight=0.3),
            ),
            packing="best_fit",  # assumed: no trajectory that fits a row is cut
            long_dialogs="split",  # assumed
            observation_loss=0.5,  # report
            length_buckets=LENGTH_BUCKETS,
            num_streams=256,  # as many as hosts of eight GPUs (assumed)
        ),
        tokenizer=cwm_32b.LLAMA3_TOKENIZER,
        batch=BatchConfig(
            max_target_length=131_072,  # report
            per_device_batch_size=0.125,  # one row for the eight devices of a tensor group
            global_batch_tokens=pretrain_32b.BATCH_SCHEDULE,
        ),
        optimizer=dataclasses.replace(
            pretrain_32b.OPTIMIZER,
            start_tokens=pretrain_32b.PRETRAIN_TOKENS,
            train_tokens=pretrain_32b.MIDTRAIN_TOKENS,
        ),
        execution=cwm_32b.EXECUTION,
        mesh=MeshConfig(fsdp=256, tensor=8),  # secondary
    )
