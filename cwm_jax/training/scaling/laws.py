"""Laws that give a run its learning rate and its batch from its compute, and their files."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cwm_jax.config import ModelConfig, schema
from cwm_jax.storage import write_whole
from cwm_jax.training.scaling.flops import FlopsCount, law_flops_per_token

FILE_PREFIX = "law:"
_FORMAT = "cwm_jax laws 1"
_INTERVAL_PERCENT = (2.5, 97.5)
_EXPECTED = (
    "expected a file that `python -m cwm_jax sweep` or save_laws has written: give its path from "
    'where you stand, fit the laws again, or write a number or "law" in its place'
)


class LawError(ValueError):
    """A law, or the file of one, that cannot be used."""


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """value(C) = factor x C ** exponent, C in FLOP.

    Attributes:
        factor, exponent: of the law.
        factor_interval, exponent_interval: 95 % intervals of a fit; the two hang together closely,
            so that an interval of the value is ``interval``, not a combination of these.
        draws: (factor, exponent) of each bootstrap draw of a fit.
    """

    factor: float
    exponent: float
    factor_interval: tuple[float, float] | None = dataclasses.field(default=None, kw_only=True)
    exponent_interval: tuple[float, float] | None = dataclasses.field(default=None, kw_only=True)
    draws: tuple[tuple[float, float], ...] = dataclasses.field(default=(), kw_only=True, repr=False)

    def __post_init__(self) -> None:
        schema.check_types(self)
        schema.check_positive(self, "factor")

    def __call__(self, compute_flops: float) -> float:
        return self.factor * compute_flops**self.exponent

    def interval(self, compute_flops: float) -> tuple[float, float] | None:
        """95 % of the draws' values at that compute; None for a law that came without."""
        if not self.draws:
            return None
        factors, exponents = np.asarray(self.draws).T
        logs = np.log(factors) + exponents * math.log(compute_flops)  # factors may be enormous
        low, high = np.exp(np.percentile(logs, _INTERVAL_PERCENT))
        return float(low), float(high)

    def __str__(self) -> str:
        return f"{self.factor:.4g} x C^{self.exponent:.3g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Laws:
    """Learning rate and batch as functions of C = M x tokens.

    Attributes:
        learning_rate: peak of the schedule.
        batch_tokens: of an optimizer step; None where a sweep had one batch.
        flops_count: how M was counted, see ``law_flops_per_token``.
        source: where the laws are from.
        compute_range: least and most compute that they were fitted on, in FLOP; None: not known.
    """

    learning_rate: PowerLaw
    batch_tokens: PowerLaw | None
    flops_count: FlopsCount
    source: str
    compute_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        schema.check_types(self)
        low, high = self.compute_range or (1.0, 1.0)
        if not 0 < low <= high:
            raise LawError(
                f"compute_range is {self.compute_range}; expected the least and the most compute "
                "of the fit, in FLOP"
            )

    def flops_per_token(self, model: ModelConfig, context_tokens: int) -> float:
        """M in the count of these laws."""
        return law_flops_per_token(model, context_tokens, count=self.flops_count)

    def describe(self) -> str:
        """Where they are from, and on which compute they were fitted."""
        if self.compute_range is None:
            return f"{self.source}; its fitted range is not known"
        low, high = self.compute_range
        return f"{self.source}; fitted on {low:.3g} to {high:.3g} FLOP"

    def distance(self, compute_flops: float) -> str:
        """To the fitted range: ``inside``, ``2.5 times below`` or ``above``, ``unknown``."""
        if self.compute_range is None:
            return "unknown"
        low, high = self.compute_range
        if low <= compute_flops <= high:
            return "inside"
        times = max(compute_flops / high, low / compute_flops)
        number = f"{times:,.0f}" if times >= 100 else f"{times:.3g}"
        return f"{number} times {'above' if compute_flops > high else 'below'}"

    def describe_distance(self, compute_flops: float) -> str:
        """As ``distance``, in plain words."""
        distance = self.distance(compute_flops)
        if distance == "unknown":
            return "not known whether this is an extrapolation"
        if distance == "inside":
            return "inside the fitted range"
        return f"EXTRAPOLATION: {distance} the fitted range"


