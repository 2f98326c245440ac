"""The loss of many runs around its optimum: a floor for each scale of compute, one quadratic.

A scale is a compute and the size of model that it was spent on. Near its optimum the logarithm of
the loss is a floor of its scale plus a quadratic of one shape for all scales::

    log loss = floor(scale) + u P u',  u = (log rate - log LR(C), log batch - log BS(C))

With LR and BS power laws of C and a floor for each scale, the products out are linear in what is
unknown, so that a robust regression finds it without starting values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from cwm_jax.training.scaling.regression import huber_regression

SAME_SCALE = 0.05  # assumed: runs are cut to whole steps, so that their compute differs a little


def group_by_scale(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The group of each of many computes or lengths, 0 for the least, of those close together."""
    logs = np.log(np.asarray(values, float))
    if not len(logs):
        return np.empty(0, int)
    order = np.argsort(logs)
    steps = np.diff(logs[order]) > SAME_SCALE
    groups = np.empty(len(logs), int)
    groups[order] = np.concatenate([[0], np.cumsum(steps)])
    return groups


@dataclasses.dataclass(frozen=True)
class PowerLawOptimum:
    """The minimum at log C - mean is ``offset + slope * that``, on each axis."""

    offset: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray


@dataclasses.dataclass(frozen=True)
class Valley:
    """Finite runs as arrays; axis 0 is the rate, axis 1 the batch."""

    scale: np.ndarray
    compute: np.ndarray
    """Of each scale."""
    axes: np.ndarray
    """Logarithms, less their mean; a column for each axis that varies within scales."""
    means: np.ndarray
    log_loss: np.ndarray
    near_optimum: float

    @classmethod
    def of(
        cls,
        compute: Sequence[float],
        params: Sequence[float],
        axes: np.ndarray,
        log_loss: np.ndarray,
        near_optimum: float,
    ) -> Valley:
        """From runs' compute and size, [rate, batch] and loss, the last two as logarithms."""
        pairs = np.stack([group_by_scale(compute), np.asarray(params)], axis=1)
        scale = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
        logs = np.log(np.asarray(compute, float))
        centers = np.array([np.exp(logs[scale == s].mean()) for s in range(scale.max() + 1)])
        batches = {(s, b) for s, b in zip(scale.tolist(), axes[:, 1].tolist(), strict=True)}
        axes = axes if len(batches) > len(centers) else axes[:, :1]
        means = axes.mean(axis=0)
        return cls(scale, centers, axes - means, means, log_loss, near_optimum)

    @property
    def num_axes(self) -> int:
        return self.axes.shape[1]

    @property
    def num_scales(self) -> int:
        return len(self.compute)

    @property
    def mean_log_compute(self) -> float:
        return float(np.log(self.compute).mean())

    def near(self, counts: np.ndarray) -> np.ndarray:
        """The counts of the runs near their scale's best, 0 for the others."""
        limit = np.full(self.num_scales, np.inf)
        np.minimum.at(limit, self.scale[counts > 0], self.log_loss[counts > 0])
        limit += math.log1p(self.near_optimum)
        return np.where(self.log_loss <= limit[self.scale], counts, 0)

    def law(self, counts: np.ndarray) -> PowerLawOptimum | None:
        """Optima on power laws; None where there is no minimum, or too little to tell."""
        logs = np.log(self.compute)[self.scale] - self.mean_log_compute
        linear = [self.axes, self.axes * logs[:, None]]
        found = self._solve(counts, np.hstack(linear))
        if found is None:
            return None
        curvature, rest = found
        offset, slope = (_minimum(curvature, part) for part in rest.reshape(2, -1))
        return PowerLawOptimum(offset, slope, curvature)

    def free(self, counts: np.ndarray) -> np.ndarray | None:
        """Optima of each scale, [scales, axes], as logarithms; the curvature is shared."""
        own = np.eye(self.num_scales)[self.scale]
        linear = [own * self.axes[:, a : a + 1] for a in range(self.num_axes)]
        found = self._solve(counts, np.hstack(linear))
        if found is None:
            return None
        curvature, rest = found
        gradients = rest.reshape(self.num_axes, -1).T
        return np.array([_minimum(curvature, g) for g in gradients]) + self.means

    def _solve(
        self, counts: np.ndarray, linear: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Curvature, positive definite, and the coefficients of the linear terms."""
        floors = np.eye(self.num_scales)[self.scale]
        squares = [self.axes**2]
        if self.num_axes == 2:
            squares.append(2 * self.axes[:, :1] * self.axes[:, 1:])
        found = huber_regression(np.hstack([floors, *squares, linear]), self.log_loss, counts)
        if found is None:
            return None
        found = found[self.num_scales :]
        curvature = np.diag(found[: self.num_axes])
        if self.num_axes == 2:
            curvature[0, 1] = curvature[1, 0] = found[2]
        if np.linalg.eigvalsh(curvature)[0] <= 0:
            return None
        return curvature, found[2 * self.num_axes - 1 :]

    def describe_search(self) -> str:
        """The values that were tried."""
        low, high = np.exp([f(self.axes, axis=0) + self.means for f in (np.min, np.max)])
        names = ("rates", "batches")[: self.num_axes]
        ranges = zip(names, low, high, strict=True)
        return ", ".join(f"{name} {a:.3g} to {b:.3g}" for name, a, b in ranges)


def _minimum(curvature: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    return -0.5 * np.linalg.solve(curvature, gradient)
