"""What a run tells of itself: logs, held-out losses, predicted traces."""

from __future__ import annotations

import dataclasses
from typing import Literal

from cwm_jax.config.schema import check_positive, check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What a run shows of itself; ``metrics.jsonl`` is always written.

    Attributes:
        log_period: steps between lines on the terminal.
        eval_period: steps between held-out evaluations; the first step and the last are always
            evaluated.
        eval_rows: held-out rows of an evaluation.
        tensorboard: write TensorBoard events too.
        profile_steps: first and last step whose JAX profile is recorded.
        sample_prompt: completed by the trained model at the end of the run.
        sample_tokens: length of that sample.
        export: folder below the run's for a Hugging Face export at the end; None writes none.
    """

    log_period: int = 10
    eval_period: int = 1000
    eval_rows: int = 64
    tensorboard: bool = False
    profile_steps: tuple[int, int] | None = None
    sample_prompt: str | None = None
    sample_tokens: int = 128
    export: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "log_period", "eval_period", "eval_rows", "sample_tokens")
        if (
            self.profile_steps is not None
            and not 0 < self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise ValueError(
                f"logging.profile_steps is {self.profile_steps}; expected (first, last), from 1 on"
            )
        if self.export is not None and (not self.export.strip(".") or "/" in self.export):
            raise ValueError(
                f"logging.export is {self.export!r}; expected the name of one folder, or none"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceEvaluationConfig:
    """What a finished run predicts of execution; ``traces.json`` and ``traces.png`` hold it.

    Attributes:
        corpus: folder of a trace corpus whose held-out episodes, by ``data.heldout_fraction``, are
            predicted; it need not be trained on.
        jsonl: in place of the corpus: a file with ``code`` and ``input`` in each line, such as
            CruxEval, that is traced first.
        episodes: how many, the first ones.
        max_length: tokens of a prompt and its trace; longer episodes are passed over, and counted.
        batch_size: traces at a time.
        modes: ways of predicting, see ``cwm_jax.evals.traces.evaluation``.
        unsafe: trace the file's programs without bubblewrap.
    """

    corpus: str | None = None
    jsonl: str | None = None
    episodes: int = 100
    max_length: int
    batch_size: int = 32
    modes: tuple[Literal["teacher_forced", "free_running", "single_step", "direct"], ...] = (
        "teacher_forced",
        "free_running",
        "single_step",
    )
    unsafe: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "episodes", "max_length", "batch_size")
        if not self.modes:
            raise ValueError("trace_evaluation.modes is empty; name at least one")
        if self.corpus is None and self.jsonl is None:
            raise ValueError("trace_evaluation has neither corpus nor jsonl; name one of them")
