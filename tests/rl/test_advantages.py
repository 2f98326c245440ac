"""Oracle and law: advantages by hand."""

import numpy as np
import pytest

from cwm_jax.config import PolicyLossConfig
from cwm_jax.rl.advantages import group_advantages

RETURNS, LENGTHS = [1.0, -1.0, -1.0, 1.0, 0.0], [10, 30, 5, 40, 15]


def slow(returns, lengths, loss):
    result = []
    for i, own in enumerate(returns):
        others = [r for j, r in enumerate(returns) if j != i]
        if loss.baseline == "token_mean":
            baseline = sum(r * n for r, n in zip(returns, lengths, strict=True)) / sum(lengths)
        elif loss.baseline == "mean":
            baseline = sum(returns) / len(returns)
        else:
            baseline = sum(others) / len(others)
        value = own - baseline
        if loss.divide_by_std:
            mean = sum(returns) / len(returns)
            value /= (sum((r - mean) ** 2 for r in returns) / len(returns)) ** 0.5
        result.append(value)
    return result


@pytest.mark.parametrize("divide_by_std", [False, True])
@pytest.mark.parametrize("baseline", ["token_mean", "mean", "leave_one_out"])
def test_an_advantage_is_its_formula(baseline, divide_by_std):
    loss = PolicyLossConfig(baseline=baseline, divide_by_std=divide_by_std)
    found = group_advantages(RETURNS, LENGTHS, loss)
    np.testing.assert_allclose(found, slow(RETURNS, LENGTHS, loss), rtol=1e-12)


def test_the_reports_advantages_cancel_over_the_tokens():
    """What the token-weighted mean is chosen for: the sum of A L is 0, that of A is not."""
    found = group_advantages(RETURNS, LENGTHS, PolicyLossConfig())
    assert abs(np.dot(found, LENGTHS)) < 1e-12
    assert abs(found.sum()) > 0.1


@pytest.mark.parametrize("baseline", ["token_mean", "mean", "leave_one_out"])
@pytest.mark.parametrize("returns", [[0.1] * 7, [1.0], [-1.0, -1.0]])
def test_equal_returns_teach_nothing_exactly(baseline, returns):
    loss = PolicyLossConfig(baseline=baseline, divide_by_std=True)
    found = group_advantages(returns, range(3, 3 + len(returns)), loss)
    assert found.tolist() == [0.0] * len(returns)
