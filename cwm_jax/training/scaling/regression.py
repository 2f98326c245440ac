"""Robust linear regression, and draws of a bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
INTERVAL_PERCENT = (2.5, 97.5)
_HUBER_SIGMAS = 1.345  # 95 % of least squares' efficiency where the noise is normal
_SIGMA_OF_MEDIAN = 1.4826  # of a normal distribution, from the median of |residuals|
_MAX_STEPS = 50
_CONVERGED = 1e-7  # of the largest coefficient
_SINGULAR = 1e-12  # least eigenvalue of the products of columns of length one


def huber_regression(
    design: np.ndarray, target: np.ndarray, counts: np.ndarray | None = None
) -> np.ndarray | None:
    """Coefficients by Huber's loss, whose scale is the median of the residuals.

    Args:
        design: a row an observation.
        target: of each.
        counts: how often each observation counts, whole numbers; None: once.

    Returns:
        None where the observations leave a coefficient open.
    """
    counts = np.ones(len(target)) if counts is None else np.asarray(counts, float)
    seen = counts > 0
    design, target, counts = design[seen], target[seen], counts[seen]
    lengths = np.sqrt((design**2).sum(axis=0))
    if len(target) < design.shape[1] or not lengths.all():
        return None
    columns = design / lengths
    if np.linalg.eigvalsh(columns.T @ columns)[0] < _SINGULAR:
        return None
    repeated = np.repeat(np.arange(len(target)), counts.astype(int))
    weights, found = counts, np.zeros(design.shape[1])
    for _ in range(_MAX_STEPS):
        before, weighted = found, columns.T * weights
        found = np.linalg.solve(weighted @ columns, weighted @ target)
        if (np.abs(found - before) <= _CONVERGED * np.abs(found).max()).all():
            break
        distance = np.abs(target - columns @ found)
        sigma = _SIGMA_OF_MEDIAN * np.median(distance[repeated])
        limit = max(_HUBER_SIGMAS * sigma, 1e-12)
        weights = counts * np.minimum(1, limit / np.maximum(distance, 1e-300))
    return found / lengths


def resampled_counts(groups: Sequence[int] | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each observation is in a draw with replacement within its group."""
    labels = np.asarray(groups)
    counts = np.zeros(len(labels), int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        np.add.at(counts, rng.choice(members, size=len(members)), 1)
    return counts


def interval(draws: Sequence[float] | np.ndarray) -> Interval:
    """The middle 95 % of draws."""
    low, high = np.percentile(np.asarray(draws, float), INTERVAL_PERCENT)
    return float(low), float(high)