# report: section 4.3; secondary: the ends of its sweep
REPORT_LAWS = Laws(
    learning_rate=PowerLaw(19.29, -0.177),
    batch_tokens=PowerLaw(30.17, 0.231),
    flops_count="report",
    source="CWM's technical report, section 4.3",
    compute_range=(2e18, 2e20),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppliedLaw:
    """One law at a run's compute: what ``learning_rate="law"`` or a law of a file comes to."""

    laws: Laws
    law: PowerLaw
    flops_per_token: float
    tokens: int

    @property
    def compute_flops(self) -> float:
        return self.flops_per_token * self.tokens

    @property
    def value(self) -> float:
        return self.law(self.compute_flops)

    def describe(self, unit: str = "") -> str:
        """The law, its value and, of a fit, the interval of that."""
        interval = self.law.interval(self.compute_flops)
        spread = f", 95 % {interval[0]:,.4g} to {interval[1]:,.4g}" if interval else ""
        number = f"{self.value:,.0f}" if self.value >= 1000 else f"{self.value:.4g}"
        return f"{self.law} = {number}{unit}{spread}"


def applied_law(
    key: str, value: Any, model: ModelConfig, *, context_tokens: int, tokens: int
) -> AppliedLaw | None:
    """The law that a config's value stands for, at that compute; None where it stands for itself.

    Args:
        key: ``optimizer.learning_rate`` or ``batch.global_batch_tokens``.
        value: of that key; ``"law"`` is the report's, ``"law:FILE"`` that of a file.
        model: of the run.
        context_tokens: of a row.
        tokens: of the schedule.

    Raises:
        LawError: the file cannot be used, or has no law of this.
    """
    if not isinstance(value, str):
        return None
    laws = named_laws(value)
    law = laws.learning_rate if key == "optimizer.learning_rate" else laws.batch_tokens
    if law is None:
        raise LawError(
            f"{key}={value!r}: this file has a law of the learning rate alone, its sweep had one "
            f"batch; expected one of the batch too: set {key} to a number"
        )
    M = laws.flops_per_token(model, context_tokens)
    return AppliedLaw(laws=laws, law=law, flops_per_token=M, tokens=tokens)


def law_files(*values: Any) -> list[Path]:
    """Files that these values of a config read."""
    names = (v for v in values if isinstance(v, str) and v.startswith(FILE_PREFIX))
    return [Path(name.removeprefix(FILE_PREFIX)) for name in names]


def named_laws(name: str) -> Laws:
    """``"law"``: the report's; ``"law:FILE"``: those of a file."""
    return REPORT_LAWS if name == "law" else load_laws(name.removeprefix(FILE_PREFIX))


def load_laws(path: str | Path) -> Laws:
    """Laws that ``save_laws`` has written.

    Raises:
        LawError: there is no such file, or it is damaged, or of another format.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LawError(f"law file {path}: cannot be read ({error}); {_EXPECTED}") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != _FORMAT:
        raise LawError(f"law file {path}: its format is {found!r}, not {_FORMAT!r}; {_EXPECTED}")
    try:
        kept = {k: v for k, v in values.items() if k not in ("format", "extra")}
        return schema.from_json(Laws, kept)
    except ValueError as error:
        raise LawError(f"law file {path}: {error}; {_EXPECTED}") from error


def save_laws(path: str | Path, laws: Laws, extra: Mapping[str, Any] | None = None) -> None:
    """Writes laws beside and renames; ``load_laws`` passes over ``extra``.

    Args:
        path: of the file.
        laws: as they are.
        extra: what else is to be kept of the fit, as JSON has it.
    """
    values = {"format": _FORMAT, **schema.to_json(laws), "extra": dict(extra or {})}
    # A line a key: draws are long, and the rest is to be read.
    lines = [f" {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in values.items()]
    write_whole(Path(path), ("{\n" + ",\n".join(lines) + "\n}\n").encode())
