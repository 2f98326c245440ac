"""Next observations: what a tool will say, of what an agent has done so far in a repository."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

from cwm_jax.data.trajectories import Trajectory, read_trajectories
from cwm_jax.evals.models import PromptTooLongError
from cwm_jax.evals.observations.asked import (
    CUT,
    TOO_LONG,
    Choice,
    Observation,
    observations,
)
from cwm_jax.evals.observations.kinds import KINDS
from cwm_jax.evals.observations.similarity import edit_similarity
from cwm_jax.evals.option_values import names, whole_number
from cwm_jax.evals.problem import (
    Answer,
    Attempt,
    EvalSet,
    Forced,
    Likelihood,
    Problem,
    Prompt,
    SetEntry,
    SetOptions,
    Verdict,
)

BOTH, GENERATED, LOSS = MODES = ("both", "generated", "loss")
_PER_TRAJECTORY = 4  # assumed
_SPARE_TOKENS = 64  # assumed
_METRICS = {
    BOTH: ("mean", "edit_similarity:mean", "nats/tokens:mean"),
    GENERATED: ("mean", "edit_similarity:mean"),
    LOSS: ("nats/tokens:mean", "token_accuracy:mean", "mean"),
}
_ABOUT = """\
{count} observations of {path}, {trajectories} trajectories, {silent} of which have none to ask \
for{kinds}. {cut} have a prefix without its beginning: the model's context has room for its end. \
{too_long} do not fit with their call, and count as failed. mean: {right}. edit_similarity: \
1 - Levenshtein distance / length of the longer text, in characters. nats/tokens: loss per token \
of the true observations and the ends of their turns, each token counting the same; loss: each \
observation counting the same. Observations of one trajectory are not independent: with several of \
each the intervals are too narrow"""
_RIGHT = {
    BOTH: "the share of generated observations that are exact",
    GENERATED: "the share of generated observations that are exact",
    LOSS: "the share of observations each of whose tokens is the likeliest, as greedy decoding "
    "would write them",
}


def load(path: Path | None, options: SetOptions) -> EvalSet:
    """Observations of the trajectories of a file, as ``forage run`` writes it.

    Raises:
        ValueError: no tokenizer, an option that cannot be used, a line that is no trajectory.
    """
    assert path is not None
    tokenizer = options.tokenizer
    if tokenizer is None:
        raise ValueError(
            "observations writes its prompts in the model's tokens, and no tokenizer is given; "
            "expected the model's: name it with --tokenizer, or evaluate a model from its folder"
        )
    choice = _choice(options)
    trajectories = [*read_trajectories(path)]
    asked = [[*observations(trajectory, tokenizer, choice)] for trajectory in trajectories]
    return EvalSet(
        name=f"observations/{options.mode}",
        problems=[_problem(each, options) for group in asked for each in group],
        metrics=_METRICS[options.mode],
        about=_about(path, options, choice, trajectories, asked),
        settings={"prompt_max_length": choice.max_length},
        needs_likelihood=options.mode != GENERATED,
    )


ENTRIES = {
    "observations": SetEntry(
        load=load,
        modes=MODES,
        summary="what a tool says next, of trajectories of agents: loss, exact match, similarity",
        options={
            "per_trajectory": f"observations, drawn by name; 0 takes all ({_PER_TRAJECTORY})",
            "seed": "of the draw (0)",
            "kinds": f"some of {','.join(KINDS)} (all)",
            "max_length": "tokens of a prompt and the observation (the model's context)",
        },
    )
}


