"""Trace prediction: how a program runs, or what it returns, against CPython."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.evals.option_values import fraction, whole_number
from cwm_jax.evals.problem import (
    Answer,
    Attempt,
    EvalSet,
    Problem,
    Prompt,
    SetEntry,
    SetOptions,
    Verdict,
    one_answer,
)
from cwm_jax.evals.traces.episodes import (
    EpisodeTokens,
    heldout_episodes,
    take_episodes,
    traced_episodes,
)
from cwm_jax.evals.traces.metrics import METRICS, ScoredFrame, summarise
from cwm_jax.evals.traces.predicted import (
    PredictedTrace,
    direct_output,
    predicted_trace,
    single_step_output,
)
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.sandbox import SandboxError
from cwm_jax.tokenizer import END_OF_TEXT, FRAME_SEP, RETURN_SEP, Tokenizer
from cwm_jax.trace.episodes import Episode, Program, Uncallable, direct_prompt, jsonl_programs
from cwm_jax.trace.format import parse_frames, render_each
from cwm_jax.trace.frames import TraceFrame
from cwm_jax.trace.tracer import Tracer

MODES = ("full_trace", "single_step", "direct")
_MAX_TOKENS = {"full_trace": 8192, "single_step": 1024, "direct": 1024}  # assumed
_EPISODES = 500  # assumed
_HELDOUT_FRACTION = 0.02  # of DataConfig
_ABOUT = (
    "{count} traces of {path}{passed}. The entry's call is given. Scores of frames are means over "
    "traces; right: the output is, and of a program that raises the whole trace."
)


def load(path: Path | None, options: SetOptions) -> EvalSet:
    """The episodes of a trace corpus, or of a JSONL file's programs, traced now.

    Raises:
        ValueError: a file or option that cannot be used; no episode is left.
        EnvironmentFailure: no sandbox can be had for what is traced.
    """
    assert path is not None
    wanted = _Wanted.of(options)
    episodes, passed = _episodes(path, wanted, options)
    problems = [_problem(episode, options, wanted.max_length) for episode in episodes]
    words = ", ".join(f"{count} {reason}" for reason, count in passed.items() if count)
    return EvalSet(
        name=f"trace_prediction/{options.mode}",
        problems=problems,
        about=_ABOUT.format(
            count=len(problems), path=path.name, passed=f" (passed over: {words})" if words else ""
        ),
    )


ENTRIES = {
    "trace_prediction": SetEntry(
        load=load,
        modes=MODES,
        summary="execution traces and outputs of held-out programs, frame by frame",
        options={
            "episodes": f"how many, the first ones ({_EPISODES})",
            "heldout_fraction": "of a corpus: the data.heldout_fraction of the model's training "
            f"({_HELDOUT_FRACTION}); 1 takes every episode",
            "max_length": "tokens of a prompt and its trace; longer ones are passed over",
        },
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Wanted:
    """The set's own options, read."""

    episodes: int
    heldout_fraction: float
    max_length: int | None

    @classmethod
    def of(cls, options: SetOptions) -> _Wanted:
        has_length = "max_length" in options.values
        if has_length and options.tokenizer is None:
            raise ValueError(
                "trace_prediction: max_length is given, but not the model's tokenizer, in whose "
                "tokens it is; expected both or none: name the tokenizer, or leave max_length out"
            )
        return cls(
            episodes=whole_number(options, "episodes", _EPISODES),
            heldout_fraction=fraction(options, "heldout_fraction", _HELDOUT_FRACTION),
            max_length=whole_number(options, "max_length", 1) if has_length else None,
        )


def _episodes(
    path: Path, wanted: _Wanted, options: SetOptions
) -> tuple[list[Episode], dict[str, int]]:
    """What is asked about, and who was passed over."""
    passed = {"without an output to ask for": 0}

    def fit(episodes: Iterable[Episode]) -> Iterator[Episode]:
        for episode in episodes:
            if _can_be_asked(episode, options.mode):
                yield episode
            else:
                passed["without an output to ask for"] += 1

    take = functools.partial(
        take_episodes,
        tokenizer=options.tokenizer,
        count=wanted.episodes,
        max_length=wanted.max_length,
    )
    if path.is_dir():
        taken, others = take(fit(heldout_episodes(path, wanted.heldout_fraction)))
        return taken, passed | others
    failed: list[str] = []
    try:
        with Tracer(unsafe=options.unsafe) as tracer:
            taken, others = take(fit(traced_episodes(_programs(path), tracer, failed)))
    except SandboxError as error:
        raise EnvironmentFailure(str(error)) from error
    return taken, passed | others | {"without a trace": len(failed)}


def _can_be_asked(episode: Episode, mode: str) -> bool:
    if mode == "full_trace" or not episode.finished:  # those that are cut are counted as such
        return True
    has_prompt = mode == "single_step" or direct_prompt(episode.context) is not None
    return has_prompt and episode.output is not None


