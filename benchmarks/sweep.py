"""Eight learning rates in one process and one program, against eight processes of train.py.

    python -m benchmarks.sweep [--config configs/sweeps/cpu.py] [--steps 40] [--no-processes]

Both sides train the middle model of the sweep with the same eight peak rates, on the
same rows, from nothing (compiling included; the corpus and its tokens are made before). Then, with
everything compiled, the time of a step by each way of sharing the device, as a ratio to a step of
train.py's own program. The losses of the first 20 steps must agree to rtol 1e-4. Several processes
of other work on the machine make all of it worthless.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from cwm_jax.config import RunConfig, SweepConfig, schema
from cwm_jax.config.files import load_sweep
from cwm_jax.sweeps import design
from cwm_jax.sweeps.design import RunSpec
from cwm_jax.sweeps.lockstep import Lockstep
from cwm_jax.sweeps.rows import SweepRows
from cwm_jax.training.plan import make_plan
from cwm_jax.training.state import init_state
from cwm_jax.training.step import compiler_options, make_train_step

RATES = tuple(1e-3 * 2 ** (n / 2) for n in range(8))
BATCH_MICRO_BATCHES = 2
RTOL = 1e-4
FIRST_STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/sweeps/cpu.py")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ways", nargs="+", default=["one_by_one", "map", "vmap"])
    parser.add_argument("--no-processes", action="store_true", help="steady state alone")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the sweep")
    arguments = parser.parse_args()
    config = schema.override(load_sweep(arguments.config), *arguments.set)
    rows = SweepRows(config.base)
    specs = make_specs(config, arguments.steps)
    runs = [design.run_config(config, spec) for spec in specs]
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {device}, {len(RATES)} rates, {arguments.steps} steps")
    if not arguments.no_processes:
        compare_with_processes(runs, arguments.steps)
    own_s = step_of_train(runs[0], rows)
    print(f"a step of train.py's program: {1e3 * own_s:.1f} ms")
    for way in arguments.ways:
        together_s = step_in_lockstep(runs, rows, way)
        print(
            f"{way:<11} {1e3 * together_s:8.1f} ms a step and run, {together_s / own_s:.2f} times "
            "train.py's"
        )


def make_specs(config: SweepConfig, steps: int) -> list[RunSpec]:
    micro_tokens = design.micro_batch_rows(config) * config.base.batch.max_target_length
    scale = config.scales[len(config.scales) // 2]
    return [
        RunSpec(
            name=f"search/0/{number}",
            kind="search",
            scale=scale,
            learning_rate=rate,
            batch_tokens=BATCH_MICRO_BATCHES * micro_tokens,
            steps=steps,
            seed=0,
        )
        for number, rate in enumerate(RATES)
    ]


def compare_with_processes(runs: list[RunConfig], steps: int) -> None:
    """Prints both wall times, and how far the losses of the first steps differ."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        ours = in_one_process(runs, Path(folder))
        ours_s = time.monotonic() - began
        began = time.monotonic()
        theirs = [in_own_process(run, Path(folder)) for run in runs]
        theirs_s = time.monotonic() - began
    print(f"one process:     {ours_s:7.1f} s\neight processes: {theirs_s:7.1f} s")
    print(f"the sweep takes {ours_s / theirs_s:.2f} of their time")
    first = min(FIRST_STEPS, steps)
    ours_first, theirs_first = (np.asarray(x)[:, :first] for x in (ours, theirs))
    error = float(np.max(np.abs(ours_first / theirs_first - 1)))
    verdict = "equal" if error <= RTOL else "NOT equal"
    print(f"losses of the first {first} steps: {verdict} to rtol {RTOL:g} (largest {error:.1g})")


def in_one_process(runs: list[RunConfig], folder: Path) -> np.ndarray:
    """Losses [runs, steps] of a fresh process that trains all of them."""
    out = folder / "losses.json"
    files = [str(_config_file(run, folder)) for run in runs]
    program = (
        "import json, sys\n"
        "from cwm_jax.config.files import load_config\n"
        "from cwm_jax.sweeps.lockstep import Lockstep\n"
        "from cwm_jax.sweeps.rows import SweepRows\n"
        "runs = [load_config(path) for path in sys.argv[2:]]\n"
        "rows, tokens = SweepRows(runs[0]), runs[0].optimizer.train_tokens\n"
        "found = Lockstep(runs[0], 'one_by_one').train(\n"
        "    runs, rows.micro_batches(0, train_tokens=tokens), rows.heldout(train_tokens=tokens))\n"
        "json.dump([f.losses.tolist() for f in found], open(sys.argv[1], 'w'))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(out), *files], check=True)
    return np.asarray(json.loads(out.read_text()))


def in_own_process(run: RunConfig, folder: Path) -> list[float]:
    """Losses of the steps of ``python train.py``."""
    file = _config_file(run, folder)
    command = [sys.executable, "train.py", "--config", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (folder / "runs" / run.run_name / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def step_of_train(run: RunConfig, rows: SweepRows, *, repeats: int = 8) -> float:
    """Seconds of a step of train.py's program, compiled."""
    batch = _batch(rows, stacked=True)
    step = jax.jit(
        make_train_step(run, plan=make_plan(run, num_devices=1)),
        donate_argnums=0,
        compiler_options=compiler_options(),
    )
    state = jax.jit(functools.partial(init_state, run))(jax.random.key(0))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))


def step_in_lockstep(runs: list[RunConfig], rows: SweepRows, way: str) -> float:
    """Seconds of a step and run, compiled: of a long group less those of a short one."""
    lockstep = Lockstep(runs[0], way)  # pyright: ignore[reportArgumentType]

    def trained_s(steps: int) -> float:
        shortened = [_shortened(run, steps) for run in runs]
        micro = [_batch(rows, stacked=False)] * (steps * BATCH_MICRO_BATCHES)
        began = time.perf_counter()
        lockstep.train(shortened, iter(micro), [])
        return time.perf_counter() - began

    trained_s(2)  # compiles
    short, long = trained_s(2), trained_s(10)
    return (long - short) / 8 / len(runs)


def _shortened(run: RunConfig, steps: int) -> RunConfig:
    tokens = run.batch.global_batch_tokens
    assert isinstance(tokens, int)
    optimizer = dataclasses.replace(run.optimizer, train_tokens=steps * tokens, warmup_tokens=0)
    return dataclasses.replace(run, optimizer=optimizer)


def _batch(rows: SweepRows, *, stacked: bool) -> dict[str, np.ndarray]:
    batch = next(rows.micro_batches(0, train_tokens=1))
    if not stacked:
        return batch
    return {name: np.stack([values] * BATCH_MICRO_BATCHES) for name, values in batch.items()}


def _config_file(run: RunConfig, folder: Path) -> Path:
    """A file whose get_config() returns the run, its output below the folder."""
    run = dataclasses.replace(run, base_output_directory=str(folder / "runs"))
    values = folder / f"{run.run_name}.json"
    values.write_text(json.dumps(schema.to_json(run)))
    file = folder / f"{run.run_name}.py"
    file.write_text(
        "import json\nfrom cwm_jax.config import RunConfig, schema\n"
        f"def get_config():\n    values = json.load(open({str(values)!r}))\n"
        "    return schema.from_json(RunConfig, values)\n"
    )
    return file


if __name__ == "__main__":
    main()
