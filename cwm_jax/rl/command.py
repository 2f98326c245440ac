"""``python -m cwm_jax rl``: check a run before it is one; read, play again, keep its episodes."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cwm_jax.config import Recipe, RunConfig, schema
from cwm_jax.config.files import load_recipe
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.trajectory import Trajectory, read_trajectories
from cwm_jax.sandbox import SandboxError
from cwm_jax.tokenizer import Tokenizer, load_tokenizer


def add_parser(subparsers: Any) -> None:
    """Adds the command with its parts."""
    parser = subparsers.add_parser("rl", help="tasks and episodes of reinforcement learning")
    parts = parser.add_subparsers(required=True, metavar="PART")
    show = parts.add_parser("show", help="print episodes as text")
    show.add_argument("--limit", type=int, default=3, help="episodes, the newest (default 3)")
    show.set_defaults(main=functools.partial(_guarded, _show))
    replay = parts.add_parser("replay", help="give the same answers to the environments again")
    replay.add_argument("--limit", type=int, default=100, help="episodes, the newest (default 100)")
    replay.set_defaults(main=functools.partial(_guarded, _replay))
    keep = parts.add_parser("keep", help="write episodes with high returns as dialogs for SFT")
    keep.add_argument("--min-return", type=float, default=1.0, help="of an episode (default 1)")
    keep.add_argument("--per-task", type=int, default=4, help="at most so many (default 4)")
    keep.add_argument("--out", required=True, help="new JSONL file, a source of kind chat")
    keep.add_argument("--append", action="store_true", help="add to a file that is there")
    keep.set_defaults(main=functools.partial(_guarded, _keep))
    check = parts.add_parser("check", help="load the tasks of a config and show what is asked")
    check.add_argument("config", help="Python file with get_config(); of a recipe its RL phases")
    check.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="as of train.py"
    )
    check.add_argument("--tokenizer", help="in place of the config's, where that is not there yet")
    check.add_argument("--gold", action="store_true", help="give the tasks' gold answers, too")
    check.add_argument("--limit", type=int, help="gold answers of each environment (default all)")
    check.set_defaults(main=functools.partial(_guarded, _check))
    for part in (show, replay, keep):
        part.add_argument("run", help="the run's folder")
        part.add_argument("--environment", help="of this name alone")
    for part in (show, replay):
        part.add_argument("--group", type=int, help="of this number alone")
        part.add_argument("--task", help="of this name alone")
        part.add_argument("--passed", action="store_true", help="only what was solved")
        part.add_argument("--not-passed", action="store_true", help="only what was not")


def describe_trajectory(trajectory: Trajectory, tokenizer: Tokenizer) -> str:
    """As text for people: what was read and answered, and what came of it."""
    head = f"{trajectory.environment}/{trajectory.task.name}, group {trajectory.group}"
    lines = [f"=== {head}: return {trajectory.total_reward:+g}, {trajectory.ending}"]
    if trajectory.failure:
        lines.append(f"the environment failed: {trajectory.failure}")
    for number, turn in enumerate(trajectory.turns, 1):
        mean = sum(turn.logprobs) / max(1, len(turn.logprobs))
        versions = f"{turn.first_version}"
        if turn.last_version != turn.first_version:
            versions += f" to {turn.last_version}"
        lines += [
            f"--- turn {number}, read: {len(turn.observation)} tokens",
            tokenizer.decode(turn.observation).rstrip("\n"),
            f"--- turn {number}, answered: {len(turn.action)} tokens, mean log-probability "
            f"{mean:.3f}, weights of step {versions}",
            tokenizer.decode(turn.action).rstrip("\n"),
            f"--- reward {turn.reward:+g}  {json.dumps(dict(turn.info), ensure_ascii=False)}",
        ]
    return "\n".join(lines)


def _guarded(part: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """2 for what a user has caused."""
    try:
        return part(args)
    except (ValueError, OSError, EnvironmentFailure, SandboxError) as error:
        print(f"cwm_jax rl: {error}", file=sys.stderr)
        return 2


def _show(args: argparse.Namespace) -> int:
    config = _config(args.run)
    tokenizer = _tokenizer(args.run, config)
    for trajectory in _newest(args):
        print_text(describe_trajectory(trajectory, tokenizer))
    return 0


def print_text(text: str) -> None:
    """Prints; what the output cannot hold, halves of surrogate pairs too, with backslashes."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def _replay(args: argparse.Namespace) -> int:
    """1 if an environment answers otherwise than it did."""
    from cwm_jax.rl.envs.kinds import make_environments

    config = _config(args.run)
    assert config.rl is not None
    tokenizer = _tokenizer(args.run, config)
    make = make_environments(config.rl.environments, tokenizer)
    same = different = 0
    for trajectory in _newest(args):
        if trajectory.ending != "done":
            continue
        problem = replay(trajectory, make(trajectory.environment, trajectory.task))
        same, different = same + (problem is None), different + (problem is not None)
        if problem is not None:
            print_text(f"{trajectory.environment}/{trajectory.task.name}: {problem}")
    print(f"{same} episodes as they were, {different} not")
    return 1 if different or not same else 0