def _programs(path: Path) -> Iterator[Program | Uncallable]:
    """Contexts with a marked line, or calls of functions (see `jsonl_programs`); by line 1."""
    with path.open("rb") as file:
        first = _row(path, 1, file.readline())
        if "context" not in first:
            yield from jsonl_programs(path)
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            row = _row(path, number, line)
            if not isinstance(context := row.get("context"), str):
                raise ValueError(
                    f"{path}:{number}: has {sorted(row)}; expected a string 'context', as line 1 "
                    "has: mend or remove the line"
                )
            name = str(row.get("id", f"line-{number}")).replace("#", "-")
            yield Program(
                name=f"{path.stem}-{name}",
                context=context,
                source="jsonl",
                origin=f"{path.name}:{number}",
            )


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: no JSON ({error}); expected an object") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}:{number}: a {type(row).__name__}; expected an object with keys")
    return row


def _problem(episode: Episode, options: SetOptions, max_length: int | None) -> Problem:
    limit = options.max_tokens or _MAX_TOKENS[options.mode]
    if max_length is not None:
        assert options.tokenizer is not None
        limit = min(limit, _room(episode, options.tokenizer, max_length))
    ask = {"full_trace": _full_trace, "single_step": _single_step, "direct": _direct}
    labels = {} if episode.difficulty is None else {"difficulty": str(episode.difficulty)}
    return Problem(
        name=episode.name,
        attempt=ask[options.mode](episode, limit),
        text=episode.context,
        labels=labels | {"source": episode.source},
    )


def _room(episode: Episode, tokenizer: Tokenizer, max_length: int) -> int:
    """Tokens for the answer; as with an in-process model, whatever was written is within."""
    tokens = EpisodeTokens.of(episode, tokenizer)
    return max_length - len(tokens.prompt) - len(tokens.given)


def _full_trace(episode: Episode, max_tokens: int) -> Callable[[], Attempt]:
    true = parse_frames(episode.frames)
    prompt = Prompt(
        text=episode.prompt + next(render_each(true)), max_tokens=max_tokens, stop=(END_OF_TEXT,)
    )

    def judge(answer: Answer) -> Verdict:
        return _verdict(predicted_trace(episode, true, _ended(answer, END_OF_TEXT)), true)

    return one_answer(prompt, judge)


def _single_step(episode: Episode, max_tokens: int) -> Callable[[], Attempt]:
    given = next(render_each(parse_frames(episode.frames)))
    prompt = Prompt(
        text=f"{episode.prompt}{given}{RETURN_SEP}", max_tokens=max_tokens, stop=(FRAME_SEP,)
    )
    return one_answer(
        prompt,
        lambda answer: _verdict_of_output(
            single_step_output(_ended(answer, FRAME_SEP)), episode.output
        ),
    )


def _direct(episode: Episode, max_tokens: int) -> Callable[[], Attempt]:
    text = direct_prompt(episode.context)
    assert text is not None
    prompt = Prompt(text=text, max_tokens=max_tokens, stop=(END_OF_TEXT,))
    return one_answer(
        prompt,
        lambda answer: _verdict_of_output(
            direct_output(_ended(answer, END_OF_TEXT)), episode.output
        ),
    )


def _ended(answer: Answer, stop: str) -> str:
    """The text with the stop string that is not part of an answer."""
    return answer.text + (stop if answer.finish_reason == "stop" else "")


def _verdict(predicted: PredictedTrace, true: Sequence[TraceFrame]) -> Verdict:
    exact = predicted.valid and predicted.divergence is None
    output = predicted.episode.output
    right = exact if output is None else predicted.output == output
    means = summarise(
        [
            ScoredFrame(event=frame.event.value, difficulty=None, score=score)
            for frame, score in zip(true[1:], predicted.scores, strict=True)
        ]
    )["overall"]
    scores = {"valid_format": float(predicted.valid), "exact_trace": float(exact)}
    scores |= {f"frames_{name}": means[name] for name in METRICS if name in means}
    if output is not None:
        scores["output"] = float(right)
    return Verdict(
        passed=right,
        answer=predicted.output,
        reason="" if right else _reason(predicted),
        scores=scores,
        info={"frames": int(means["frames"]), "first_divergence": predicted.divergence},
    )


def _reason(predicted: PredictedTrace) -> str:
    if predicted.divergence is None:
        return "another end"
    form = "" if predicted.valid else ", not well-formed to its end"
    return f"another frame at place {predicted.divergence + 1} after the call{form}"


def _verdict_of_output(predicted: str | None, output: str | None) -> Verdict:
    right = predicted == output
    reason = "no output in the expected form" if predicted is None else "another output"
    return Verdict(passed=right, answer=predicted, reason="" if right else reason)
