"""A small Code World Model learns Python from this interpreter's own standard library.

Command:   python train.py --config configs/quickstart_code.py
Hardware:  2 CPU cores, 2 GiB of memory, no download
Time:      3 minutes on idle cores (measured, docs/LOG.md)
Result:    held-out loss 8.01 -> 4.31 nats per token after 1M tokens
"""

from cwm_jax.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    RopeParameters,
    RunConfig,
    SourceConfig,
    TokenizerConfig,
    layer_types_3_to_1,
)

VOCAB_SIZE = 2048
BATCH_TOKENS = 4 * 512


def get_config() -> RunConfig:
    model = ModelConfig(  # CWM's shape: GQA 6:1, FFN 3.5x, 3:1 windows
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=672,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=1,
        head_dim=32,
        layer_types=layer_types_3_to_1(4),
        sliding_window=128,
        rope_parameters=RopeParameters(rope_theta=10_000.0),  # assumed: short context
        max_position_embeddings=2048,
        bos_token_id=VOCAB_SIZE - 256,
        eos_token_id=(VOCAB_SIZE - 255, VOCAB_SIZE - 248, VOCAB_SIZE - 247),
        pad_token_id=VOCAB_SIZE - 252,
    )
    return RunConfig(
        run_name="quickstart_code",
        model=model,
        data=DataConfig(sources=(SourceConfig(name="stdlib", kind="stdlib"),)),
        tokenizer=TokenizerConfig(vocab_size=VOCAB_SIZE, training_bytes=4_000_000),
        batch=BatchConfig(
            max_target_length=512, per_device_batch_size=1, global_batch_tokens=BATCH_TOKENS
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,  # measured
            warmup_tokens=60 * BATCH_TOKENS,
            train_tokens=480 * BATCH_TOKENS,
        ),
        checkpoint=CheckpointConfig(checkpoint_period=200),
        logging=LoggingConfig(
            log_period=40,
            eval_period=120,
            eval_rows=48,
            sample_prompt="def read_lines(path):\n",
            sample_tokens=96,
            export="export",
        ),
    )
