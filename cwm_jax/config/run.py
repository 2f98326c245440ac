"""A whole run."""

from __future__ import annotations

import dataclasses

from cwm_jax.config.architecture import ModelConfig
from cwm_jax.config.data import DataConfig, TokenizerConfig
from cwm_jax.config.execution import ExecutionConfig, MeshConfig
from cwm_jax.config.reports import LoggingConfig, TraceEvaluationConfig
from cwm_jax.config.rl import RLConfig
from cwm_jax.config.schema import check_positive, check_types
from cwm_jax.config.training import BatchConfig, CheckpointConfig, OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run; ``configs/*.py`` each return one from ``get_config()``.

    Attributes:
        run_name: names the folder below base_output_directory; a run whose folder exists is
            resumed.
        seed: of the weights' initial values and of the order of the data.
        steps: stop after this many steps (a resumable cut); None runs through
            optimizer.train_tokens.
        rl: what a policy learns from rewards, in place of ``data.sources``.
    """

    run_name: str
    model: ModelConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)
    trace_evaluation: TraceEvaluationConfig | None = None
    base_output_directory: str = "runs"
    seed: int = 0
    steps: int | None = None
    rl: RLConfig | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "steps")
        if (self.rl is None) != bool(self.data.sources):
            raise ValueError(
                f"data.sources has {len(self.data.sources)} entries and rl is "
                f"{'not ' if self.rl is None else ''}set; expected one of them: what is read, or "
                "what is played"
            )
        if not self.run_name or self.run_name.startswith(".") or "/" in self.run_name:
            raise ValueError(f"run_name is {self.run_name!r}; expected one folder name")
        if (
            self.tokenizer.vocab_size is not None
            and self.tokenizer.vocab_size != self.model.vocab_size
        ):
            raise ValueError(
                f"tokenizer.vocab_size ({self.tokenizer.vocab_size}) differs from model.vocab_size "
                f"({self.model.vocab_size}); the model predicts each of the tokenizer's tokens"
            )
        predicted = self.trace_evaluation
        if predicted is not None and predicted.max_length > self.model.max_position_embeddings:
            raise ValueError(
                f"trace_evaluation.max_length ({predicted.max_length}) exceeds "
                f"model.max_position_embeddings ({self.model.max_position_embeddings})"
            )
        if self.batch.max_target_length > self.model.max_position_embeddings:
            raise ValueError(
                f"batch.max_target_length ({self.batch.max_target_length}) exceeds "
                f"model.max_position_embeddings ({self.model.max_position_embeddings})"
            )
