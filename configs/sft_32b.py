"""Supervised fine-tuning of the 32B model as the report describes it: 100B tokens at 32768 tokens.

Command:   python train.py --config configs/sft_32b.py \\
               --set checkpoint.load_parameters_path=FOLDER
           (FOLDER: the last checkpoint of configs/midtrain_32b.py; of the optimizer nothing)
Hardware:  256 H100 (secondary: 32 data-parallel ranks x tensor 8, two rows for each rank)
Time:      not run; 2.7 days if H100s reach 40 % MFU (assumed)
Result:    unknown, not run
Values:    report, section 5.1; the shares within the 70 % are not published
"""

from configs import cwm_32b, midtrain_32b
from cwm_jax.config import (
    BatchConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
)

T = 32_768  # report
BATCH_TOKENS = 2**21  # report


def get_config() -> RunConfig:
    return RunConfig(
        run_name="sft_32b",
        model=midtrain_32b.MODEL,
        data=DataConfig(
            sources=(
                SourceConfig(name="dialogs", kind="chat", path="corpus/sft", weight=0.7),
                # report: about 30 % rehearsal of mid-training; here in its own proportions,
                # trajectories counted as traces: the dialogs have some
                SourceConfig(name="traces", kind="traces", path="corpus/traces", weight=0.09),
                SourceConfig(name="code", kind="jsonl", path="corpus/code", weight=0.12),
                SourceConfig(name="rehearsal", kind="jsonl", path="corpus/text", weight=0.09),
            ),
            packing="best_fit",  # a dialog that fits a row is not cut (assumed)
            num_streams=32,
        ),
        tokenizer=cwm_32b.LLAMA3_TOKENIZER,
        batch=BatchConfig(
            max_target_length=T,
            per_device_batch_size=0.125,  # one row for the eight devices of a tensor group
            global_batch_tokens=BATCH_TOKENS,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-5,  # report
            schedule="constant",  # report
            warmup_tokens=1000 * BATCH_TOKENS,  # report: 1000 steps
            train_tokens=100 * 10**9,  # report
        ),
        execution=cwm_32b.EXECUTION,
        mesh=MeshConfig(fsdp=32, tensor=8),  # secondary
    )
