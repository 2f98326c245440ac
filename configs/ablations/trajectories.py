"""What do trajectories of agents teach in mid-training? At one token budget.

Command:   python -m cwm_jax ablate --config configs/ablations/trajectories.py --parallel 2
           after configs/quickstart.py, from whose last checkpoint all runs start, and after
           docs/forager.md's section on this ablation, which makes the two files of trajectories
Hardware:  CPU, a core for each run at once, 2 GiB of memory each; bubblewrap for the sandbox
Time:      9 minutes with 2 cores
Result:    held-out observations, nats a token: traces 12.43, trajectories 4.15 (difference -9.19 to
           -7.36 over three seeds): docs/forager.md, docs/LOG.md
Values:    configs/quickstart_midtrain.py; else assumed

Both arms go on from the quickstart's model for the same tokens, in longer rows:

    traces        execution traces alone
    trajectories  half of the tokens are trajectories of agents, half of whose observations count

They are compared by the loss of observations in trajectories that nothing was trained on, of other
projects than those of the training ones.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

from configs import quickstart_midtrain
from cwm_jax.config import RunConfig
from cwm_jax.evals.runs.results import read_results
from cwm_jax.sweeps.ablation import Ablation, Measure, Reading

HELD_OUT = Path("runs/forage/heldout.jsonl")
STEPS = 300
PER_TRAJECTORY = 4


def get_ablation() -> Ablation:
    return Ablation(
        name="trajectories",
        question="Do trajectories in mid-training help to predict what tools say?",
        base=base(),
        arms={"traces": traces_alone, "trajectories": {}},
        baseline="traces",
        measures=(observation_loss(HELD_OUT),),
        seeds=(0, 1, 2),
    )


def base() -> RunConfig:
    config = quickstart_midtrain.get_config()
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(
            config.optimizer, train_tokens=STEPS * quickstart_midtrain.BATCH_TOKENS
        ),
        checkpoint=dataclasses.replace(config.checkpoint, checkpoint_period=STEPS),
        logging=dataclasses.replace(config.logging, eval_period=STEPS),
        trace_evaluation=None,
    )


def traces_alone(config: RunConfig) -> RunConfig:
    traces = [source for source in config.data.sources if source.name == "traces"]
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=tuple(traces)))


def observation_loss(data: Path) -> Measure:
    """Of observations in a file of trajectories, each counting the same, in nats per token."""

    def read(folder: Path) -> Reading | None:
        out = folder / "observations"
        line = [sys.executable, "-m", "cwm_jax", "eval", "observations", "--mode", "loss"]
        line += ["--data", str(data), "--model", str(folder / "export"), "--out", str(out)]
        line += ["--option", f"per_trajectory={PER_TRAJECTORY}"]
        subprocess.run(line, check=True, capture_output=True)  # what it has done, it does not again
        records = read_results(out).records
        items = {r.problem: r.scores["loss"] for r in records if "loss" in r.scores}
        return Reading(value=sum(items.values()) / len(items), items=items)

    return Measure(name="held-out observations, nats", read=read, lower_is_better=True)
