"""Does reinforcement learning help the quickstart's model? The same SFT model, several seeds.

    python train.py --config configs/quickstart_rl.py      # its first three phases are needed
    python -m benchmarks.rl_seeds [--seeds 0 1 2] [--plot docs/rl_quickstart.png]

Every seed is a run of its own of the recipe's last phase, below runs/quickstart-rl-seed-N, and goes
on where it was stopped. Held-out programs are answered before and after it with the same draws
in every run; what a seed changes is the training. The interval is of the paired difference. The
plot has the accuracy of all evaluations on the way.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import train
from configs import quickstart_rl
from cwm_jax.config import RunConfig, schema
from cwm_jax.rl.evaluation import Evaluation, changes, paired_difference, read_evaluations
from cwm_jax.rl.report import describe_change


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plot", type=Path, help="where the curves are drawn")
    parser.add_argument("--set", nargs="+", default=[], help="settings of the phase, key=value")
    args = parser.parse_args()
    folders = []
    for seed in args.seeds:
        config = run_of_seed(seed, args.set)
        if train.run(config):
            raise SystemExit(f"the run of seed {seed} failed")
        folders.append(Path(config.base_output_directory) / config.run_name)
    for seed, folder in zip(args.seeds, folders, strict=True):
        for change in changes(folder):
            print(f"seed {seed}: {describe_change(change)}")
    if args.plot is not None:
        plot(dict(zip(args.seeds, map(read_evaluations, folders), strict=True)), args.plot)
        print(args.plot)


def run_of_seed(seed: int, settings: list[str]) -> RunConfig:
    """The recipe's last phase; the tasks' order and all draws are functions of the seed."""
    config = quickstart_rl.get_config().phases[-1]
    config = dataclasses.replace(config, run_name=f"{config.run_name}-seed-{seed}", seed=seed)
    return schema.override(config, *settings)


def plot(evaluations: dict[int, list[Evaluation]], path: Path) -> None:
    """Held-out accuracy by step; bars are the paired 95 % intervals to the first evaluation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for seed, found in evaluations.items():
        first = found[0]
        differences = [paired_difference(first, later) for later in found]
        axes.errorbar(
            [later.step for later in found],
            [100 * later.accuracy for later in found],
            yerr=[100 * (d.high - d.mean) for d in differences],
            marker="o",
            capsize=3,
            label=f"seed {seed}",
        )
    axes.set(
        xlabel="optimizer step",
        ylabel="held-out programs answered exactly (%)",
        title="Output prediction: reinforcement learning after SFT",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(path))


if __name__ == "__main__":
    main()