def replay(trajectory: Trajectory, environment: Any) -> str | None:
    """Plays the trajectory's actions; what is different now, in words, or None."""
    try:
        observation = environment.start()
        for number, turn in enumerate(trajectory.turns, 1):
            if observation is None or tuple(observation.tokens) != turn.observation:
                return f"what is read before turn {number} is another text"
            step = environment.step(turn.action)
            if step.reward != turn.reward:
                return f"the reward of turn {number} is {step.reward:+g} and was {turn.reward:+g}"
            observation = step.observation
    except EnvironmentFailure as failure:
        return f"the environment failed: {failure}"
    finally:
        environment.close()
    return None if observation is None else "the episode goes on where it had ended"


def _keep(args: argparse.Namespace) -> int:
    from cwm_jax.rl.bootstrap import keep_dialogs

    config = _config(args.run)
    tokenizer = _tokenizer(args.run, config)
    report = keep_dialogs(
        _trajectories(Path(args.run), args.environment),
        tokenizer,
        Path(args.out),
        min_return=args.min_return,
        per_task=args.per_task,
        append=args.append,
    )
    print(f"{args.out}: {report}")
    return 0


def _check(args: argparse.Namespace) -> int:
    """1 if a gold answer earns less than +1, or a prompt leaves no room for an answer."""
    from cwm_jax.rl.checking import check

    found = schema.override(load_recipe(args.config), *args.set)
    phases = found.phases if isinstance(found, Recipe) else (found,)
    configs = [config for config in phases if config.rl is not None]
    if not configs:
        raise ValueError(f"{args.config}: no rl is set; expected a run of reinforcement learning")
    problems = []
    for config in configs:
        path = args.tokenizer or config.tokenizer.path
        if path is None or not Path(path).exists():
            raise ValueError(
                f"tokenizer.path of {config.run_name} is {path}, and there is nothing; expected "
                "the policy's: name one by --tokenizer"
            )
        print(f"run {config.run_name}, tokenizer {path}")
        for checked in check(config, load_tokenizer(path), gold=args.gold, limit=args.limit):
            print_text("\n".join(checked.lines))
            problems += checked.problems
    print_text("\n".join([*problems, f"{len(problems):,} problems"]))
    return 1 if problems else 0


def _config(run: str) -> RunConfig:
    path = Path(run) / "config.json"
    if not path.is_file():
        raise ValueError(f"{run}: no config.json; expected the folder of a run: name one")
    config = schema.from_json(RunConfig, json.loads(path.read_text(encoding="utf-8")))
    if config.rl is None:
        raise ValueError(f"{run}: this run has no rl; expected one of reinforcement learning")
    return config


def _tokenizer(run: str, config: RunConfig) -> Tokenizer:
    """The run's own copy, wherever this is called; before its first checkpoint the config's."""
    copies = sorted(Path(run).glob("checkpoints/[0-9]*/tokenizer"))
    return load_tokenizer(copies[-1] if copies else str(config.tokenizer.path))


def _newest(args: argparse.Namespace) -> list[Trajectory]:
    """The newest of those that are asked for; ValueError where there is none."""
    filters = ("environment", "group", "task", "passed", "not_passed")
    asked = {name: getattr(args, name) for name in filters}
    chosen = [
        t
        for t in _trajectories(Path(args.run), args.environment)
        if (args.group is None or t.group == args.group)
        and (args.task is None or t.task.name == args.task)
        and not (args.passed and not t.passed)
        and not (args.not_passed and t.passed)
    ]
    if not chosen:
        raise _none_matches(Path(args.run), asked)
    return chosen[-args.limit :]


def _trajectories(run: Path, environment: str | None) -> Iterator[Trajectory]:
    """All, or those of an environment; ValueError where it has none."""
    found = False
    for trajectory in _all_trajectories(run):
        if environment in (None, trajectory.environment):
            found = True
            yield trajectory
    if not found:
        raise _none_matches(run, {"environment": environment})


def _all_trajectories(run: Path) -> Iterator[Trajectory]:
    files = sorted((run / "trajectories").glob("*.jsonl"))
    if not files:
        raise ValueError(f"{run}: no trajectories/*.jsonl; expected a run that has played")
    for file in files:
        yield from read_trajectories(file)


def _none_matches(run: Path, asked: Mapping[str, Any]) -> ValueError:
    counts: dict[str, int] = {}
    tasks: dict[str, str] = {}
    for trajectory in _all_trajectories(run):
        counts[trajectory.environment] = counts.get(trajectory.environment, 0) + 1
        tasks[trajectory.environment] = trajectory.task.name
    given = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in asked.items()
        if value not in (None, False)
    ]
    environments = ", ".join(
        f"{name} ({count:,} episodes, the newest of the task {tasks[name]})"
        for name, count in sorted(counts.items())
    )
    return ValueError(
        f"{run}: no episode matches {' '.join(given) or 'at all'}; environments are "
        f"{environments or 'none'}: name what is there, or drop an option"
    )
