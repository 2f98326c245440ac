"""Reinforcement learning of the 32B model: the first stage of the report's joint RL, in outline.

Command:   python train.py --config configs/rl_32b.py --set checkpoint.load_parameters_path=FOLDER
           (FOLDER: the last checkpoint of configs/sft_32b.py)
Hardware:  512 H100 that train (secondary: 64 data-parallel ranks x tensor 8), in 64 processes, and
           a Ray cluster of rollout workers, eight H100 each (docs/posttraining.md)
Time:      not run; 2.9 days if H100s reach 40 % MFU (assumed) and never wait for players
Result:    unknown, not run
Values:    objective, batch, limits and mixture: report, section 5; learning rate, group size and
           clipping are not published for it: those of Self-play SWE-RL (secondary)
"""

from configs import cwm_32b, midtrain_32b
from cwm_jax.config import (
    BatchConfig,
    CurriculumConfig,
    DataConfig,
    EnvironmentConfig,
    LengthRewardConfig,
    MeshConfig,
    OptimizerConfig,
    RLConfig,
    RunConfig,
)

T = 131_072  # report
BATCH_TOKENS = 64 * T  # secondary

ENVIRONMENTS = (  # report, stage 1: SWE 40 %, programming 40 %, math 20 %
    EnvironmentConfig(name="swe", kind="swe", path="tasks/swe.jsonl", profile="released", weight=4),
    EnvironmentConfig(name="code", kind="code", path="tasks/code.jsonl", profile="64k", weight=4),
    EnvironmentConfig(name="math", kind="math", path="tasks/math.jsonl", profile="64k", weight=1.8),
    EnvironmentConfig(
        name="math_python",
        kind="math_python",
        path="tasks/math.jsonl",
        profile="64k",
        weight=0.2,  # assumed
    ),
)


def get_config() -> RunConfig:
    return RunConfig(
        run_name="rl_32b",
        model=midtrain_32b.MODEL,
        data=DataConfig(sources=()),
        tokenizer=cwm_32b.LLAMA3_TOKENIZER,
        batch=BatchConfig(
            max_target_length=T,
            per_device_batch_size=0.125,
            global_batch_tokens=BATCH_TOKENS,
        ),
        optimizer=OptimizerConfig(
            learning_rate=3e-6,  # secondary
            schedule="constant",
            warmup_tokens=30 * BATCH_TOKENS,  # secondary
            train_tokens=172 * 10**9,  # report
            weight_decay=0.1,  # assumed: as before
            gradient_clipping_threshold=0.1,  # secondary
        ),
        execution=cwm_32b.EXECUTION,
        mesh=MeshConfig(fsdp=64, tensor=8),  # secondary
        rl=RLConfig(
            environments=ENVIRONMENTS,
            mode="asynchronous",  # report
            group_size=8,  # secondary
            rollout_workers=256,  # report: 2048 to 4096 devices that play, in eights
            rollout_worker_gpus=8,
            ready_groups=64,  # assumed: of about one step
            rollout_dtype="bfloat16",
            length_reward=LengthRewardConfig(),  # report
            curriculum=CurriculumConfig(),  # report: from stage 2 on
            environment_timeout_s=2400.0,
            eval_period=100,
        ),
    )
