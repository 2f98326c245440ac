"""What a run of reinforcement learning would ask, before it is one: tasks, prompts, gold answers.

Without weights: all that is read is the config, its task files, and the policy's tokenizer.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from cwm_jax.config import EnvironmentConfig, RunConfig
from cwm_jax.rl.environment import Environment, EnvironmentFailure, Task
from cwm_jax.rl.envs import prediction
from cwm_jax.rl.envs.kinds import load_tasks, make_environments
from cwm_jax.rl.envs.math import environment as math
from cwm_jax.rl.envs.swe import profiles as swe_profiles
from cwm_jax.rl.envs.swe.prompts import output_blocks
from cwm_jax.rl.playing.tasks import drawn_tasks, split_tasks
from cwm_jax.tokenizer import END_OF_TURN, Tokenizer
from cwm_jax.trace.format import parse_frames, render_each

_MOST_PROMPTS = 200  # assumed: whose tokens are counted
_GOLD_REWARD = 1.0  # of every kind, at the profiles' scales of reward
_PATCH = "/tmp/changes.diff"
_SUBMIT = f"<tool: submit>\n{_PATCH}\n</tool>"
_OUTPUT, _OUTPUT_END = output_blocks()
_REPORT = "## Cause\nThe gold patch says it.\n## Change\nThe gold patch.\n## Checks\nNone."
_MARKS = ("<tool:", "</tool>", "</think>")  # of which a turn may have no more than its own

Maker = Callable[[str, Task], Environment]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """Of one environment: lines to print, and what would go wrong."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]


def check(
    config: RunConfig, tokenizer: Tokenizer, *, gold: bool = False, limit: int | None = None
) -> Iterator[Checked]:
    """Loads and asks the tasks of each environment, in their order.

    Args:
        config: with ``rl``.
        tokenizer: of the policy.
        gold: give the gold answers of those kinds whose tasks have one.
        limit: tasks of each environment, whose gold answers are given, the first; None is all.

    Raises:
        ValueError: tasks or a profile that cannot be used, or none to train on.
        EnvironmentFailure: there is no sandbox.
    """
    assert config.rl is not None
    make = make_environments(config.rl.environments, tokenizer)
    for environment in config.rl.environments:
        tasks = load_tasks(environment)
        learnt, heldout = split_tasks(tasks, config.data.heldout_fraction)
        train = drawn_tasks(learnt, environment, config.seed)
        if not train:
            raise ValueError(
                f"environment {environment.name!r}: none of its {len(tasks):,} tasks is left to "
                "train on; expected one or more: add tasks, or lower data.heldout_fraction"
            )
        lines, problems = [_counts(environment, len(tasks), train, heldout, config)], []
        longest, shown = _prompts(environment, tasks, make, tokenizer, config, problems)
        lines += [longest, *shown]
        if gold:
            found = list(_gold_lines(environment, tasks[:limit], make, tokenizer, problems))
            lines += found
        yield Checked(lines=tuple(lines), problems=tuple(problems))


def _counts(
    environment: EnvironmentConfig,
    count: int,
    train: Sequence[Task],
    heldout: Sequence[Task],
    config: RunConfig,
) -> str:
    rl = config.rl
    assert rl is not None
    left = count - len(train) - len(heldout)
    drawn = f" (max_tasks: {left:,} are left out)" if left else ""
    noted = "" if heldout else ", so that no accuracy is measured"
    return (
        f"environment {environment.name} ({environment.kind}, profile {environment.profile}): "
        f"{count:,} tasks, {len(train):,} to train on{drawn}, {len(heldout):,} held "
        f"out{noted} (data.heldout_fraction {config.data.heldout_fraction:g}), of which "
        f"{min(len(heldout), rl.eval_tasks):,} are evaluated"
    )


def _prompts(
    environment: EnvironmentConfig,
    tasks: Sequence[Task],
    make: Maker,
    tokenizer: Tokenizer,
    config: RunConfig,
    problems: list[str],
) -> tuple[str, list[str]]:
    """(the lengths of the first prompts, the first of them as text); those without room are noted.

    Without a sandbox an environment may work in a folder of this machine from its start: only one
    is then made.
    """
    T, sizes, shown = config.batch.max_target_length, {}, []
    asked = tasks[: 1 if environment.unsafe else _MOST_PROMPTS]
    for task in asked:
        try:
            with contextlib.closing(make(environment.name, task)) as episode:
                start = episode.start()
        except Exception as error:
            problems.append(_no_start(environment, task, error))
            continue
        sizes[task.name] = len(start.tokens)
        if not shown:
            room = min(start.max_action_tokens, T - len(start.tokens))
            shown = [
                f"the prompt of {task.name}: {len(start.tokens):,} tokens of "
                f"batch.max_target_length {T:,}; its first answer may have {max(0, room):,} of the "
                f"profile's {start.max_action_tokens:,}",
                "-" * 80,
                tokenizer.decode(start.tokens),
                "-" * 80,
            ]
    full = [name for name, size in sizes.items() if size >= T]
    if full:
        problems.append(
            f"environment {environment.name}: {len(full):,} of {len(sizes):,} prompts leave no "
            f"room for an answer in batch.max_target_length {T:,} (the first: {full[0]}): raise "
            "it, or shorten the problems"
        )
    span = f"{min(sizes.values()):,} to {max(sizes.values()):,} tokens" if sizes else "none starts"
    return f"prompts of {len(asked):,} tasks: {span}", shown


