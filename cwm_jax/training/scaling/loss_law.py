"""The loss law L(N, D) = E + A / N^alpha + B / D^beta, and the sizes that are best by it.

Source: Hoffmann et al., "Training Compute-Optimal Large Language Models", approach 3: Huber's loss
    on the logarithm of the loss, from several starting values.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize

from cwm_jax.config import schema
from cwm_jax.training.scaling.regression import Interval, interval

NAMES = ("irreducible", "params_factor", "params_exponent", "tokens_factor", "tokens_exponent")
_HUBER = 1e-3  # of log loss, as Hoffmann et al.
_NUM_STARTS = 5
_EXPONENTS = np.linspace(0.1, 1.2, 12)  # of the starting values
_EXPONENT_BOUNDS = (0.01, 3.0)
_LOG_BOUNDS = (-25.0, 25.0)  # of E, and of the two terms at the mean size and the mean tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossLaw:
    """L(N, D) in nats per token, N without embeddings.

    Attributes:
        irreducible: E.
        params_factor, params_exponent: A and alpha.
        tokens_factor, tokens_exponent: B and beta.
        num_points: pairs of N and D that it was fitted on.
        at_bound: what of the five the runs leave open: the fit has run into a bound.
        draws: the five, as above, of each bootstrap draw.
    """

    irreducible: float
    params_factor: float
    params_exponent: float
    tokens_factor: float
    tokens_exponent: float
    num_points: int
    at_bound: tuple[str, ...] = ()
    draws: tuple[tuple[float, ...], ...] = dataclasses.field(default=(), repr=False)

    def __call__(self, params: float, tokens: float) -> float:
        of_params = self.params_factor * params**-self.params_exponent
        return self.irreducible + of_params + self.tokens_factor * tokens**-self.tokens_exponent

    @property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals of the five, by name."""
        columns = zip(*self.draws, strict=True)
        return {name: interval(drawn) for name, drawn in zip(NAMES, columns, strict=False)}

    def optimum(self, compute_flops: float) -> tuple[float, float]:
        """N and D of the least loss at C = 6 N D; attention is not counted in this."""
        N, D = _optimum([[getattr(self, name) for name in NAMES]], compute_flops)
        return float(N[0]), float(D[0])

    def optimum_intervals(self, compute_flops: float) -> tuple[Interval, Interval]:
        """95 % intervals of ``optimum``'s N and D.

        Raises:
            ValueError: the law came without draws.
        """
        if not self.draws:
            raise ValueError("this law has no draws; expected one that was fitted with a bootstrap")
        N, D = _optimum(self.draws, compute_flops)
        return interval(N), interval(D)

    def to_json(self) -> dict[str, Any]:
        """Everything but the draws, whose intervals stand for them."""
        kept = {k: v for k, v in schema.to_json(self).items() if k != "draws"}
        return kept | {"intervals": {name: list(pair) for name, pair in self.intervals.items()}}


def law_from_points(
    params: Sequence[float] | np.ndarray,
    tokens: Sequence[float] | np.ndarray,
    losses: Sequence[float],
    *,
    num_bootstrap: int,
    seed: int,
) -> LossLaw:
    """Fits the law on one loss for each pair of N and D.

    The bootstrap draws residuals, not points: without one of few points the rest often leave an
    exponent open. They are widened by what five coefficients take from their spread.
    """
    problem = _Problem.of(params, tokens, losses)
    found = min((problem.solve(start) for start in problem.starts()), key=lambda f: f[0])[1]
    fitted = problem.log_loss_at(found)
    residuals = problem.log_losses - fitted
    n = len(residuals)
    residuals = (residuals - residuals.mean()) * np.sqrt(n / (n - len(NAMES)))
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(num_bootstrap):
        drawn = dataclasses.replace(problem, log_losses=fitted + rng.choice(residuals, n))
        draws.append(tuple(float(x) for x in problem.coefficients(drawn.solve(found)[1])))
    values = dict(zip(NAMES, (float(x) for x in problem.coefficients(found)), strict=True))
    return LossLaw(**values, num_points=n, at_bound=_at_bound(found), draws=tuple(draws))


