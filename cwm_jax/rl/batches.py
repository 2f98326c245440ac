"""Trajectories as rows of tokens: whole, side by side, until a batch's rows are full."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cwm_jax.rl.trajectory import Trajectory

# int32: as of any batch. float32, of each target: whether it is an action's; the sampler's
# log-probability; the advantage of its trajectory; one over the trajectory's action tokens; whether
# the weights that learn from it are those that drew it.
INT_KEYS = ("tokens", "targets", "positions", "segment_ids")
FLOAT_KEYS = ("action_mask", "behaviour_logprobs", "advantages", "token_weights", "is_current")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learnable:
    """A trajectory with its advantage."""

    trajectory: Trajectory
    advantage: float


class RowPacker:
    """Puts trajectories where they leave the least room, a group whole or not at all."""

    def __init__(self, num_rows: int, max_target_length: int):
        self._T = max_target_length
        self._rows: list[list[Learnable]] = [[] for _ in range(num_rows)]
        self._free = np.full(num_rows, max_target_length)

    @property
    def num_trajectories(self) -> int:
        return sum(map(len, self._rows))

    def add(self, group: Sequence[Learnable]) -> bool:
        """Whether there was room; if not, nothing was added."""
        free, places = self._free.copy(), []
        for learnable in group:
            need = learnable.trajectory.num_tokens - 1  # pairs of a token and its target
            room = np.where(free >= need, free, self._T + 1)
            place = int(room.argmin())
            if room[place] > self._T:
                return False
            free[place] -= need
            places.append(place)
        self._free = free
        for place, learnable in zip(places, group, strict=True):
            self._rows[place].append(learnable)
        return True

    def batch(self, version: int) -> dict[str, np.ndarray]:
        """``[rows, T]`` of each key; what is free is padding. ``version``: of the weights."""
        rows = [_row(row, self._T, version) for row in self._rows]
        return {key: np.stack([row[key] for row in rows]) for key in (*INT_KEYS, *FLOAT_KEYS)}


def _row(learnables: Sequence[Learnable], T: int, version: int) -> dict[str, np.ndarray]:
    row = {key: np.zeros(T, np.int32) for key in INT_KEYS}
    row |= {key: np.zeros(T, np.float32) for key in FLOAT_KEYS}
    start = 0
    for segment, learnable in enumerate(learnables, 1):
        tokens, is_action, logprobs = flatten(learnable.trajectory)
        end = start + len(tokens) - 1
        row["tokens"][start:end], row["targets"][start:end] = tokens[:-1], tokens[1:]
        row["positions"][start:end] = np.arange(end - start)
        row["segment_ids"][start:end] = segment
        row["action_mask"][start:end] = is_action[1:]
        row["behaviour_logprobs"][start:end] = logprobs[1:]
        row["advantages"][start:end] = learnable.advantage * is_action[1:]
        row["token_weights"][start:end] = is_action[1:] / max(1, is_action.sum())
        is_current = learnable.trajectory.drawn_with(version)
        row["is_current"][start:end] = is_action[1:] * is_current
        start = end
    return row


def flatten(trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens int32, whether each is an action's, its log-probability or 0), each ``[n]``."""
    tokens: list[int] = []
    is_action: list[float] = []
    logprobs: list[float] = []
    for turn in trajectory.turns:
        tokens += [*turn.observation, *turn.action]
        is_action += [0.0] * len(turn.observation) + [1.0] * len(turn.action)
        logprobs += [0.0] * len(turn.observation) + [*turn.logprobs]
    return (
        np.array(tokens, np.int32),
        np.array(is_action, np.float32),
        np.array(logprobs, np.float32),
    )
