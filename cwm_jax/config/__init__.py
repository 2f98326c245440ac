"""The only schema of a run: frozen, keyword-only dataclasses, validated when they are made.

Architecture keys are those of Hugging Face's ``CwmConfig`` (``cwm_jax.config.architecture``);
run-time keys are those that MaxText users know. Derive a variant with ``dataclasses.replace``; a
required field has no default. Numbers that follow from others (steps, tokens per batch, FLOPs) are
computed in ``cwm_jax.training.plan``, never stored.
"""

from cwm_jax.config.architecture import (
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    ModelConfig,
    RopeParameters,
    layer_types_3_to_1,
)
from cwm_jax.config.data import (
    DataConfig,
    GeneratedTraces,
    LengthBucket,
    SourceConfig,
    TokenizerConfig,
)
from cwm_jax.config.execution import (
    REMAT_POLICIES,
    REMAT_TENSORS,
    ExecutionConfig,
    MeshConfig,
)
from cwm_jax.config.recipe import Recipe
from cwm_jax.config.reports import LoggingConfig, TraceEvaluationConfig
from cwm_jax.config.rl import (
    CurriculumConfig,
    EnvironmentConfig,
    FilterConfig,
    LengthRewardConfig,
    PolicyLossConfig,
    RLConfig,
)
from cwm_jax.config.run import RunConfig
from cwm_jax.config.sweep import ConfirmationConfig, RepetitionConfig, SweepConfig, SweepScale
from cwm_jax.config.training import BatchConfig, BatchPhase, CheckpointConfig, OptimizerConfig

__all__ = [
    "FULL_ATTENTION",
    "REMAT_POLICIES",
    "REMAT_TENSORS",
    "SLIDING_ATTENTION",
    "BatchConfig",
    "BatchPhase",
    "CheckpointConfig",
    "ConfirmationConfig",
    "CurriculumConfig",
    "DataConfig",
    "EnvironmentConfig",
    "ExecutionConfig",
    "FilterConfig",
    "GeneratedTraces",
    "LengthBucket",
    "LengthRewardConfig",
    "LoggingConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PolicyLossConfig",
    "RLConfig",
    "Recipe",
    "RepetitionConfig",
    "RopeParameters",
    "RunConfig",
    "SourceConfig",
    "SweepConfig",
    "SweepScale",
    "TokenizerConfig",
    "TraceEvaluationConfig",
    "layer_types_3_to_1",
]