def _optimum(laws: Any, compute_flops: float) -> tuple[np.ndarray, np.ndarray]:
    _, A, alpha, B, beta = np.asarray(laws, float).T
    ratio = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    N = ratio * (compute_flops / 6) ** (beta / (alpha + beta))
    return N, compute_flops / 6 / N


@dataclasses.dataclass(frozen=True)
class _Problem:
    """In x = (log E, log A', alpha, log B', beta), A' and B' the terms at the mean N and D."""

    log_params: np.ndarray
    """Less their mean, as the tokens."""
    log_tokens: np.ndarray
    means: tuple[float, float]
    log_losses: np.ndarray

    @classmethod
    def of(cls, params: Any, tokens: Any, losses: Any) -> _Problem:
        N, D = np.log(np.asarray(params, float)), np.log(np.asarray(tokens, float))
        means = float(N.mean()), float(D.mean())
        return cls(N - means[0], D - means[1], means, np.log(np.asarray(losses, float)))

    def _terms(self, x: np.ndarray) -> np.ndarray:
        constant = np.full(len(self.log_params), x[0])
        of_params, of_tokens = x[1] - x[2] * self.log_params, x[3] - x[4] * self.log_tokens
        return np.exp([constant, of_params, of_tokens])

    def log_loss_at(self, x: np.ndarray) -> np.ndarray:
        return np.log(self._terms(x).sum(axis=0))

    def _jacobian(self, x: np.ndarray) -> np.ndarray:
        terms = self._terms(x)
        E, of_params, of_tokens = terms / terms.sum(axis=0)
        rest = of_params, -of_params * self.log_params, of_tokens, -of_tokens * self.log_tokens
        return np.stack([E, *rest], axis=1)

    def solve(self, start: np.ndarray) -> tuple[float, np.ndarray]:
        """(cost, x) from a starting value."""
        low, high = np.array([_bounds(number) for number in range(5)]).T
        found = scipy.optimize.least_squares(
            lambda x: self.log_loss_at(x) - self.log_losses,
            np.clip(start, low + 1e-6, high - 1e-6),
            jac=self._jacobian,  # pyright: ignore[reportArgumentType]
            bounds=(low, high),
            loss="huber",
            f_scale=_HUBER,
            x_scale="jac",
        )
        return float(found.cost), found.x

    def starts(self) -> list[np.ndarray]:
        """Given both exponents the rest is linear, and not negative: the best of a grid of them."""
        found = []
        losses = np.exp(self.log_losses)
        for alpha, beta in itertools.product(_EXPONENTS, _EXPONENTS):
            of_params, of_tokens = np.exp([-alpha * self.log_params, -beta * self.log_tokens])
            columns = np.stack([np.ones_like(losses), of_params, of_tokens], axis=1)
            linear, error = scipy.optimize.nnls(columns / losses[:, None], np.ones_like(losses))
            E, A, B = np.log(np.maximum(linear, 1e-6))
            found.append((error, np.array([E, A, alpha, B, beta])))
        return [x for _, x in sorted(found, key=lambda pair: pair[0])[:_NUM_STARTS]]

    def coefficients(self, x: np.ndarray) -> np.ndarray:
        """E, A, alpha, B, beta."""
        E, A, alpha, B, beta = x
        N, D = self.means
        return np.array([np.exp(E), np.exp(A + alpha * N), alpha, np.exp(B + beta * D), beta])


def _bounds(number: int) -> tuple[float, float]:
    return _EXPONENT_BOUNDS if number in (2, 4) else _LOG_BOUNDS


def _at_bound(x: np.ndarray) -> tuple[str, ...]:
    near = []
    for number, (name, value) in enumerate(zip(NAMES, x, strict=True)):
        low, high = _bounds(number)
        margin = 0.02 * (high - low) if number not in (2, 4) else 0.02
        if not low + margin < value < high - margin:
            near.append(name)
    return tuple(near)
