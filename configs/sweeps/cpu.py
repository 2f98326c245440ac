"""Learning rate and batch as power laws of the compute, from models that a laptop trains.

Command:   python -m cwm_jax sweep --config configs/sweeps/cpu.py --budget 1.02e14
Hardware:  2 CPU cores, bubblewrap for the sandbox
Time:      not measured yet
Result:    not run yet
Values:    sizes, ranges and computes assumed; the optimizer and its schedule are the report's

Runs learn the execution of generated programs, as configs/quickstart.py does. The models keep
CWM's proportions where so narrow a model can: windows in three of four layers, FFN 3.5 times the
width, and eight tokens for each parameter. One more scale, with four and a half times the compute
of the largest, tests the law that was fitted.
"""

import dataclasses

from configs import quickstart
from configs.ablations import traces
from cwm_jax.config import (
    BatchConfig,
    ConfirmationConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    RepetitionConfig,
    RunConfig,
    SweepConfig,
    SweepScale,
    TokenizerConfig,
    layer_types_3_to_1,
)
from cwm_jax.training.scaling.flops import law_flops_per_token, num_non_embedding_parameters

T = 256
MICRO_ROWS = 1  # the best batches are small (measured)
TOKENS_PER_PARAMETER = 8  # assumed: Chinchilla's 20 would take six times as long


def small_model(*, hidden_size: int, num_hidden_layers: int) -> ModelConfig:
    """The quickstart's, of another size; heads are 32 wide."""
    heads = hidden_size // 32
    return dataclasses.replace(
        quickstart.MODEL,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 7 // 2,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        layer_types=layer_types_3_to_1(num_hidden_layers),
    )


# Parameters without embeddings: 0.12M, 0.18M, 0.24M, 0.40M
MODELS = tuple(
    small_model(hidden_size=width, num_hidden_layers=layers)
    for width, layers in ((64, 2), (64, 3), (64, 4), (96, 3))
)


def scale(model: ModelConfig, tokens_per_parameter: float) -> SweepScale:
    tokens = tokens_per_parameter * num_non_embedding_parameters(model)
    return SweepScale(
        compute_flops=tokens * law_flops_per_token(model, T, count="report"), model=model
    )


def get_config() -> SweepConfig:
    base = RunConfig(
        run_name="sweep_cpu",
        model=MODELS[-1],
        data=DataConfig(sources=(traces.TRACES,), packing="best_fit"),
        tokenizer=TokenizerConfig(vocab_size=quickstart.VOCAB_SIZE, training_bytes=1_000_000),
        batch=BatchConfig(max_target_length=T, per_device_batch_size=MICRO_ROWS),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,  # replaced, as are the tokens
            train_tokens=MICRO_ROWS * T,
        ),
        logging=LoggingConfig(eval_rows=256),
    )
    *searched, largest = MODELS
    return SweepConfig(
        base=base,
        scales=tuple(scale(model, TOKENS_PER_PARAMETER) for model in searched),
        learning_rates=(8e-4, 1.2e-2),
        batch_tokens=(MICRO_ROWS * T, 12 * T),
        near_optimum=0.6,  # these losses fall so far that a step to either side costs a lot
        loss_scales=(
            *(scale(model, TOKENS_PER_PARAMETER * 2) for model in searched),
            *(scale(model, TOKENS_PER_PARAMETER * 4) for model in searched[:2]),
        ),
        confirmation=ConfirmationConfig(scale=scale(largest, TOKENS_PER_PARAMETER)),
        repetition=RepetitionConfig(scale=scale(MODELS[0], TOKENS_PER_PARAMETER)),
    )
