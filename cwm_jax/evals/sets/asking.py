"""What sets with one question share: dialogs, answers as they are read, fields of lines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from cwm_jax.data.chat import THINK_CLOSING, THINK_OPENING, Message, with_reasoning_prompt
from cwm_jax.evals.problem import Answer, Prompt, SetOptions, Verdict
from cwm_jax.rl.envs.answers import NOT_FINISHED, NoAnswerError
from cwm_jax.rl.envs.fields import listed, short, text

MAX_REASONING_TOKENS = 65_536  # report: length cap of answers that reason
MAX_ANSWER_TOKENS = 4_096  # assumed: of those that do not
MAX_COMPLETION_TOKENS = 1_024  # assumed: of base models
NO_THINKING, THINKING, COMPLETION = "chat", "reasoning", "completion"
_THINK = THINK_OPENING.strip()


def chat(question: str, options: SetOptions, *, think: bool, most: int | None = None) -> Prompt:
    """A dialog of one question; that of a model that reasons begins with the prompt for it."""
    dialog = [Message("user", question)]
    most = most or (MAX_REASONING_TOKENS if think else MAX_ANSWER_TOKENS)
    return Prompt(
        messages=with_reasoning_prompt(dialog) if think else dialog,
        max_tokens=options.max_tokens or most,
        think=think,
    )


def final_text(answer: Answer) -> str:
    """What a dialog's answer says after its reasoning, stripped.

    Raises:
        NoAnswerError: it was cut, or opens or closes a reasoning again.
    """
    if answer.finish_reason == "length":
        raise NoAnswerError(NOT_FINISHED)
    for mark in (_THINK, THINK_CLOSING):
        if mark in answer.text:
            raise NoAnswerError(f"{mark} in the answer")
    return answer.text.strip()


def judge_with(judge: Callable[[Answer], Verdict]) -> Callable[[Answer], Verdict]:
    """The judge; what is no answer to it has not passed."""

    def judged(answer: Answer) -> Verdict:
        try:
            return judge(answer)
        except NoAnswerError as error:
            return Verdict(passed=False, reason=str(error))

    return judged


def row_of(value: Any, required: Collection[str]) -> Mapping[str, Any]:
    """A line's object, which has at least these keys.

    Raises:
        ValueError: it is none, or one is not there.
    """
    if not isinstance(value, Mapping):
        keys = f" with {listed(required)}" if required else ""
        raise ValueError(f"the line is {short(value)}; expected an object{keys}")
    for key in required:
        if key not in value:
            raise ValueError(
                f"the line has no {key!r}; expected {listed(required)}: is it the official file?"
            )
    return value


def name_of(row: Mapping[str, Any], key: str) -> str:
    """A line's id: text or a whole number."""
    value = row[key]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(value, key)
