"""Mid-training of the quickstart's model: execution traces, and what agents do in repositories.

Command:   python train.py --config configs/quickstart_midtrain.py
           after configs/quickstart.py, from whose last checkpoint it starts, and after these, the
           second for each NAME of oracle, fixer and explorer:
           mkdir -p runs/forage
           python -m cwm_jax forage run --shipped 40 --policy NAME --out runs/forage/NAME.jsonl
           python -m cwm_jax forage export runs/forage/{oracle,fixer,explorer}.jsonl \\
               --out runs/forage/trajectories.jsonl
Hardware:  2 CPU cores, 3 GiB of memory, no download; bubblewrap for the sandbox
Time:      7 minutes of the processor with the evaluation (measured 2026-11-28; 23 by the clock, as
           six jobs shared the cores); about 5 on idle cores (assumed)
Result:    (measured 2026-11-28) held-out loss, nats a token: 12.68 -> 1.72 of what the agent says
           in two trajectories of the same repository, 0.88 -> 0.08 of traces (0.07 before the
           longer rows and RoPE). Of held-out programs' frames, after the true ones: 99.3 -> 99.3
           % well-formed, 99.6 -> 95.8 % of the actions and 69.0 -> 67.5 % of the states exact; 17
           -> 16 of 100 outputs right after its own trace
Values:    measured where so marked (docs/LOG.md), else assumed

As configs/midtrain_32b.py: longer rows and scaled RoPE from the first step, half of the tools'
results are learnt, and dialogs longer than a row are split at turns.
"""

import dataclasses

from configs import quickstart
from cwm_jax.config import (
    BatchConfig,
    CheckpointConfig,
    LoggingConfig,
    OptimizerConfig,
    RopeParameters,
    RunConfig,
    SourceConfig,
    TokenizerConfig,
)

T = 2048  # an opening is 820 to 930 tokens (measured) and stands before each piece
BATCH_TOKENS = T
STEPS = 800
MODEL = dataclasses.replace(
    quickstart.MODEL,
    rope_parameters=RopeParameters(  # report: scaled from mid-training on, there by 16
        rope_theta=quickstart.MODEL.rope_parameters.rope_theta,
        rope_type="llama3",
        factor=8.0,
        original_max_position_embeddings=quickstart.T,
    ),
    max_position_embeddings=T,
)


def get_config() -> RunConfig:
    before = quickstart.get_config()
    (traces,) = before.data.sources
    trajectories = SourceConfig(
        name="trajectories",
        kind="chat",
        path="runs/forage/trajectories.jsonl",  # of this name lines 16 and 45 are held out
        weight=0.5,
    )
    return RunConfig(
        run_name="quickstart_midtrain",
        model=MODEL,
        data=dataclasses.replace(
            before.data,  # the same programs are held out
            sources=(dataclasses.replace(traces, weight=0.5), trajectories),
            long_dialogs="split",
            observation_loss=0.5,  # report
        ),
        tokenizer=TokenizerConfig(path="runs/quickstart/export"),
        batch=BatchConfig(
            max_target_length=T, per_device_batch_size=1, global_batch_tokens=BATCH_TOKENS
        ),
        optimizer=OptimizerConfig(  # the quickstart's schedule has ended: one of its own
            learning_rate=2e-3,
            warmup_tokens=40 * BATCH_TOKENS,
            train_tokens=STEPS * BATCH_TOKENS,
        ),
        checkpoint=CheckpointConfig(checkpoint_period=400, load_parameters_path="runs/quickstart"),
        logging=LoggingConfig(log_period=50, eval_period=200, eval_rows=48, export="export"),
        trace_evaluation=before.trace_evaluation,
    )
