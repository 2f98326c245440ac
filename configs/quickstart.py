"""A small Code World Model learns to predict how CPython executes small programs.

Command:   python train.py --config configs/quickstart.py
Hardware:  2 CPU cores, 2 GiB of memory, no download; bubblewrap for the sandbox
Time:      5 to 7 minutes on idle cores (measured, docs/LOG.md)
Result:    of held-out programs' frames, after the true ones: 99.1 % well-formed, 97.2 % of the
           actions and 70.3 % of the states exact; 16 % of the outputs right after its own trace
Values:    measured where so marked (docs/LOG.md), else assumed

The programs are generated and traced first. Their traces alone are trained on; configs/
midtrain_32b.py has the report's mixture of traces, code and rehearsal.
"""

from cwm_jax.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    GeneratedTraces,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    RopeParameters,
    RunConfig,
    SourceConfig,
    TokenizerConfig,
    TraceEvaluationConfig,
)

CORPUS = "runs/traces/quickstart"
VOCAB_SIZE = 768
T = 256
BATCH_TOKENS = 4 * T
STEPS = 4000
MODEL = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=32,
    layer_types=(  # the last one global: it copies lines from the context
        "full_attention",
        "sliding_attention",
        "sliding_attention",
        "full_attention",
    ),
    sliding_window=128,
    rope_parameters=RopeParameters(rope_theta=10_000.0),
    max_position_embeddings=1024,
    bos_token_id=VOCAB_SIZE - 256,
    eos_token_id=(VOCAB_SIZE - 255, VOCAB_SIZE - 248, VOCAB_SIZE - 247),
    pad_token_id=VOCAB_SIZE - 252,
)


def get_config() -> RunConfig:
    traces = SourceConfig(
        name="traces",
        kind="traces",
        path=CORPUS,
        generate=GeneratedTraces(programs=12_000, difficulties=(1,), kinds=("arithmetic",)),
    )
    return RunConfig(
        run_name="quickstart",
        model=MODEL,
        data=DataConfig(sources=(traces,), packing="best_fit"),
        tokenizer=TokenizerConfig(vocab_size=VOCAB_SIZE, training_bytes=1_000_000),
        batch=BatchConfig(
            max_target_length=T, per_device_batch_size=4, global_batch_tokens=BATCH_TOKENS
        ),
        optimizer=OptimizerConfig(
            learning_rate=3e-3,  # measured
            warmup_tokens=50 * BATCH_TOKENS,
            train_tokens=STEPS * BATCH_TOKENS,
        ),
        checkpoint=CheckpointConfig(checkpoint_period=1000),
        logging=LoggingConfig(log_period=200, eval_period=500, eval_rows=48, export="export"),
        trace_evaluation=TraceEvaluationConfig(corpus=CORPUS, episodes=100, max_length=512),
    )
