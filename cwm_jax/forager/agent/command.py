"""``forage run``: tasks in, trajectories out."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.data.trajectories import ENVIRONMENT, read_trajectories
from cwm_jax.evals.models import Model, ModelFailure
from cwm_jax.forager.agent.forage import (
    MODELS,
    POLICIES,
    ForageSettings,
    forage,
    model_settings,
)
from cwm_jax.forager.agent.loop import EpisodeLimits
from cwm_jax.forager.agent.policies.asked import AnswerSettings, ModelPolicies
from cwm_jax.forager.agent.threads import ThreadEngine
from cwm_jax.rl.environment import EnvironmentFailure, Task
from cwm_jax.rl.envs.swe.data import read_data
from cwm_jax.rl.envs.swe.shipped.tasks import shipped_tasks
from cwm_jax.rl.envs.task_files import read_tasks
from cwm_jax.sandbox import SandboxError
from cwm_jax.trace.corpus.engines import Engine, LocalEngine

_MIB = 1 << 20
_MODEL_WORKERS = 8  # assumed: episodes whose turns are one batch
_OF_MODELS = ("model", "temperature", "top_p", "max_tokens", "think")
_OF_ENDPOINTS = ("url", "tokenizer", "completions", "api_key", "api_key_file", "timeout", "retries")
_OF_ENGINES = ("max_length", "dtype", "kv_dtype")


def add_parser(subparsers: Any) -> None:
    """Adds the part ``run`` to ``forage``."""
    run = subparsers.add_parser("run", help="let an agent solve tasks, keep what it did")
    source = run.add_mutually_exclusive_group(required=True)
    source.add_argument("--tasks", type=Path, help="JSONL of tasks of kind swe")
    source.add_argument("--shipped", type=int, metavar="COUNT", help="tasks of the project itself")
    run.add_argument("--out", type=Path, required=True, help="JSONL, gone on with if it is there")
    run.add_argument("--policy", choices=POLICIES, default="oracle")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="episodes at once: processes (default one for each processor), of models threads "
        f"(default {_MODEL_WORKERS})",
    )
    _add_model(run.add_argument_group("of the policies endpoint and engine"))
    _add_limits(run.add_argument_group("limits of an episode"))
    run.set_defaults(main=_run)


def _add_model(group: Any) -> None:
    group.add_argument("--url", help="of an OpenAI-compatible server, for endpoint")
    group.add_argument("--model", help="its name there; for engine, an export's or a run's folder")
    group.add_argument("--temperature", type=float, help="(default 1)")
    group.add_argument("--top-p", type=float, help="(default 0.95)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="of a turn (default 8192)")
    group.add_argument("--think", action="store_true", default=None, help="reason in each turn")
    group.add_argument("--tokenizer", metavar="PATH", help="of the server's model")
    group.add_argument(
        "--completions", action="store_true", default=None, help="send dialogs as tokens"
    )
    group.add_argument("--api-key", metavar="KEY", help="others see it in `ps`")
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="its first line")
    group.add_argument("--timeout", type=float, metavar="S", help="of an answer (default 1800)")
    group.add_argument("--retries", type=int, metavar="N", help="for what may pass (default 7)")
    group.add_argument("--max-length", type=int, metavar="N", help="of a dialog, for engine")
    group.add_argument("--dtype", help="of the weights, for engine; by default the stored one")
    group.add_argument("--kv-dtype", choices=("int8",), help="for engine")


def _add_limits(group: Any) -> None:
    workspace = EpisodeLimits.workspace
    group.add_argument("--turns", type=int, default=EpisodeLimits.turns)
    group.add_argument("--characters", type=int, default=EpisodeLimits.characters)
    group.add_argument("--seconds", type=float, default=EpisodeLimits.seconds)
    group.add_argument("--memory-mib", type=int, default=workspace.memory_bytes // _MIB)
    group.add_argument("--scratch-mib", type=int, default=workspace.scratch_bytes // _MIB)
    group.add_argument("--processes", type=int, default=workspace.processes)


def _run(args: argparse.Namespace) -> int:
    """0: done, 1: every environment failed, 2: for what a user has caused, 3: the model failed."""
    try:
        return _forage(args)
    except ModelFailure as error:
        print(
            f"cwm_jax forage run: the model failed: {error}\nthe episodes before are kept: the "
            "same command goes on",
            file=sys.stderr,
        )
        return 3
    except (ValueError, OSError, RuntimeError, EnvironmentFailure, SandboxError) as error:
        print(f"cwm_jax forage run: {error}", file=sys.stderr)
        return 2


def _forage(args: argparse.Namespace) -> int:
    _check_model_options(args)
    if args.tasks is not None:
        tasks: Sequence[Task] = read_tasks(args.tasks, read_data, owner="--tasks")
    else:
        tasks = shipped_tasks(args.seed, args.shipped)
    own = {"policy": args.policy, "seed": args.seed, "limits": _limits(args)}
    if args.policy in MODELS:
        with _policies(args) as policies:
            settings = model_settings(policies, **own)
            engine: Engine = ThreadEngine(args.workers or _MODEL_WORKERS)
            num_played = forage(tasks, args.out, settings, engine=engine, policies=policies)
    else:
        settings, engine = ForageSettings(**own), LocalEngine(args.workers)
        num_played = forage(tasks, args.out, settings, engine=engine)
    return _report(args.out, num_played)


def _report(out: Path, num_played: int) -> int:
    rows = list(read_trajectories(out))
    num_solved = sum(row.solved is True for row in rows)
    failed = [row for row in rows if row.outcome == ENVIRONMENT]
    print(
        f"{out}: {num_played} episodes played, {len(rows)} in all, {num_solved} solved, "
        f"{len(failed)} whose environment failed"
    )
    if failed:
        print(
            f"cwm_jax forage run: {failed[0].name}: {failed[0].reason}\nsuch rows stay in the file "
            "and out of exports; to play their tasks again, name another --out",
            file=sys.stderr,
        )
    return int(bool(rows) and len(failed) == len(rows))


def _limits(args: argparse.Namespace) -> EpisodeLimits:
    workspace = dataclasses.replace(
        EpisodeLimits.workspace,
        memory_bytes=args.memory_mib * _MIB,
        scratch_bytes=args.scratch_mib * _MIB,
        processes=args.processes,
    )
    return EpisodeLimits(
        turns=args.turns, characters=args.characters, seconds=args.seconds, workspace=workspace
    )


def _check_model_options(args: argparse.Namespace) -> None:
    """Refuses options that the policy would not read, and a policy without what it needs."""
    known = {
        "endpoint": (*_OF_MODELS, *_OF_ENDPOINTS),
        "engine": (*_OF_MODELS, *_OF_ENGINES),
    }.get(args.policy, ())
    for name in (*_OF_MODELS, *_OF_ENDPOINTS, *_OF_ENGINES):
        if getattr(args, name) is not None and name not in known:
            raise ValueError(
                f"--{name.replace('_', '-')} is given with --policy {args.policy}; expected it "
                "only with one that reads it: leave it out"
            )
    if args.policy == "endpoint" and args.url is None:
        raise ValueError("--policy endpoint is given without --url; expected the server's")
    if args.policy == "engine" and args.model is None:
        raise ValueError("--policy engine is given without --model; expected a model's folder")


@contextlib.contextmanager
def _policies(args: argparse.Namespace) -> Iterator[ModelPolicies]:
    given = {name: getattr(args, name) for name in _OF_MODELS[1:]}
    settings = AnswerSettings(**{name: v for name, v in given.items() if v is not None})
    with contextlib.closing(ModelPolicies(_model(args), settings)) as policies:
        yield policies


def _model(args: argparse.Namespace) -> Model:
    if args.policy == "engine":
        from cwm_jax.evals.models.in_process import open_folder

        return open_folder(
            Path(args.model),
            parallel=args.workers or _MODEL_WORKERS,
            max_length=args.max_length,
            dtype=args.dtype,
            kv_dtype=args.kv_dtype,
        )
    from cwm_jax.evals.models.openai import ServerModel, ServerOptions, read_api_key
    from cwm_jax.tokenizer import load_tokenizer

    given = {"timeout_s": args.timeout, "retries": args.retries}
    options = ServerOptions(
        model=args.model,
        api_key=read_api_key(args.api_key, args.api_key_file),
        completions=bool(args.completions),
        **{name: value for name, value in given.items() if value is not None},
    )
    tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
    return ServerModel(args.url, tokenizer, options, say=_say)


def _say(text: str) -> None:
    print(f"cwm_jax forage run: {text}", file=sys.stderr, flush=True)
