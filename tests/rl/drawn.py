"""Trajectories without environments: for the objective's tests to pack, and their oracles."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from tiny import VOCAB_SIZE


@dataclasses.dataclass
class Drawn:
    """One trajectory; arrays are of its tokens but the first, which nobody predicts."""

    group: int
    reward: float
    tokens: np.ndarray
    """With the first."""
    is_action: np.ndarray
    behaviour: np.ndarray
    reference: np.ndarray
    logprobs: np.ndarray
    """Of a policy that is no network."""
    advantage: float = 0.0

    @property
    def num_actions(self) -> int:
        return int(self.is_action.sum())


def draw_trajectories(seed: int = 0) -> list[Drawn]:
    """Two groups of three, of several turns and of unlike lengths; the policy has moved on."""
    rng = np.random.default_rng(seed)
    found = []
    for number, reward in enumerate((1.0, -1.0, 0.25, -1.0, 1.0, 1.0)):
        n = int(rng.integers(6, 15))
        is_action = rng.random(n) > 0.35
        is_action[-1] = True
        behaviour = -rng.uniform(0.1, 4.0, n)
        found.append(
            Drawn(
                group=number // 3,
                reward=reward,
                tokens=rng.integers(0, VOCAB_SIZE, n + 1).astype(np.int32),
                is_action=is_action,
                behaviour=behaviour,
                reference=behaviour + rng.normal(0, 0.4, n),
                logprobs=behaviour + rng.normal(0, 0.4, n),
            )
        )
    return found


def pack(trajectories: list[Drawn], rows: list[list[int]], T: int) -> dict[str, jax.Array]:
    """A batch ``[B, T]`` with the trajectories of these numbers in each row."""
    B = len(rows)
    integers = ("tokens", "targets", "positions", "segment_ids")
    floats = (
        "action_mask",
        "behaviour_logprobs",
        "reference_logprobs",
        "advantages",
        "token_weights",
        "is_current",
    )
    batch = {name: np.zeros((B, T), np.int32) for name in integers}
    batch |= {name: np.zeros((B, T), np.float32) for name in floats}
    for one, row, segment, span in placed(trajectories, rows):
        mask = one.is_action.astype(np.float32)
        values = {
            "tokens": one.tokens[:-1],
            "targets": one.tokens[1:],
            "positions": np.arange(len(mask)),
            "segment_ids": segment,
            "action_mask": mask,
            # what is no action has values too, which must not count
            "behaviour_logprobs": one.behaviour,
            "reference_logprobs": one.reference,
            "advantages": one.advantage,
            "token_weights": mask / one.num_actions,
            "is_current": one.group == 0,
        }
        for name, value in values.items():
            batch[name][row, span] = value
    return jax.tree.map(jnp.asarray, batch)


def spread(trajectories: list[Drawn], rows: list[list[int]], T: int, values) -> jax.Array:
    """``[B, T]`` float32 of an array for each trajectory; -7 where there is none."""
    array = np.full((len(rows), T), -7.0, np.float32)
    number = {id(one): at for at, one in enumerate(trajectories)}
    for one, row, _, span in placed(trajectories, rows):
        array[row, span] = values[number[id(one)]]
    return jnp.asarray(array)


def placed(trajectories: list[Drawn], rows: list[list[int]]):
    """(trajectory, row, segment, slice of the row)."""
    for row, numbers in enumerate(rows):
        start = 0
        for segment, number in enumerate(numbers, 1):
            one = trajectories[number]
            end = start + len(one.is_action)
            yield one, row, segment, slice(start, end)
            start = end
