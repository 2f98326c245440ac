"""How a run learns, and where it saves itself."""

from __future__ import annotations

import dataclasses
from typing import Literal

from cwm_jax.config.schema import check_positive, check_types


def check_law(name: str, value: str) -> None:
    """Raises ValueError where a text stands for no law; its file is read by the plan."""
    if value != "law" and not (value.startswith("law:") and value != "law:"):
        raise ValueError(
            f"{name} is {value!r}; expected a number, 'law' (the report's scaling law) or "
            "'law:FILE' (one of a file that a sweep has written)"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchPhase:
    """From ``from_tokens`` of the schedule on, a step consumes ``batch_tokens``."""

    from_tokens: int
    batch_tokens: int

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "batch_tokens")
        if self.from_tokens < 0:
            raise ValueError(f"from_tokens is {self.from_tokens}; expected 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Rows and tokens of a step.

    Attributes:
        max_target_length: tokens T in a row.
        per_device_batch_size: rows per device in one micro-batch; a fraction where several devices
            share a row (0.125 is one row for 8 devices with ``mesh.tensor=8``).
        global_batch_tokens: tokens of one optimizer step; ``"law"`` takes the report's scaling law
            for this run's compute, ``"law:FILE"`` one that a sweep has fitted, rounded to whole
            micro-batches; phases let it change while training; None takes one micro-batch times
            gradient_accumulation_steps.
        gradient_accumulation_steps: micro-batches of a step; None derives it from
            global_batch_tokens.
    """

    max_target_length: int
    per_device_batch_size: float
    global_batch_tokens: int | str | tuple[BatchPhase, ...] | None = None
    gradient_accumulation_steps: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if isinstance(self.global_batch_tokens, str):
            check_law("batch.global_batch_tokens", self.global_batch_tokens)
        check_positive(
            self,
            "max_target_length",
            "per_device_batch_size",
            "gradient_accumulation_steps",
            *(["global_batch_tokens"] if isinstance(self.global_batch_tokens, int) else []),
        )
        if self.global_batch_tokens is not None and self.gradient_accumulation_steps is not None:
            raise ValueError(
                "batch: global_batch_tokens and gradient_accumulation_steps are both set; either "
                "follows from the other: drop one"
            )
        if isinstance(self.global_batch_tokens, tuple):
            starts = [phase.from_tokens for phase in self.global_batch_tokens]
            if not starts or starts[0] != 0 or sorted(set(starts)) != starts:
                raise ValueError(
                    f"batch.global_batch_tokens phases start at {starts}; expected 0 first and "
                    "rising"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule, which counts tokens.

    Attributes:
        learning_rate: peak; ``"law"`` takes the report's scaling law for this run's compute,
            ``"law:FILE"`` one that a sweep has fitted. A run whose law file has changed is not
            resumed.
        warmup_tokens: linear rise from 0 to the peak.
        schedule: ``cosine`` over ``horizon_tokens`` or ``constant`` after the warm-up.
        horizon_tokens: where the cosine ends; None ends it with this run. Phases that share one
            schedule (pre- and mid-training) share a horizon.
        start_tokens: tokens of that schedule that earlier phases have consumed.
        train_tokens: tokens that this run consumes.
        final_learning_rate_fraction: of the peak, at the horizon.
        adam_b1, adam_b2, adam_eps, weight_decay: AdamW; norms are not decayed.
        gradient_clipping_threshold: of the global norm; None does not clip.
        z_loss: weight of the squared log-partition term of the loss.
        max_nonfinite_steps: steps in a row whose loss or gradient is not finite (each is skipped
            and counted) after which the run stops.
    """

    learning_rate: float | str
    train_tokens: int
    warmup_tokens: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    horizon_tokens: int | None = None
    start_tokens: int = 0
    final_learning_rate_fraction: float = 0.01  # report: 8e-4 -> 8e-6
    adam_b1: float = 0.9  # report
    adam_b2: float = 0.95  # report
    adam_eps: float = 1e-8  # assumed: not published
    weight_decay: float = 0.1  # report
    gradient_clipping_threshold: float | None = 1.0  # report
    z_loss: float = 0.0  # assumed: not published
    max_nonfinite_steps: int = 10

    def __post_init__(self) -> None:
        check_types(self)
        if isinstance(self.learning_rate, str):
            check_law("optimizer.learning_rate", self.learning_rate)
        check_positive(
            self,
            "train_tokens",
            "horizon_tokens",
            "gradient_clipping_threshold",
            "adam_eps",
            "max_nonfinite_steps",
            *([] if isinstance(self.learning_rate, str) else ["learning_rate"]),
        )
        for name in ("warmup_tokens", "start_tokens", "weight_decay", "z_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("adam_b1", "adam_b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"optimizer.{name} is {getattr(self, name)}; expected 0 or more, below 1"
                )
        if not 0 <= self.final_learning_rate_fraction <= 1:
            raise ValueError(
                f"optimizer.final_learning_rate_fraction is {self.final_learning_rate_fraction}; "
                "expected between 0 and 1"
            )
        if self.horizon_tokens is not None and self.warmup_tokens >= self.horizon_tokens:
            raise ValueError(
                f"optimizer.warmup_tokens ({self.warmup_tokens}) does not end before "
                f"horizon_tokens ({self.horizon_tokens})"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run is saved and what it starts from.

    Attributes:
        checkpoint_period: steps between saves; the last step is always saved.
        keep_last: newest checkpoints that are kept.
        keep_period: checkpoints at multiples of this step are kept for ever; None keeps none of
            them.
        async_checkpointing: write while training goes on.
        load_parameters_path: checkpoint or converted folder whose weights a fresh run starts from,
            cast to ``execution.weight_dtype``.
        load_full_state_path: checkpoint whose weights and optimizer state it starts from (the next
            phase).
    """

    checkpoint_period: int = 1000
    keep_last: int = 3
    keep_period: int | None = None
    async_checkpointing: bool = True
    load_parameters_path: str | None = None
    load_full_state_path: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "checkpoint_period", "keep_last", "keep_period")
        if self.load_parameters_path is not None and self.load_full_state_path is not None:
            raise ValueError(
                "checkpoint: set load_parameters_path or load_full_state_path, not both"
            )
