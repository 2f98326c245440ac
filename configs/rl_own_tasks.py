"""Reinforcement learning on tasks of your own: math and code from two JSONL files.

Command:   python train.py --config configs/rl_own_tasks.py
           (python -m cwm_jax rl check configs/rl_own_tasks.py --gold, before that)
Hardware:  as written, 2 CPU cores and 3 GiB of memory; bubblewrap for the sandbox
Time:      not measured: the policy is to be replaced
Result:    not run to its end. Two steps were, from a model of 1M parameters that SFT had taught the
           form of such answers; the stand-in named here, of configs/quickstart_rl.py, has seen
           none: it solves no task, and the run ends with the words that there is nothing to learn
Values:    assumed; docs/posttraining.md, Your own tasks, has lines of such files and all profiles

What to change stands in capitals; the rest can stay.
"""

from configs import quickstart
from cwm_jax.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EnvironmentConfig,
    FilterConfig,
    LoggingConfig,
    OptimizerConfig,
    RLConfig,
    RunConfig,
    TokenizerConfig,
)

# The policy: a run's folder, or a converted one (`python -m convert from-hf FOLDER runs/mine`).
POLICY = "runs/quickstart-sft"
# Its tokenizer: that run's export, or the converted folder's tokenizer/.
TOKENIZER = "runs/quickstart-sft/export"
# Its model; of a Hugging Face folder ModelConfig.from_hf(json.load(open(FOLDER + "/config.json"))).
MODEL = quickstart.MODEL
# Tokens of a whole episode, prompt and answers: at most the model's max_position_embeddings.
T = 1024
# "small" answers have 512 tokens; "64k" is the report's, for a model that reasons.
PROFILE = "small"
ENVIRONMENTS = (
    EnvironmentConfig(name="math", kind="math", path="tasks/math.jsonl", profile=PROFILE),
    EnvironmentConfig(name="code", kind="code", path="tasks/code.jsonl", profile=PROFILE, weight=2),
)
# Of each file, by a hash of the tasks' groups or names: with a few dozen tasks raise it.
HELDOUT_FRACTION = 0.1
ROWS, STEPS = 16, 200  # of a step's batch; of the run


def get_config() -> RunConfig:
    return RunConfig(
        run_name="rl_own_tasks",
        model=MODEL,
        data=DataConfig(sources=(), heldout_fraction=HELDOUT_FRACTION),
        tokenizer=TokenizerConfig(path=TOKENIZER),
        batch=BatchConfig(
            max_target_length=T,
            per_device_batch_size=4,  # what the memory of a device holds
            global_batch_tokens=ROWS * T,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-5,  # 3e-6 for 32B (secondary); 3e-4 for 1M (measured)
            schedule="constant",
            warmup_tokens=5 * ROWS * T,
            train_tokens=STEPS * ROWS * T,
            weight_decay=0.0,
        ),
        checkpoint=CheckpointConfig(checkpoint_period=20, load_parameters_path=POLICY),
        logging=LoggingConfig(log_period=1, export="export"),
        rl=RLConfig(
            environments=ENVIRONMENTS,
            # None: its limit is for the vocabulary of Llama 3; with that tokenizer drop the line.
            filters=FilterConfig(gibberish_min_token_id=None),
            group_size=8,  # a group whose episodes all fail, or all succeed, teaches nothing
            groups_at_once=16,
            max_groups_per_step=64,  # then a step takes what it has: few are solved at first
            eval_tasks=64,
            eval_period=20,
        ),
    )
