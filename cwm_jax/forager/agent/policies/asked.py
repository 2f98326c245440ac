"""Policies that are models: an engine in this process, or any OpenAI-compatible server."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from cwm_jax.data.chat import Message
from cwm_jax.evals.models import Model, ModelFailure, PromptTooLongError
from cwm_jax.evals.problem import Prompt
from cwm_jax.forager.agent.loop import NoRoomError, Turn


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """What a model's turns are a function of, besides the dialog and the seed; all assumed.

    Attributes:
        temperature, top_p: of the tokens.
        max_tokens: of a turn; one that is longer is cut, and the model told.
        think: it reasons before each turn, and its reasoning stays in the dialog.
    """

    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 8_192
    think: bool = False

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature is {self.temperature} and top_p {self.top_p}; expected 0 or more, "
                "and above 0 up to 1"
            )
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; expected 1 or more")


class ModelPolicies:
    """Makes the policies of episodes that share a model; for many threads.

    Args:
        model: closed by `close`.
        settings: of its turns.
    """

    def __init__(self, model: Model, settings: AnswerSettings) -> None:
        self.model, self.settings = model, settings
        self._closed = threading.Event()

    def identity(self) -> Mapping[str, Any]:
        """What a run that goes on must find again, as JSON can hold it."""
        return {"name": self.model.name, **self.model.identity()}

    def policy(self, seed: str) -> _ModelPolicy:
        """Of one episode; its turns are a function of the dialog and the seed."""
        return _ModelPolicy(self, seed)

    def close(self) -> None:
        """Ends the model; episodes that still ask it get a ModelFailure."""
        self._closed.set()
        self.model.close()

    def turn(self, messages: Sequence[Message], seed: int) -> Turn:
        """The model's next turn.

        Raises:
            NoRoomError: the dialog is too long for it.
            ModelFailure: it answers nothing more, or is closed.
        """
        if self._closed.is_set():
            raise ModelFailure("the run is being stopped")
        own = self.settings
        prompt = Prompt(messages=tuple(messages), max_tokens=own.max_tokens, think=own.think)
        try:
            answer = self.model.answer(
                prompt, temperature=own.temperature, top_p=own.top_p, seed=seed
            )
        except PromptTooLongError as error:
            raise NoRoomError(str(error)) from error
        message = Message("assistant", answer.text, answer.reasoning or None)
        return Turn(message=message, is_whole=answer.finish_reason == "stop")


class _ModelPolicy:
    def __init__(self, policies: ModelPolicies, seed: str) -> None:
        self._policies, self._seed = policies, seed

    def turn(self, messages: Sequence[Message]) -> Turn:
        """Servers want a number below 2 ** 31 for a seed; each turn has its own."""
        digest = hashlib.sha256(f"{self._seed}/{len(messages)}".encode()).digest()
        return self._policies.turn(messages, int.from_bytes(digest[:4], "big") >> 1)
