"""What is subtracted from a return? Baselines of reinforcement learning, from one SFT model.

Command:   python -m cwm_jax ablate --config configs/ablations/rl_baselines.py --parallel 4
Hardware:  CPU, a core for each run at once, 2 GiB of memory each; bubblewrap for the sandbox
Time:      44 minutes with 2 cores and other work beside, after 12 for the phases before
Result:    programs answered, %: token_mean 11.2, mean 11.7 (difference 0.2 to 0.7 over seeds, -0.4
           to 1.3 over programs too), leave_one_out 11.9 (-1.0 to 2.5), mean_sigma 11.6 (-0.5 to
           1.3): docs/ablations.md
Values:    configs/quickstart_rl.py, which says what is measured; else assumed

First: python train.py --config configs/quickstart_rl.py. All runs start from its SFT phase,
runs/quickstart-sft, and take half as many steps as its last one. Of each task 8 answers are
compared:

    token_mean     the group's mean weighted by action tokens (report)
    mean           the plain mean
    leave_one_out  the mean of the others
    mean_sigma     the plain mean, then divided by the group's standard deviation, as in GRPO
"""

import dataclasses

from configs import quickstart_rl
from cwm_jax.config import RunConfig
from cwm_jax.sweeps.ablation import Ablation, solve_rate

STEPS = 50


def get_ablation() -> Ablation:
    return Ablation(
        name="rl_baselines",
        question="Which baseline teaches the most, from one SFT model in the same steps?",
        base=base(),
        arms={
            "token_mean": {},
            "mean": {"rl.loss.baseline": "mean"},
            "leave_one_out": {"rl.loss.baseline": "leave_one_out"},
            "mean_sigma": {"rl.loss.baseline": "mean", "rl.loss.divide_by_std": True},
        },
        baseline="token_mean",
        measures=(solve_rate("output", name="held-out programs answered"),),
    )


def base() -> RunConfig:
    config = quickstart_rl.rl()
    assert config.rl is not None
    step_tokens = config.batch.global_batch_tokens
    assert isinstance(step_tokens, int)
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, train_tokens=STEPS * step_tokens),
        logging=dataclasses.replace(config.logging, export=None),
        rl=dataclasses.replace(config.rl, eval_period=STEPS),
    )
