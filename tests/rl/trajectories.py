"""Trajectories for tests: random ones, and those of a task."""

import dataclasses

from cwm_jax.rl.environment import Task
from cwm_jax.rl.trajectory import Trajectory, Turn


def random_trajectory(rng, vocab_size, *, turns=2, longest=6, version=0, group=0):
    """A few turns of a few tokens."""

    def ids():
        return tuple(int(i) for i in rng.integers(0, vocab_size, rng.integers(1, longest + 1)))

    made = [
        turn(ids(), observation=ids(), logprob=-1.0 - float(rng.random()), version=version)
        for _ in range(turns)
    ]
    return trajectory(made, group=group, seed=int(rng.integers(1 << 30)))


def trajectory(turns, *, reward=0.0, group=0, seed=0, ending="done", passed=None, task="t"):
    """Its last turn has the reward, and the verdict if there is one."""
    turns = list(turns)
    if turns:
        info = {} if passed is None else {"pass": passed}
        turns[-1] = dataclasses.replace(turns[-1], reward=reward, info=info)
    return Trajectory(
        environment="e",
        task=Task(name=task, data={}),
        group=group,
        seed=seed,
        turns=tuple(turns),
        ending=ending,
    )


def turn(action, *, observation=(1, 2), logprob=-1.0, version=0):
    action = tuple(action)
    return Turn(
        observation=tuple(observation),
        action=action,
        logprobs=(logprob,) * len(action),
        first_version=version,
        last_version=version,
    )


def with_logprobs(given: Trajectory, logprobs) -> Trajectory:
    """The trajectory as if these were the sampler's, of all action tokens in their order."""
    left, turns = [float(x) for x in logprobs], []
    for old in given.turns:
        own, left = left[: len(old.action)], left[len(old.action) :]
        turns.append(dataclasses.replace(old, logprobs=tuple(own)))
    assert not left
    return dataclasses.replace(given, turns=tuple(turns))
