"""Which observations of trajectories are asked for, and after what."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cwm_jax.data.chat import encode_body, encode_header
from cwm_jax.data.trajectories import Trajectory
from cwm_jax.evals.observations.kinds import observation_kind
from cwm_jax.tokenizer import END_OF_TURN, Tokenizer

WHOLE, CUT, TOO_LONG = "whole", "cut", "does not fit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What a tool said in a trajectory, in the tokens of training.

    Attributes:
        name: of the trajectory, and the number of the message in it.
        kind: see `observation_kind`.
        text: what is to be predicted.
        prompt: the dialog up to the header of the tool's message, its beginning left out where it
            does not fit; empty if ``prefix`` says that nothing does.
        given: ``text`` and the end of its turn.
        prefix: `WHOLE`, `CUT`, or `TOO_LONG`: not even the call fits before it.
        num_cut_tokens: of the dialog, left out.
    """

    name: str
    kind: str
    text: str
    prompt: np.ndarray
    given: np.ndarray
    prefix: str
    num_cut_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Which observations of a trajectory are asked for.

    Attributes:
        per_trajectory: at most so many, drawn without replacement; 0: all.
        seed: of the draw, with the trajectory's name.
        kinds: of these alone; the draw is among them.
        max_length: tokens of a prompt and the observation; None: nothing is cut.
    """

    per_trajectory: int
    seed: int
    kinds: Sequence[str]
    max_length: int | None


def observations(
    trajectory: Trajectory, tokenizer: Tokenizer, choice: Choice
) -> Iterator[Observation]:
    """Those that are asked for, in their order; a function of the trajectory and the arguments."""
    kinds = _kinds(trajectory)
    numbers = [number for number, kind in kinds.items() if kind in choice.kinds]
    if 0 < choice.per_trajectory < len(numbers):
        rng = random.Random(f"{choice.seed}/{trajectory.name}")
        numbers = sorted(rng.sample(numbers, choice.per_trajectory))
    dialog = _Dialog(trajectory, tokenizer)
    for number in numbers:
        given = dialog.given(number)
        room = None if choice.max_length is None else choice.max_length - len(given)
        yield Observation(
            name=f"{trajectory.name}#{number}",
            kind=kinds[number],
            text=trajectory.messages[number].content or "",
            given=given,
            **dialog.prompt(number, room),
        )


def _kinds(trajectory: Trajectory) -> dict[int, str]:
    """Of each message of a tool, by its number."""
    found, call_text = {}, ""
    for number, message in enumerate(trajectory.messages):
        if message.is_assistant:
            call_text = message.content or ""
        elif message.is_tool:
            found[number] = observation_kind(call_text, message.content or "")
    return found


class _Dialog:
    """A trajectory's tokens, once for all of its observations."""

    def __init__(self, trajectory: Trajectory, tokenizer: Tokenizer) -> None:
        tokens = [tokenizer.bos_id]
        self._begins, self._bodies, self._calls = [], [], []
        for number, message in enumerate(trajectory.messages):
            self._calls.append(number if message.is_assistant else self._calls[-1] if number else 0)
            self._begins.append(len(tokens))
            tokens += encode_header(tokenizer, message)
            self._bodies.append(len(tokens))
            tokens += [*encode_body(tokenizer, message), tokenizer.special_tokens[END_OF_TURN]]
        self._begins.append(len(tokens))
        self._tokens = np.array(tokens, np.int32)

    def given(self, number: int) -> np.ndarray:
        """The body of a message and the end of its turn."""
        return self._tokens[self._bodies[number] : self._begins[number + 1]]

    def prompt(self, number: int, room: int | None) -> dict[str, Any]:
        """The fields of `Observation` about all before a message's body, in so many tokens.

        What is cut stands between the first token and the call, which has to be there whole.
        """
        end = self._bodies[number]
        if room is None or end <= room:
            return {"prompt": self._tokens[:end], "prefix": WHOLE, "num_cut_tokens": 0}
        start = end - (room - 1)  # of what is kept besides bos
        if start > self._begins[self._calls[number]]:
            return {"prompt": self._tokens[:0], "prefix": TOO_LONG, "num_cut_tokens": 0}
        prompt = np.concatenate([self._tokens[:1], self._tokens[start:end]])
        return {"prompt": prompt, "prefix": CUT, "num_cut_tokens": start - 1}
