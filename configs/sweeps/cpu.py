"""Learning rate and batch as power laws of the compute, from models that a laptop trains.

Command:   python -m cwm_jax sweep --config configs/sweeps/cpu.py --budget 1.4e14
Hardware:  2 CPU cores, bubblewrap for the sandbox
Time:      not measured yet
Result:    not run yet
Values:    sizes, ranges and computes assumed; the optimizer and its schedule are the report's

Runs learn the execution of generated programs, as configs/quickstart.py does. The models keep
CWM's proportions where so narrow a model can: windows in three of four layers, FFN 3.5 times the
width. One more scale, with four times the compute of the largest, tests the law that was fitted.
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

T = 256
MICRO_ROWS = 4


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


TINY = small_model(hidden_size=64, num_hidden_layers=2)  # 0.12M parameters without embeddings
SMALL = small_model(hidden_size=96, num_hidden_layers=3)  # 0.41M
MEDIUM = small_model(hidden_size=128, num_hidden_layers=4)  # 0.95M


def get_config() -> SweepConfig:
    base = RunConfig(
        run_name="sweep_cpu",
        model=MEDIUM,
        data=DataConfig(sources=(traces.TRACES,), packing="best_fit"),
        tokenizer=TokenizerConfig(vocab_size=quickstart.VOCAB_SIZE, training_bytes=1_000_000),
        batch=BatchConfig(max_target_length=T, per_device_batch_size=MICRO_ROWS),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,  # replaced, as are the tokens
            train_tokens=MICRO_ROWS * T,
        ),
        logging=LoggingConfig(eval_rows=256),
    )
    return SweepConfig(
        base=base,
        scales=(
            SweepScale(compute_flops=5e11, model=TINY),
            SweepScale(compute_flops=1e12, model=TINY),
            SweepScale(compute_flops=1e12, model=SMALL),
            SweepScale(compute_flops=2e12, model=SMALL),
            SweepScale(compute_flops=4e12, model=SMALL),
            SweepScale(compute_flops=4e12, model=MEDIUM),
        ),
        learning_rates=(5e-4, 5e-2),
        batch_tokens=(MICRO_ROWS * T, 32 * MICRO_ROWS * T),
        confirmation=ConfirmationConfig(scale=SweepScale(compute_flops=1.6e13, model=MEDIUM)),
        repetition=RepetitionConfig(scale=SweepScale(compute_flops=2e12, model=SMALL)),
    )
