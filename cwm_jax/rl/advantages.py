"""How much better each trajectory of a group did than the group; NumPy, on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cwm_jax.config import PolicyLossConfig

_LEAST_STD = 1e-6  # assumed: below it all returns are equal


def group_advantages(
    returns: Sequence[float], num_action_tokens: Sequence[int], loss: PolicyLossConfig
) -> np.ndarray:
    """``[n]`` float64: return minus baseline, the same for all action tokens of a trajectory.

    Args:
        returns: of the trajectories of one task.
        num_action_tokens: of each; only ``token_mean`` weighs by them.
        loss: ``baseline`` and ``divide_by_std``.

    They are exactly 0 where all returns are equal: nothing is learnt from such a group, nor from a
    group of one, which has nothing to be compared with.
    """
    R, L = np.asarray(returns, np.float64), np.asarray(num_action_tokens, np.float64)
    n = len(R)
    if n < 2 or R.max() == R.min():  # exactly, whatever the baseline's rounding
        return np.zeros(n)
    if loss.baseline == "token_mean":
        baseline = (R * L).sum() / max(L.sum(), 1.0)
    elif loss.baseline == "mean":
        baseline = R.mean()
    else:
        baseline = (R.sum() - R) / (n - 1)
    advantages = R - baseline
    if loss.divide_by_std:
        advantages = advantages / max(R.std(), _LEAST_STD)
    return advantages
