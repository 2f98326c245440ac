"""Does training on traces help to predict outputs? One token budget, with traces and without.

    python -m benchmarks.trace_ablation [--steps 4000] [--seeds 0] [--arms outputs ...]

Every arm trains the model of configs/quickstart.py on generated programs, for the same number of
tokens with one tokenizer and one schedule, and predicts the outputs of the same held-out programs:

    outputs           programs and an assertion of what main() returns; the loss counts the answer
    outputs_language  the same text; the loss counts all of it, as in a code corpus
    traces            execution traces of the programs; the loss counts the frames
    both              half of the tokens each

Outputs are predicted directly, as the end of the assertion, and by way of a trace: all of it (full
trace) or its `return` right after its call (single step); one that does not end as it should is
wrong. A row has 256 tokens: a tenth of the traces are longer and trained on in parts, no assertion
is. 40,000 programs are traced first. Runs lie below runs/trace_ablation and go on where they were
stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

import jax

import train
from configs import quickstart
from cwm_jax.config import GeneratedTraces, RunConfig, SourceConfig, TraceEvaluationConfig
from cwm_jax.data.vocabulary import load_or_train_tokenizer
from cwm_jax.trace.corpus import generate_corpus

FOLDER = "runs/trace_ablation"
CORPUS = f"{FOLDER}/corpus"
PROGRAMS = GeneratedTraces(
    programs=40_000,  # no arm sees a document more than about twice in 4000 steps
    difficulties=(1,),
    kinds=("arithmetic",),
)
TRACES = SourceConfig(name="traces", kind="traces", path=CORPUS, generate=PROGRAMS)
OUTPUTS = SourceConfig(name="outputs", kind="trace_outputs", path=CORPUS, generate=PROGRAMS)
ARMS = {
    "outputs": (OUTPUTS,),
    "outputs_language": (OUTPUTS,),
    "traces": (TRACES,),
    "both": (TRACES, OUTPUTS),
}
MODES = {"outputs": ("direct",), "traces": ("free_running", "single_step")}
WAYS = ("direct", "full_trace", "single_step")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=quickstart.STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--episodes", type=int, default=300, help="held-out programs to predict")
    arguments = parser.parse_args()
    found = {}
    for arm in arguments.arms:
        configs = [make_config(arm, seed, arguments) for seed in arguments.seeds]
        found[arm] = [outputs_of_run(config) for config in configs]
    tokens = arguments.steps * quickstart.BATCH_TOKENS
    print(f"\njax {jax.__version__}, {tokens:,} tokens, seeds {arguments.seeds}; right outputs, %")
    print(f"{'arm':<18}" + "".join(f"{way.replace('_', ' '):>18}" for way in WAYS))
    for arm, runs in found.items():
        print(f"{arm:<18}" + "".join(f"{shares(runs, way):>18}" for way in WAYS))


def make_config(arm: str, seed: int, arguments: argparse.Namespace) -> RunConfig:
    """The run of an arm; all that differs from configs/quickstart.py."""
    base = quickstart.get_config()
    data = dataclasses.replace(
        base.data,
        sources=ARMS[arm],
        trace_context_loss=arm == "outputs_language",
        cache_directory=f"{FOLDER}/cache",
    )
    return dataclasses.replace(
        base,
        run_name=f"{arm}-{seed}-{arguments.steps}",
        base_output_directory=FOLDER,
        seed=seed,
        data=data,
        tokenizer=dataclasses.replace(base.tokenizer, path=tokenizer_path(), vocab_size=None),
        optimizer=dataclasses.replace(
            base.optimizer, train_tokens=arguments.steps * quickstart.BATCH_TOKENS
        ),
        logging=dataclasses.replace(base.logging, export=None),
        trace_evaluation=TraceEvaluationConfig(
            corpus=CORPUS,
            episodes=arguments.episodes,
            max_length=512,
            modes=tuple(mode for source in ARMS[arm] for mode in MODES[source.name]),
        ),
    )


def tokenizer_path() -> str:
    """Of one tokenizer for all arms, trained on what the arm with both sources sees."""
    generate_corpus(TRACES)
    base = quickstart.get_config()
    data = dataclasses.replace(base.data, sources=ARMS["both"], cache_directory=f"{FOLDER}/cache")
    tokenizer = load_or_train_tokenizer(base.tokenizer, data)
    path = Path(FOLDER) / f"tokenizer-{tokenizer.fingerprint}"
    tokenizer.save(path)
    return str(path)


def outputs_of_run(config: RunConfig) -> dict[str, float]:
    """Trains, or goes on; shares of right outputs by way of predicting them."""
    if train.run(config) != 0:
        raise SystemExit(f"{config.run_name} did not finish; the same command goes on with it")
    folder = Path(config.base_output_directory) / config.run_name
    return json.loads((folder / "traces.json").read_text())["programs"]["overall"]


def shares(runs: list[dict[str, float]], way: str) -> str:
    """Mean over the seeds, and the lowest and highest of several."""
    values = [100 * run[f"output_{way}"] for run in runs if f"output_{way}" in run]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    main()
