"""Trains a Code World Model: python train.py --config configs/quickstart.py [--set key=value]"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from cwm_jax.config import Recipe, RunConfig, schema
from cwm_jax.config.files import load_recipe
from cwm_jax.sandbox import SandboxError

if TYPE_CHECKING:  # JAX is not imported before it is needed
    from cwm_jax.distributed import Hosts


def main(argv: list[str] | None = None) -> int:
    """0: finished, or stopped and saved; 1: training diverged, or a plan does not fit; 2: bad
    input; 130: interrupted.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports each array of each save
    args = _parse(argv)
    if args.distributed or args.coordinator is not None:
        return _main_on_hosts(args)
    return _main(args)


def _main(args: argparse.Namespace, hosts: Hosts | None = None) -> int:
    who = "train.py" if hosts is None else f"train.py: {hosts.name()}"
    try:
        found = _config(args, hosts)
        if isinstance(found, Recipe):
            return run_phases(found, args, hosts)
        return _run_as_asked(found, args, hosts)
    except (ValueError, OSError, SandboxError) as error:
        print(f"{who}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        note = "interrupted; the same command goes on from the newest checkpoint, if there is one"
        print(f"{who}: {note}", file=sys.stderr)
        return 130


def _config(args: argparse.Namespace, hosts: Hosts | None) -> RunConfig | Recipe:
    """Of the file, or of an ablation's arm; what its runs share is then made, or found."""
    if args.arm is None:
        return schema.override(load_recipe(args.config), *args.set)
    from cwm_jax.sweeps.ablation import load_ablation

    ablation = load_ablation(args.config)
    seed = ablation.seeds[0] if args.seed is None else args.seed
    found = schema.override(ablation.config(args.arm, seed), *args.set)
    if not (args.dry_run or args.plan or args.shardings):
        from cwm_jax.distributed import Hosts
        from cwm_jax.sweeps.ablation.preparation import prepare_shared

        (hosts or Hosts()).first("ablation", lambda: prepare_shared(ablation, [found]))
    return found


def _run_as_asked(
    config: RunConfig, args: argparse.Namespace, hosts: Hosts | None, started: float | None = None
) -> int:
    if args.plan or args.shardings:
        return plan_for_cluster(config, args)
    if args.dry_run:
        print(dry_run(config))
        return 0
    return run(config, hosts, started=started)


def run_phases(recipe: Recipe, args: argparse.Namespace, hosts: Hosts | None) -> int:
    """One after another, up to the first that does not finish; then what each has changed."""
    started, is_real = time.time(), not (args.dry_run or args.plan or args.shardings)
    if is_real:
        recipe.check_paths()
    for number, config in enumerate(recipe.phases):
        print(f"== phase {number} of {len(recipe.phases)}: {config.run_name}", flush=True)
        try:
            status = _run_as_asked(config, args, hosts, started=time.time() if number else None)
        except (ValueError, OSError, SandboxError) as error:
            raise ValueError(f"phase {number} ({config.run_name}): {error}") from error
        if status and is_real:
            print(f"train.py: that was phase {number} ({config.run_name})", file=sys.stderr)
        if status or (is_real and not _is_finished(config)):
            return status
    if is_real:
        from cwm_jax.rl.report import describe_phases

        print(describe_phases(recipe))
        print(f"all phases: {time.time() - started:.0f} s")
    return 0


def _is_finished(config: RunConfig) -> bool:
    """Whether a run has gone to the end of its plan, and was not stopped by a signal."""
    from cwm_jax.training.goodput import GOODPUT_FILE, is_finished

    return is_finished(Path(config.base_output_directory) / config.run_name / GOODPUT_FILE)


def _main_on_hosts(args: argparse.Namespace) -> int:
    """As one process of several, which a failure leaves at once: they would wait for each other."""
    from cwm_jax.distributed import ClusterOptions, HostError, start

    names = (field.name for field in dataclasses.fields(ClusterOptions))
    status = 1
    try:
        status = _main(args, start(ClusterOptions(**{n: getattr(args, n) for n in names})))
    except HostError as error:
        print(f"train.py: {error}", file=sys.stderr)
        status = 2
    except BaseException:
        traceback.print_exc()
    finally:  # whatever could not even be printed
        if status:
            if not args.process_id:
                time.sleep(5)  # for the others to hear of it: they talk through process 0
            os._exit(status)
    return status


def dry_run(config: RunConfig) -> str:
    """The resolved config and all derived numbers; a mesh without -1 is planned at its own size."""
    from cwm_jax.training.plan import make_plan

    plan = make_plan(config, num_devices=config.mesh.num_devices)
    values = "\n".join(
        f"  {key} = {_short(value)}" for key, value in schema.flatten(config).items()
    )
    return f"resolved config\n{values}\nderived\n{plan.describe()}"


def plan_for_cluster(config: RunConfig, args: argparse.Namespace) -> int:
    """Prints what the run would need on ``args.plan``; 1 if it does not fit there."""
    from cwm_jax.planning.targets import parse_target, prepare_environment

    prepare_environment()
    from cwm_jax.planning import report

    if args.plan is None:
        print(report.shardings_text(config, config.mesh.num_devices))
        return 0
    from cwm_jax.planning.cluster import plan_cluster

    target = parse_target(args.plan)
    print(target.describe(), flush=True)
    plan = plan_cluster(config, target, note=lambda text: print(text, file=sys.stderr, flush=True))
    if args.shardings:
        print(report.shardings_text(plan.attempt.work.config, target.num_devices))
    print(report.to_text(plan))
    if args.plan_json:
        text = json.dumps(report.to_json(plan), indent=1)
        Path(args.plan_json).write_text(text + "\n", encoding="utf-8")
    return 0 if plan.fits else 1


def run(config: RunConfig, hosts: Hosts | None = None, *, started: float | None = None) -> int:
    """Makes what corpora lack, trains, exports, evaluates, as the config says; 1 if it diverged.

    ``started``: when the run began, in seconds since the epoch; None is the process' start.
    """
    from cwm_jax.distributed import Hosts
    from cwm_jax.trace.corpus import generate_corpus
    from cwm_jax.training.goodput import process_start
    from cwm_jax.training.step import NoProgressError

    if config.rl is None:
        from cwm_jax.training import loop
    else:
        from cwm_jax.rl import loop
    hosts = hosts or Hosts()
    _check_after_training(config, hosts.count)
    for source in config.data.sources:
        if source.generate is not None:
            hosts.first("traces", functools.partial(generate_corpus, source))
    _check_evaluation(config)
    try:
        result = loop.run(config, hosts, started=started or process_start())
    except NoProgressError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    if not hosts.is_first:
        return 0
    print(loop.describe_result(config, result))
    if result.finished:
        if config.logging.export is not None:
            _export(config, result)
        if config.trace_evaluation is not None:
            _evaluate_traces(config, result)
        if config.logging.sample_prompt is not None:
            _print_sample(config, result)
    return 0


def _check_after_training(config: RunConfig, num_processes: int) -> None:
    """Raises ValueError where several processes are to do what takes the weights in one."""
    wanted = [
        key
        for key, value in (
            ("logging.export", config.logging.export),
            ("logging.sample_prompt", config.logging.sample_prompt),
            ("trace_evaluation", config.trace_evaluation),
        )
        if value is not None
    ]
    if num_processes > 1 and wanted:
        raise ValueError(
            f"{', '.join(wanted)}: runs in one process, and this run has {num_processes}; set it "
            "to null, and use `python -m convert to-hf` and what reads an export afterwards"
        )


def _check_evaluation(config: RunConfig) -> None:
    """Raises ValueError before a run where what is to be predicted after it is not there."""
    from cwm_jax.trace.corpus import read_corpus

    wanted = config.trace_evaluation
    if wanted is not None and wanted.jsonl and not Path(wanted.jsonl).is_file():
        raise ValueError(f"trace_evaluation.jsonl: {wanted.jsonl}: no such file")
    if wanted is not None and wanted.corpus:
        read_corpus(wanted.corpus)


def _evaluate_traces(config: RunConfig, result) -> None:
    """Predicts traces; prints the shares and one predicted trace beside the true one."""
    from cwm_jax.evals.traces.episodes import take_episodes
    from cwm_jax.evals.traces.evaluation import evaluate_traces, shown_prediction
    from cwm_jax.evals.traces.report import format_evaluation, side_by_side, write_evaluation

    wanted = config.trace_evaluation
    failed: list[str] = []
    episodes, passed_over = take_episodes(
        _episodes_to_predict(config, failed),
        result.tokenizer,
        count=wanted.episodes,
        max_length=wanted.max_length,
    )
    evaluation = evaluate_traces(
        result.state.params,
        config.model,
        result.tokenizer,
        episodes,
        max_length=wanted.max_length,
        batch_size=wanted.batch_size,
        modes=wanted.modes,
        execution=config.execution,
    )
    passed_over |= {"without_trace": len(failed)}
    if wanted.jsonl:
        lines = Path(wanted.jsonl).read_text(encoding="utf-8").splitlines()
        passed_over["not_reached"] = len(lines) - len(episodes) - sum(passed_over.values())
    about = {
        "predicted": wanted.jsonl or f"held-out episodes of {wanted.corpus}",
        "step": int(result.state.step),
        "passed_over": passed_over,
    }
    passed = ", ".join(f"{count} {reason}" for reason, count in passed_over.items() if count)
    print(f"{about['predicted']}: {len(episodes)}; passed over: {passed or 'none'}; in per cent")
    print(format_evaluation(evaluation))
    name = f"traces-{Path(wanted.jsonl).stem}" if wanted.jsonl else "traces"
    json_path, png_path = write_evaluation(evaluation, result.folder, name=name, about=about)
    print(f"traces: {json_path}, {png_path}")
    if evaluation.predictions is not None:
        print(side_by_side(shown_prediction(evaluation.predictions)))


def _episodes_to_predict(config: RunConfig, failed: list[str]):
    """Episodes of the evaluation; names of programs without a trace are added to ``failed``."""
    from cwm_jax.evals.traces.episodes import heldout_episodes, traced_episodes
    from cwm_jax.trace import Tracer
    from cwm_jax.trace.episodes import jsonl_programs

    wanted = config.trace_evaluation
    if wanted.jsonl is None:
        yield from heldout_episodes(wanted.corpus, config.data.heldout_fraction)
        return
    with Tracer(unsafe=wanted.unsafe) as tracer:
        yield from traced_episodes(jsonl_programs(Path(wanted.jsonl)), tracer, failed)


def _export(config: RunConfig, result) -> None:
    """Writes a Hugging Face folder and shows that it computes the trained model's logits."""
    from convert import save_hf
    from cwm_jax.training.checkpoint import free_name

    folder = result.folder / config.logging.export
    if folder.exists() and not _computes_logits_of(result, config, folder):
        aside = free_name(folder)  # of an earlier step: the run was cut by config.steps and resumed
        folder.rename(aside)
        print(f"export: {folder} held other weights and is now {aside}")
    if not folder.exists():
        save_hf(folder, config.model, result.state.params, result.tokenizer)
    if not _computes_logits_of(result, config, folder):
        raise ValueError(
            f"{folder} does not compute the trained model's logits; remove it, run again"
        )
    print(f"export: {folder}, read back by convert.load_hf: identical logits")


def _computes_logits_of(result, config: RunConfig, folder: Path) -> bool:
    import jax
    import numpy as np

    from convert import load_hf
    from cwm_jax.model.transformer import forward

    loaded_config, loaded = load_hf(folder)
    tokens = np.arange(2 * 64, dtype=np.int32).reshape(2, 64) % config.model.vocab_size
    run = jax.jit(forward, static_argnums=1)
    ours = run(jax.device_get(result.state.params), config.model, tokens)
    return np.array_equal(ours, run(loaded, loaded_config, tokens))


def _print_sample(config: RunConfig, result) -> None:
    import jax

    from cwm_jax.inference.sampling import sample

    prompt = [result.tokenizer.bos_id, *result.tokenizer.encode(config.logging.sample_prompt)]
    tokens = sample(
        result.state.params,
        config.model,
        prompt,
        num_tokens=config.logging.sample_tokens,
        key=jax.random.wrap_key_data(result.state.key),
        temperature=0.7,
        stop_ids=(result.tokenizer.eos_id,),
        execution=config.execution,
    )
    print(f"sample:\n{config.logging.sample_prompt}{result.tokenizer.decode(tokens)}")


def _short(value: object) -> str:
    text = json.dumps(schema.to_json(value))
    return text if len(text) <= 160 else text[:157] + "..."


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """Refuses options that would be left alone without another one; then exits with 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    several = args.num_processes is not None or args.process_id is not None
    if several and not (args.distributed or args.coordinator):
        parser.error(
            "--num-processes and --process-id say nothing without --coordinator HOST:PORT or "
            "--distributed: this process would train alone"
        )
    if args.seed is not None and args.arm is None:
        parser.error("--seed is that of an ablation's --arm; write --set seed=N")
    if args.plan_json and not args.plan:
        parser.error("--plan-json needs --plan TARGET")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="Python file with get_config()")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="replace one value, for example optimizer.learning_rate=3e-4; may be repeated",
    )
    parser.add_argument("--arm", metavar="NAME", help="of an ablation, a file of get_ablation()")
    parser.add_argument("--seed", type=int, metavar="N", help="of that run (default its first)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and the derived numbers"
    )
    parser.add_argument(
        "--plan",
        metavar="TARGET",
        help="compile the step for a cluster that is not here (v5p:4x4x8, v6e-64, h200:64) and "
        "print what it needs and costs; 1 if it does not fit",
    )
    parser.add_argument("--plan-json", metavar="FILE", help="write the plan there too")
    parser.add_argument(
        "--shardings",
        action="store_true",
        help="print how each parameter lies on the mesh (of --plan, if given)",
    )
    hosts = parser.add_argument_group("several hosts", "one process on each, see docs/clusters.md")
    hosts.add_argument(
        "--distributed",
        action="store_true",
        help="ask SLURM, the TPU's metadata, GKE or MPI who the processes are",
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    hosts.add_argument("--num-processes", type=int, metavar="N")
    hosts.add_argument("--process-id", type=int, metavar="I", help="of this process, from 0")
    for name, seconds, text in (
        ("initialization", 300, "until all processes have started"),
        ("heartbeat", 100, "of silence, after which a process counts as dead"),
        ("meeting", 600, "until all have come where they wait for each other"),
    ):
        hosts.add_argument(f"--{name}-timeout-s", type=int, default=seconds, metavar="S", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
