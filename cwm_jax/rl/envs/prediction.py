"""What does this program return? The answer is checked against CPython's; so is a whole trace.

Tasks are the episodes of a trace corpus: nothing is run here.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cwm_jax.data.chat import Message, encode_dialog, with_reasoning_prompt
from cwm_jax.data.dialogs import output_question
from cwm_jax.rl.environment import Observation, Step, Task
from cwm_jax.rl.envs.answers import NoAnswerError, answer_text
from cwm_jax.tokenizer import Tokenizer
from cwm_jax.trace.episodes import Episode
from cwm_jax.trace.format import parse_frames, render_each
from cwm_jax.trace.frames import returned_value

_FLOAT_TOLERANCE = 1e-5  # secondary: of the follow-up on self-execution, relative


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionProfile:
    """Limits and form of an episode.

    Attributes:
        max_action_tokens: of the answer.
        think: the answer reasons first, and exactly one ``</think>`` is demanded.
        system_prompt: the dialog begins with the one that asks for reasoning.
    """

    max_action_tokens: int
    think: bool = True
    system_prompt: bool = True


PROFILES = {
    "64k": PredictionProfile(max_action_tokens=65_536),  # report: length cap of single answers
    "small": PredictionProfile(max_action_tokens=192, system_prompt=False),
    "direct": PredictionProfile(max_action_tokens=32, think=False, system_prompt=False),
}


def output_tasks(episodes: Iterable[Episode]) -> Iterator[Task]:
    """One for each episode that has a question and an output."""
    for episode in episodes:
        question, output = output_question(episode.context), episode.output
        if question is not None and output:
            data = {"question": question, "output": output}
            yield Task(name=episode.name, data=data, group=episode.group)


def trace_tasks(episodes: Iterable[Episode]) -> Iterator[Task]:
    """One for each episode that is whole."""
    for episode in episodes:
        if episode.finished:
            data = {"prompt": episode.prompt, "frames": episode.frames}
            yield Task(name=episode.name, data=data, group=episode.group)


class OutputPrediction:
    """One answer; +1 if it is the value that the program returns, else -1."""

    def __init__(self, task: Task, tokenizer: Tokenizer, profile: PredictionProfile):
        self._task, self._tokenizer, self._profile = task, tokenizer, profile

    def start(self) -> Observation:
        dialog = [Message("user", self._task.data["question"])]
        if self._profile.system_prompt:
            dialog = with_reasoning_prompt(dialog)
        tokens = encode_dialog(self._tokenizer, dialog, think=self._profile.think)
        return Observation(tokens=tokens, max_action_tokens=self._profile.max_action_tokens)

    def step(self, action: Sequence[int]) -> Step:
        answer, right = None, False
        try:
            answer = answer_text(action, self._tokenizer, think=self._profile.think)
        except NoAnswerError as error:
            reason = str(error)
        else:
            right = is_same_value(answer, self._task.data["output"])
            reason = "" if right else "another value"
        info: dict[str, Any] = {"pass": right, "answer": answer, "reason": reason}
        return Step(observation=None, reward=1.0 if right else -1.0, info=info)

    def close(self) -> None:
        pass


class TracePrediction:
    """The whole trace after the entry's call; +1 if every frame is CPython's, else -1."""

    def __init__(self, task: Task, tokenizer: Tokenizer, profile: PredictionProfile):
        self._tokenizer, self._profile = tokenizer, profile
        self._prompt = task.data["prompt"]
        self._frames = parse_frames(task.data["frames"])
        self._call = next(render_each(self._frames))

    def start(self) -> Observation:
        tokens = self._tokenizer.encode_with_special_tokens(self._prompt + self._call)
        return Observation(tokens=tokens, max_action_tokens=self._profile.max_action_tokens)

    def step(self, action: Sequence[int]) -> Step:
        info: dict[str, Any] = {"pass": False}
        try:
            frames = parse_frames(self._call + self._tokenizer.decode(action))
        except ValueError as error:
            info["reason"] = f"no trace: {error}"
        else:
            info["pass"] = frames == self._frames
            info["output_right"] = returned_value(frames) == returned_value(self._frames)
            info["reason"] = "" if info["pass"] else "another frame"
        return Step(observation=None, reward=1.0 if info["pass"] else -1.0, info=info)

    def close(self) -> None:
        pass


def is_same_value(answer: str, output: str) -> bool:
    """Whether two ``repr`` are of one value and type; floats to a relative 1e-5.

    What is no literal has to be spelt alike.
    """
    if answer == output:
        return True
    try:
        return _same(ast.literal_eval(answer), ast.literal_eval(output))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a == b or math.isclose(a, b, rel_tol=_FLOAT_TOLERANCE) or (a != a and b != b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):  # 1 and True are one key: the items are compared, in their order
        return len(a) == len(b) and all(map(_same, a.items(), b.items()))
    if isinstance(a, set | frozenset):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    return a == b
