"""What an episode is to the rest of the system: tokens in, tokens and rewards out; without JAX.

An environment holds one episode of one task. It writes the prompt, is given each answer of the
policy as tokens, and gives what the policy reads next. It knows neither models nor engines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class EnvironmentFailure(RuntimeError):  # noqa: N818
    """The environment itself failed: a sandbox, a container, a host. Never the policy's fault.

    Its episode is dropped and counted; no reward comes of it.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One problem, as JSON can hold it.

    Attributes:
        name: unique among the tasks of an environment, and stable: splits are functions of it.
        data: what its environment needs, gold answers included; none of it is shown as it is.
        group: what held-out splits are a function of; empty for the name.
    """

    name: str
    data: Mapping[str, Any]
    group: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What the policy reads before its next action.

    Attributes:
        tokens: to be appended to the episode's. Where the policy is to go on, they end with the
            header of its turn, and with the opening of its reasoning where it is to reason.
        max_action_tokens: that the next action may have, the end of its turn included.
    """

    tokens: Sequence[int]
    max_action_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """What an action led to.

    Attributes:
        observation: before the next action; None: the episode is over.
        reward: of this action; it counts for its last token.
        info: outcomes by name, as JSON can hold them: ``pass`` where there is a verdict, ``answer``
            that was read, ``reason`` of a failure in words. For people, logs and filters.
    """

    observation: Observation | None
    reward: float
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.observation is None


class Environment(Protocol):
    """One episode; for one thread at a time."""

    def start(self) -> Observation:
        """The prompt, ``bos`` included; called once, before any step.

        Raises:
            EnvironmentFailure: there is no sandbox, no container, no such file.
        """
        ...

    def step(self, action: Sequence[int]) -> Step:
        """Takes the policy's tokens, its end of turn included if it wrote one.

        An action that does not end its turn was cut at ``max_action_tokens``; where the episode
        goes on, the observation begins with the end of turn that it lacks.

        Raises:
            EnvironmentFailure: as ``start``.
        """
        ...

    def close(self) -> None:
        """Ends what the episode holds; again, it does nothing. Called in any case."""
        ...
