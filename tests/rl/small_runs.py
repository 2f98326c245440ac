"""Runs of reinforcement learning that take seconds: games in the kinds' places, random weights."""

from pathlib import Path

from rl.games import Broken, Parity, Turns
from tiny import VOCAB_SIZE, tiny_model, tiny_run

from cwm_jax.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EnvironmentConfig,
    FilterConfig,
    OptimizerConfig,
    RLConfig,
    TokenizerConfig,
)
from cwm_jax.rl.environment import Task
from cwm_jax.tokenizer import train_tokenizer

T, ROWS = 32, 4
GAMES = {"output_prediction": Parity, "swe": Turns, "math": Broken}


def make_environments(configs, tokenizer):
    """In the place of ``cwm_jax.rl.envs.kinds``': random weights solve half of them."""
    kinds = {config.name: config.kind for config in configs}
    return lambda name, task: GAMES[kinds[name]](task, tokenizer)


def load_tasks(config):
    data = {"fails": "step"} if config.kind == "math" else {}
    return [Task(name=f"{config.kind}-{n}", data={"prompt": [3 + n, 4], **data}) for n in range(60)]


def write_tokenizer(folder: Path) -> Path:
    train_tokenizer(["abc def ghi " * 200, *map(str, range(3000))], VOCAB_SIZE).save(folder)
    return folder


def rl_run(folder, tokenizer_folder, *, kinds=("output_prediction",), steps=4, rl=None, **changes):
    environments = tuple(EnvironmentConfig(name=kind, kind=kind) for kind in kinds)
    values = dict(
        environments=environments,
        group_size=4,
        groups_at_once=4,
        max_rows=8,
        max_groups_per_step=64,
        filters=FilterConfig(gibberish_min_token_id=None),
        eval_tasks=8,
        eval_period=2,
        environment_timeout_s=30.0,
    )
    return tiny_run(
        folder,
        model=tiny_model(num_hidden_layers=2),
        data=DataConfig(sources=(), heldout_fraction=0.2),
        tokenizer=TokenizerConfig(path=str(tokenizer_folder)),
        batch=BatchConfig(
            max_target_length=T, per_device_batch_size=2, global_batch_tokens=ROWS * T
        ),
        optimizer=OptimizerConfig(
            learning_rate=3e-3, schedule="constant", train_tokens=steps * ROWS * T
        ),
        checkpoint=CheckpointConfig(checkpoint_period=2),
        rl=RLConfig(**{**values, **(rl or {})}),
        **changes,
    )
