"""An episode, which speaks tokens, as an attempt of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cwm_jax.data.chat import THINK_CLOSING
from cwm_jax.evals.problem import Answer, Prompt, Verdict
from cwm_jax.evals.swe.forms import form_of
from cwm_jax.rl.environment import Observation, Step
from cwm_jax.rl.envs.swe.environment import SoftwareEngineering
from cwm_jax.rl.envs.swe.workspaces.checkout import files_of
from cwm_jax.tokenizer import END_OF_TURN, Tokenizer

_SCORES = ("turns", "format_errors", "submitted")


class EpisodeAttempt:
    """One sample of one task.

    Args:
        make: makes the episode's environment.
        tokenizer: of the model.
        submitted: ``patch`` or ``test``: the key of ``Verdict.info`` that has what was submitted.
        read_answer: what is compared for majorities, from what was submitted.
    """

    def __init__(
        self,
        make: Callable[[], SoftwareEngineering],
        tokenizer: Tokenizer,
        *,
        submitted: str,
        read_answer: Callable[[str], str | None],
    ) -> None:
        self._environment, self._tokenizer = make(), tokenizer
        self._submitted, self._read_answer = submitted, read_answer
        self._tokens: list[int] = []
        self._num_written = 0

    def start(self) -> Prompt:
        return self._prompt(self._environment.start())

    def step(self, answer: Answer) -> Prompt | Verdict:
        action = action_of(answer, self._tokenizer)
        self._num_written += len(action)
        self._tokens += action
        step = self._environment.step(action)
        return self._verdict(step) if step.observation is None else self._prompt(step.observation)

    def close(self) -> None:
        self._environment.close()

    def _prompt(self, observation: Observation) -> Prompt:
        self._tokens += observation.tokens
        return Prompt(tokens=tuple(self._tokens), max_tokens=observation.max_action_tokens)

    def _verdict(self, step: Step) -> Verdict:
        info, submission = step.info, self._environment.submission
        return Verdict(
            passed=bool(info["pass"]),
            answer=None if submission is None else self._read_answer(submission),
            reason=str(info["reason"]),
            scores={name: float(info[name]) for name in _SCORES},
            info={
                self._submitted: submission,
                "turns": info["turns"],
                "tokens": self._num_written,
                "reason": info["reason"],
            },
        )


def action_of(answer: Answer, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a turn; of its text where the server does not tell them."""
    if answer.token_ids is not None:
        return list(answer.token_ids)
    text = answer.text
    if answer.reasoning:
        text = f"{answer.reasoning}{THINK_CLOSING}{text}"
    tokens = tokenizer.encode_with_special_tokens(text)
    if answer.finish_reason == "stop" and not (tokens and tokens[-1] in tokenizer.stop_ids):
        tokens.append(tokenizer.special_tokens[END_OF_TURN])
    return tokens


def patch_answer(repository: Mapping[str, Any], patch: str) -> str | None:
    """What equal patches have in common: see `forms`; of a container's the text alone."""
    if "image" in repository:
        return "\n".join(line for line in patch.splitlines() if line[:1] in "+-") or None
    form = form_of(patch, files_of(repository).get)
    return form and form.key
