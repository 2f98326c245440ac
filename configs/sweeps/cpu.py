"""Learning rate and batch as power laws of the compute, from models that a laptop trains.

Command:   python -m cwm_jax sweep --config configs/sweeps/cpu.py --budget 1.4e14
Hardware:  2 CPU cores, bubblewrap for the sandbox
Time:      55 minutes
Result:    rate 119 C^-0.39 (95 %: -0.82 to -0.06), batch of 380 tokens whatever the compute (-0.78
           to 0.69); at 9.2e12 FLOP, left out, the law's rate beats a quarter of it by 0.051 nats
           (0.035 to 0.067) and four times it by 0.103 (0.043 to 0.163): docs/scaling.md
Values:    sizes, ranges and computes assumed; the optimizer and its schedule are the report's

Runs learn the execution of generated programs, as configs/quickstart.py does. Two layers, a global
and a local one, grow in width alone, with ten tokens for each parameter: a law that was fitted on
one width and more and more layers did not hold for another width (docs/LOG.md, 2026-11-27). One
more scale, nearly twice the compute of the largest, tests the law.
"""

import dataclasses
from collections.abc import Sequence

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
TOKENS_PER_PARAMETER = 10  # assumed: Chinchilla's 20 would take twice as long


def small_model(hidden_size: int) -> ModelConfig:
    """The quickstart's with two layers, of another width; heads are 16 wide."""
    heads = hidden_size // 16
    return dataclasses.replace(
        quickstart.MODEL,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 7 // 2,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=16,
        layer_types=layer_types_3_to_1(2),
    )


# Parameters without embeddings: 0.12M, 0.19M, 0.27M, 0.36M
MODELS = tuple(map(small_model, (64, 80, 96, 112)))


def scale(model: ModelConfig, tokens_per_parameter: float) -> SweepScale:
    tokens = tokens_per_parameter * num_non_embedding_parameters(model)
    return SweepScale(
        compute_flops=tokens * law_flops_per_token(model, T, count="report"), model=model
    )


def longer(models: Sequence[ModelConfig]) -> tuple[SweepScale, ...]:
    """More tokens a parameter, so that the loss law can tell sizes from tokens."""
    doubled = tuple(scale(model, TOKENS_PER_PARAMETER * 2) for model in models)
    return *doubled, scale(models[0], TOKENS_PER_PARAMETER * 4)


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
        learning_rates=(4e-4, 1e-2),
        batch_tokens=(MICRO_ROWS * T, 8 * T),
        near_optimum=1.0,  # these losses fall so far that a step to either side costs a lot
        loss_scales=longer(searched),
        confirmation=ConfirmationConfig(scale=scale(largest, TOKENS_PER_PARAMETER)),
        repetition=RepetitionConfig(scale=scale(MODELS[0], TOKENS_PER_PARAMETER)),
    )
