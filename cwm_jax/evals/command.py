"""``python -m cwm_jax eval``: measures a model on a set; compares runs, merges shards."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cwm_jax.evals.models import Model
    from cwm_jax.evals.problem import EvalSet
    from cwm_jax.evals.runs.runner import Outcome, RunSettings

_ACTIONS = {
    "compare": "two runs on the same problems, paired: eval compare RUN_A RUN_B",
    "merge": "the runs of all shards as one: eval merge RUN... --out FOLDER",
    "report": "write a run's report again: eval report RUN",
}


class _List(argparse.Action):
    """Prints the sets and ends, as --help does."""

    def __init__(self, **values: Any) -> None:
        super().__init__(nargs=0, **values)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from cwm_jax.evals.catalog import describe

        print("\n".join(describe()))
        parser.exit()


def add_parser(subparsers: Any) -> None:
    """Adds ``eval``; what it needs is imported when it runs."""
    actions = "; ".join(f"{name}: {about}" for name, about in _ACTIONS.items())
    parser = subparsers.add_parser(
        "eval",
        help="measure a model on a set of problems",
        epilog=f"Instead of a set: {actions}. A run that was stopped goes on by the same command.",
    )
    parser.add_argument("set", metavar="SET", help="see --list; or compare, merge, report")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders to compare or merge")
    parser.add_argument("--list", action=_List, help="print the sets, their modes and options")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of the run (default below eval)"
    )
    _add_set(parser.add_argument_group("set"))
    _add_answers(parser.add_argument_group("answers"))
    _add_model(parser.add_argument_group("model"))
    _add_run(parser.add_argument_group("run"))
    parser.set_defaults(main=_eval)


def _add_set(group: Any) -> None:
    group.add_argument("--data", type=Path, metavar="FILE", help="the set's official file")
    group.add_argument(
        "--download", action="store_true", help="fetch it to --data unless it is there"
    )
    group.add_argument("--mode", help="how problems are asked")
    group.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of this set alone"
    )
    group.add_argument("--limit", type=int, metavar="N", help="only the first problems")
    group.add_argument("--shard", metavar="I/N", help="of these every N-th from I on, from 0")
    group.add_argument("--unsafe", action="store_true", help="run programs without bubblewrap")
    group.add_argument(
        "--contamination",
        action="append",
        type=Path,
        default=[],
        metavar="PATH",
        help="training data in which the problems are looked for: prepared shards, a trace corpus, "
        "JSONL, a folder of texts",
    )


def _add_answers(group: Any) -> None:
    group.add_argument(
        "--samples", type=int, metavar="N", help="of each problem (default the set's)"
    )
    group.add_argument("--temperature", type=float, help="(default the set's)")
    group.add_argument("--top-p", type=float, help="(default the set's)")
    group.add_argument(
        "--max-tokens", type=int, metavar="N", help="of an answer (default the set's)"
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--metrics", nargs="+", metavar="NAME", help="in place of the set's: mean, @5, majority@20"
    )


def _add_model(group: Any) -> None:
    group.add_argument(
        "--model", metavar="FOLDER|URL", help="an export, or an OpenAI-compatible server"
    )
    group.add_argument("--max-length", type=int, metavar="N", help="of a prompt and its answer")
    group.add_argument("--dtype", help="of the weights; by default the stored one")
    group.add_argument("--kv-dtype", choices=("int8",), help="by default the weights'")
    group.add_argument("--tokenizer", metavar="PATH", help="of the server's model")
    group.add_argument("--model-name", metavar="NAME", help="to ask the server for")
    group.add_argument("--completions", action="store_true", help="send dialogs as tokens, too")
    group.add_argument("--api-key", metavar="KEY", help="others see it in `ps`")
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="its first line")
    group.add_argument("--timeout", type=float, default=1800.0, metavar="S", help="of an answer")
    group.add_argument("--retries", type=int, default=7, metavar="N", help="for what may pass")
    group.add_argument(
        "--retry-wait", type=float, default=1.0, metavar="S", help="before the first; then doubled"
    )


def _add_run(group: Any) -> None:
    group.add_argument("--parallel", type=int, default=16, metavar="N", help="attempts at once")
    group.add_argument(
        "--environment-retries",
        type=int,
        default=2,
        metavar="N",
        help="of an attempt whose sandbox or container fails, before it is void",
    )


def _eval(args: argparse.Namespace) -> int:
    """0: done, 1: some samples are void, 2: refused, 3: the model failed, 128 + signal: stopped."""
    from cwm_jax.evals.models import ModelFailure
    from cwm_jax.rl.environment import EnvironmentFailure
    from cwm_jax.sandbox import SandboxError

    try:
        if args.set in _ACTIONS:
            return {"compare": _compare, "merge": _merge, "report": _report}[args.set](args)
        if args.runs:
            raise ValueError(f"{args.runs[0]!r} is not expected after the set's name")
        return _measure(args)
    except (ValueError, OSError, ModelFailure, EnvironmentFailure, SandboxError) as error:
        print(f"eval: {error}", file=sys.stderr)
        return 2


def _measure(args: argparse.Namespace) -> int:
    from cwm_jax.evals import catalog, contamination
    from cwm_jax.evals.runs.records import RecordFile
    from cwm_jax.evals.runs.results import CONTAMINATION_FILE
    from cwm_jax.evals.runs.runner import RunLimits, run
    from cwm_jax.storage import write_json

    entry = catalog.entry(args.set)
    mode = args.mode or entry.modes[0]
    if args.model is None:
        raise ValueError("--model is missing; expected a folder or a URL")
    if args.parallel < 1:
        raise ValueError(f"--parallel is {args.parallel}; expected 1 or more")
    values = dict(_options(args.option))
    if args.download:
        if args.data is None:
            raise ValueError("--download is given without --data; expected where the file goes")
        print(catalog.download(args.set, args.data), flush=True)
    catalog.check(args.set, args.data, mode, values)  # before a model is loaded
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(contextlib.closing(_model(args)))
        found = _load(args, mode, values, model)
        _check_likelihood(found, model)
        problems = stack.enter_context(found.opened())
        settings = _run_settings(args, found)
        folder = args.out or _default_folder(args, mode, model.name)
        described = _described(args, found, settings, model, mode)
        file = stack.enter_context(RecordFile(folder, described))
        if args.contamination:
            texts = {p.name: p.text for p in settings.chosen(problems)}
            checked = contamination.check(texts, args.contamination, model.tokenizer)
            write_json(folder / CONTAMINATION_FILE, checked.to_json())
        limits = RunLimits(parallel=args.parallel, retries=args.environment_retries)
        outcome = run(problems, model, file, settings, limits)
        file.note(model.notes())
    return _end(folder, outcome)


def _end(folder: Path, outcome: Outcome) -> int:
    from cwm_jax.evals.runs.report import headline, write_report

    path = write_report(folder)[0]
    print(f"{headline(folder)}\nreport: {path}", flush=True)
    if outcome.failure:
        print(
            f"eval: stopped: {outcome.failure}\neval: {outcome.num_left:,} samples are left, all "
            f"others are in {folder}: the same command goes on where this one ended",
            file=sys.stderr,
        )
        return 3
    if outcome.signal is not None:
        print(
            f"eval: {outcome.signal.name}: {outcome.num_left:,} samples are left; the same command "
            "goes on",
            file=sys.stderr,
        )
        return 128 + outcome.signal
    if outcome.num_void:
        print(
            f"eval: {outcome.num_void:,} samples are void: their environment failed in every try; "
            "the same command tries them again",
            file=sys.stderr,
        )
        return 1
    return 0


def _model(args: argparse.Namespace) -> Model:
    if not args.model.startswith(("http://", "https://")):
        for name in ("tokenizer", "model_name", "api_key", "api_key_file"):
            if getattr(args, name) is not None or args.completions:
                raise ValueError(
                    f"--{name.replace('_', '-')} or --completions is given with the model folder "
                    f"{args.model}; expected them with a server's URL alone"
                )
        from cwm_jax.evals.models.in_process import open_folder

        return open_folder(
            Path(args.model),
            parallel=args.parallel,
            max_length=args.max_length,
            dtype=args.dtype,
            kv_dtype=args.kv_dtype,
        )
    from cwm_jax.evals.models.openai import ServerModel, ServerOptions, read_api_key
    from cwm_jax.tokenizer import load_tokenizer

    for name in ("max_length", "dtype", "kv_dtype"):
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} is given with a server; expected it with a model "
                "folder: it is the server's own setting"
            )
    options = ServerOptions(
        model=args.model_name,
        api_key=read_api_key(args.api_key, args.api_key_file),
        completions=args.completions,
        timeout_s=args.timeout,
        retries=args.retries,
        retry_wait_s=args.retry_wait,
    )
    tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
    return ServerModel(args.model, tokenizer, options, say=_say)


def _say(text: str) -> None:
    print(f"eval: {text}", file=sys.stderr, flush=True)


def _load(args: argparse.Namespace, mode: str, values: Mapping[str, str], model: Model) -> EvalSet:
    from cwm_jax.evals import catalog
    from cwm_jax.evals.problem import SetOptions

    found = catalog.entry(args.set).load(
        args.data,
        SetOptions(
            mode=mode,
            max_tokens=args.max_tokens,
            tokenizer=model.tokenizer,
            max_length=model.max_length,
            unsafe=args.unsafe,
            values=values,
        ),
    )
    names = [problem.name for problem in found.problems]
    if not names:
        raise ValueError(f"{args.set} has no problems; expected some: is the file whole?")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{args.data}: the problem {twice!r} is there twice; expected it once")
    return found


def _check_likelihood(found: EvalSet, model: Model) -> None:
    if found.needs_likelihood and not model.gives_likelihoods:
        raise ValueError(
            f"{found.name} asks how likely given texts are, which {model.name} does not tell; "
            "expected a model folder: or choose another --mode of the set, see --list"
        )


def _options(given: list[str]) -> Iterator[tuple[str, str]]:
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"--option {text!r}: expected NAME=VALUE; see --list")
        yield name, value


def _run_settings(args: argparse.Namespace, found: EvalSet) -> RunSettings:
    from cwm_jax.evals.runs.metrics import parse, samples_needed
    from cwm_jax.evals.runs.runner import RunSettings

    samples = args.samples
    if args.metrics:
        most = max(parse(name).k for name in args.metrics)
        if samples is not None and samples < most:
            raise ValueError(
                f"--samples is {samples}, but --metrics has an aggregate of {most}; expected "
                f"--samples {most} or more"
            )
        samples = samples or max(found.samples, samples_needed(args.metrics))
    return RunSettings(
        samples=samples or found.samples,
        temperature=found.temperature if args.temperature is None else args.temperature,
        top_p=found.top_p if args.top_p is None else args.top_p,
        seed=args.seed,
        limit=args.limit,
        shard=_shard(args.shard),
    )


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, slash, count = text.partition("/")
    if not (slash and first.isdecimal() and count.isdecimal()):
        raise ValueError(f"--shard is {text!r}; expected I/N, such as 0/4")
    return int(first), int(count)


def _described(
    args: argparse.Namespace, found: EvalSet, settings: RunSettings, model: Model, mode: str
) -> dict[str, Any]:
    """``run.json``; what of it must be the same on resuming, `records` knows."""
    from cwm_jax.evals.catalog import file_identity

    return {
        "set": found.name,
        "mode": mode,
        "file": file_identity(args.data),
        "model": {"name": model.name, **model.identity()},
        "settings": {
            "samples": settings.samples,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": args.max_tokens,
            "seed": settings.seed,
            "limit": settings.limit,
            "shard": settings.shard,
            "options": dict(_options(args.option)),
            "unsafe": args.unsafe,
            **found.settings,
        },
        "num_problems": len(settings.chosen(found.problems)),
        "metrics": list(args.metrics or found.metrics),
        "published": dict(found.published),
        "about": found.about,
        "url": args.model if "://" in args.model else None,
        "versions": {"python": platform.python_version(), "cwm_jax": _version()},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("cwm-jax")
    except metadata.PackageNotFoundError:
        return "not installed"


def _default_folder(args: argparse.Namespace, mode: str, model: str) -> Path:
    parts = (args.set, mode, model, *([f"shard-{args.shard}"] if args.shard else ()))
    name = "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in p) for p in parts)
    return Path("eval") / name


def _compare(args: argparse.Namespace) -> int:
    from cwm_jax.evals.runs.report import compare

    if len(args.runs) != 2:
        raise ValueError(f"compare got {len(args.runs)} runs; expected two folders")
    text = compare(Path(args.runs[0]), Path(args.runs[1]))
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "comparison.md").write_text(text + "\n", encoding="utf-8")
    return 0


def _merge(args: argparse.Namespace) -> int:
    from cwm_jax.evals.runs.records import merge

    if len(args.runs) < 2 or args.out is None:
        raise ValueError("merge expects the folders of two or more shards, and --out FOLDER")
    merge([Path(run) for run in args.runs], args.out)
    return _report(argparse.Namespace(runs=[str(args.out)]))


def _report(args: argparse.Namespace) -> int:
    from cwm_jax.evals.runs.report import headline, write_report

    if len(args.runs) != 1:
        raise ValueError(f"report got {len(args.runs)} runs; expected one folder")
    path = write_report(Path(args.runs[0]))[0]
    print(f"{headline(Path(args.runs[0]))}\nreport: {path}")
    return 0