class _Asked:
    """First how likely the observation is, then what the model expects, as the mode says."""

    def __init__(self, observation: Observation, mode: str, max_tokens: int | None) -> None:
        self._observation, self._mode = observation, mode
        # More would not be exact; an answer that runs on is as good as cut.
        limit = 2 * len(observation.given) + _SPARE_TOKENS
        self._max_tokens = min(limit, max_tokens or limit)
        self._likelihood: Likelihood | None = None

    def start(self) -> Prompt | Forced:
        observation = self._observation
        if observation.prefix == TOO_LONG:
            raise PromptTooLongError(
                f"an observation of {len(observation.given):,} tokens and its call do not fit"
            )
        if self._mode == GENERATED:
            return self._prompt()
        return Forced(
            tokens=observation.prompt.tolist(),
            given=observation.given.tolist(),
            then=self._after,
        )

    def step(self, answer: Answer) -> Verdict:
        true, written = self._observation.text, answer.text
        ended = answer.finish_reason == "stop"
        passed = ended and written == true
        return Verdict(
            passed=passed,
            answer=written if ended else None,
            reason="" if passed else _difference(true, written, ended=ended),
            scores={"edit_similarity": edit_similarity(true, written), **self._scores()},
            info=self._info(),
        )

    def close(self) -> None:
        pass

    def _prompt(self) -> Prompt:
        tokens = self._observation.prompt.tolist()
        return Prompt(tokens=tokens, max_tokens=self._max_tokens)

    def _after(self, likelihood: Likelihood) -> Prompt | Verdict:
        self._likelihood = likelihood
        if self._mode == BOTH:
            return self._prompt()
        passed = all(likelihood.likeliest)
        return Verdict(
            passed=passed,
            reason="" if passed else "another token is likelier",
            scores=self._scores(),
            info=self._info(),
        )

    def _scores(self) -> dict[str, float]:
        if self._likelihood is None:
            return {}
        nats, count = -sum(self._likelihood.logprobs), len(self._likelihood.logprobs)
        right = sum(self._likelihood.likeliest)
        return {
            "loss": nats / count,
            "token_accuracy": right / count,
            "nats": nats,
            "tokens": count,
        }

    def _info(self) -> dict[str, int]:
        observation = self._observation
        return {"prefix_tokens": len(observation.prompt), "cut_tokens": observation.num_cut_tokens}


def _choice(options: SetOptions) -> Choice:
    known = options.max_length
    max_length = known
    if "max_length" in options.values:
        max_length = whole_number(options, "max_length", 2, least=2)
        if known is not None and max_length > known:
            raise ValueError(
                f"--option max_length={max_length}: the model takes {known} tokens; expected at "
                "most these"
            )
    return Choice(
        per_trajectory=whole_number(options, "per_trajectory", _PER_TRAJECTORY, least=0),
        seed=whole_number(options, "seed", 0, least=0),
        kinds=names(options, "kinds", KINDS),
        max_length=max_length,
    )


def _problem(observation: Observation, options: SetOptions) -> Problem:
    def attempt() -> Attempt:
        return _Asked(observation, options.mode, options.max_tokens)

    return Problem(
        name=observation.name,
        attempt=attempt,
        text=observation.text,
        labels={"kind": observation.kind, "prefix": observation.prefix},
    )


def _about(
    path: Path,
    options: SetOptions,
    choice: Choice,
    trajectories: Sequence[Trajectory],
    asked: Sequence[Sequence[Observation]],
) -> str:
    prefixes = collections.Counter(each.prefix for group in asked for each in group)
    kinds = "" if {*choice.kinds} == {*KINDS} else f" (kinds {', '.join(choice.kinds)})"
    return _ABOUT.format(
        count=prefixes.total(),
        path=path.name,
        trajectories=len(trajectories),
        silent=sum(not group for group in asked),
        kinds=kinds,
        cut=prefixes[CUT],
        too_long=prefixes[TOO_LONG],
        right=_RIGHT[options.mode],
    )


def _difference(true: str, written: str, *, ended: bool) -> str:
    if not ended and true.startswith(written):
        return "not finished"
    shortest = min(len(true), len(written))
    place = next((i for i in range(shortest) if true[i] != written[i]), shortest)
    return f"another text: from character {place + 1} on"
