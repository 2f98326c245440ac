"""What an episode left: turns of tokens with the sampler's log-probabilities, and rewards.

Trajectories are kept as JSON lines, one each, from which ``python -m cwm_jax rl show`` reads.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from cwm_jax.rl.environment import Task

SCHEMA_VERSION = 1
# done: the environment ended it. length: there was no room for another action. failed: the
# environment failed. crashed: it raised what it does not declare, which is a bug in it. The last
# two are nobody's answer: such a trajectory is counted and never learnt from.
Ending = Literal["done", "length", "failed", "crashed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """What the policy read, and what it answered.

    Attributes:
        observation: tokens before the action.
        action: the policy's tokens.
        logprobs: of each of them, under the weights that drew it, in nats.
        first_version, last_version: of the weights: optimizer steps done when the first and the
            last token were drawn.
        reward: of the action.
        info: the environment's.
    """

    observation: tuple[int, ...]
    action: tuple[int, ...]
    logprobs: tuple[float, ...]
    first_version: int
    last_version: int
    reward: float = 0.0
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One episode.

    Attributes:
        environment: its name in the run's config.
        task: what was asked.
        group: number of the group of episodes of one task that are compared, unique in the run.
        seed: of its draws.
        turns: in their order; none where the environment did not start.
        ending: see ``Ending``.
        failure: what made the environment fail or crash, in words.
    """

    environment: str
    task: Task
    group: int
    seed: int
    turns: tuple[Turn, ...]
    ending: Ending
    failure: str = ""

    @property
    def total_reward(self) -> float:
        """The return R: the sum of the rewards."""
        return sum(turn.reward for turn in self.turns)

    @property
    def is_void(self) -> bool:
        """Whether its environment failed or crashed: it says nothing about the policy."""
        return self.ending in ("failed", "crashed")

    @property
    def num_action_tokens(self) -> int:
        return sum(len(turn.action) for turn in self.turns)

    @property
    def num_tokens(self) -> int:
        return sum(len(turn.observation) + len(turn.action) for turn in self.turns)

    @property
    def passed(self) -> bool:
        """Whether the last verdict is that it solved the task."""
        return bool(self.turns) and self.turns[-1].info.get("pass") is True

    @property
    def last_version(self) -> int:
        """Of the weights that drew its most recent token; staleness is counted from it."""
        return self.turns[-1].last_version if self.turns else 0

    def drawn_with(self, version: int) -> bool:
        """Whether all of it was drawn with these weights."""
        return all(turn.first_version == turn.last_version == version for turn in self.turns)


def write_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Appends to a file; a kill leaves whole lines and at most one that is cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for trajectory in trajectories:
            file.write(json.dumps(to_json(trajectory)) + "\n")  # ASCII: what an environment quotes
            # may be no text, as half of a surrogate pair is none
        file.flush()
        os.fsync(file.fileno())


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """Those of a file, in order; a last line that is cut is left out.

    Raises:
        ValueError: a line that is no trajectory, or of another version; with its number.
    """
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number} is no trajectory ({error}); expected a line that a run of "
                    "this version has written: name its trajectories.jsonl"
                ) from error


def to_json(trajectory: Trajectory) -> dict[str, Any]:
    return {"version": SCHEMA_VERSION, **dataclasses.asdict(trajectory)}


def from_json(record: Mapping[str, Any]) -> Trajectory:
    """Inverse of ``to_json``; raises ValueError, KeyError or TypeError."""
    fields = dict(record)
    version = fields.pop("version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"version is {version}; expected {SCHEMA_VERSION}")
    turns = tuple(_turn(turn) for turn in fields.pop("turns"))
    return Trajectory(**{**fields, "task": Task(**fields["task"]), "turns": turns})


def _turn(record: Mapping[str, Any]) -> Turn:
    lists = {key: tuple(record[key]) for key in ("observation", "action", "logprobs")}
    return Turn(**{**record, **lists})