def _named(environment: EnvironmentConfig, task: Task) -> str:
    return f"environment {environment.name}, task {task.name}"


def _no_start(environment: EnvironmentConfig, task: Task, error: Exception) -> str:
    return f"{_named(environment, task)}: it does not start: {_why(error)}"


def _why(error: Exception) -> str:
    if isinstance(error, EnvironmentFailure):
        return f"the environment failed: {error}"
    # Anything else would be a crash of the environment to a run, wherever the fault is.
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


# ---------------------------------------------------------------- gold answers


def _gold_lines(
    environment: EnvironmentConfig,
    tasks: Sequence[Task],
    make: Maker,
    tokenizer: Tokenizer,
    problems: list[str],
) -> Iterator[str]:
    if environment.kind == "code":
        yield "gold: tasks of kind code have no gold answers; their tests are not run"
        return
    counts: collections.Counter[bool] = collections.Counter()
    for task in tasks:
        try:
            with contextlib.closing(make(environment.name, task)) as episode:
                reason = gold_reason(environment, task, episode, tokenizer)
        except Exception as error:
            reason = _why(error)
            if _no_start(environment, task, error) in problems:
                continue
        counts[reason is None] += 1
        if reason is not None:
            problems.append(f"{_named(environment, task)}: its gold answer: {reason}")
    yield f"gold: {counts[True]:,} of {len(tasks):,} earn {_GOLD_REWARD:+g}"


def gold_reason(
    environment: EnvironmentConfig, task: Task, episode: Environment, tokenizer: Tokenizer
) -> str | None:
    """Plays a task's gold answer; None if it earns +1, else what it does."""
    total, step = 0.0, None
    episode.start()
    for text in gold_turns(environment, task):
        if environment.kind == "trace_prediction":
            action = tokenizer.encode_with_special_tokens(text)
        else:
            action = [*tokenizer.encode(text), tokenizer.special_tokens[END_OF_TURN]]
        step = episode.step(action)
        total += step.reward
        if step.observation is None:
            break
        if text.rstrip().endswith(_SUBMIT) and not step.info["submitted"]:
            said = tokenizer.decode(step.observation.tokens)  # header, output, budget
            return f"the patch is not submitted: {said.partition(_OUTPUT)[2].split(_OUTPUT_END)[0]}"
    if step is None or not step.done:
        return "the episode goes on after it"
    if total == _GOLD_REWARD:
        return None
    return f"earns {total:+g}: {step.info.get('reason') or 'no reason is given'}"


def gold_turns(environment: EnvironmentConfig, task: Task) -> Iterator[str]:
    """What a policy would write that knows the answer.

    Raises:
        ValueError: a patch that no turn can hold.
    """
    kind, data = environment.kind, task.data
    if kind == "swe":
        think = swe_profiles.PROFILES[environment.profile].think
        yield _reasoned(_create_call(data["patch"]), think)
        yield _reasoned(_SUBMIT, think)
        yield _reasoned(_REPORT, think)
    elif kind in ("math", "math_python"):
        think = math.PROFILES[environment.profile].think
        yield _reasoned(f"\\boxed{{{data['answer']}}}", think)
    elif kind == "output_prediction":
        yield _reasoned(data["output"], prediction.PROFILES[environment.profile].think)
    elif kind == "trace_prediction":
        frames = data["frames"]
        yield frames.removeprefix(next(render_each(parse_frames(frames))))
    else:
        raise AssertionError(kind)


def _create_call(patch: str) -> str:
    """Writes the patch by bash, which every profile has; its lines are no shell's."""
    if any(mark in patch for mark in _MARKS):
        raise ValueError(
            f"its patch has one of {', '.join(_MARKS)} in it, which no policy can write in a turn "
            "either: not played"
        )
    word = "END_OF_PATCH"
    while word in patch:
        word += "_"
    ended = patch if patch.endswith("\n") else f"{patch}\n"
    return f"<tool: bash>\ncat > {_PATCH} <<'{word}'\n{ended}{word}\n</tool>"


def _reasoned(text: str, think: bool) -> str:
    return f"The gold answer.\n</think>\n{text}" if think else text
