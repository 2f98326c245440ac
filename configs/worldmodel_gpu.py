"""A world model of small Python programs, as good as ten minutes on one GPU make it.

Command:   python train.py --config configs/worldmodel_gpu.py
Hardware:  one GPU of 80 to 141 GB (H100, H200); 16 CPU cores trace the programs first
Time:      measured on one H200 (docs/LOG.md): 5 1/2 minutes of training, 490,000 tokens/s, 31 %
           MFU; before it 4 minutes of tracing on 2 cores and one of tokenising. The evaluation at
           the end compiles many programs: not done after 95 s, when the time lent was over
Result:    held-out loss 0.506 nats a token; accuracy of predictions unknown
Values:    assumed, but for the architecture's proportions (configs/cwm_32b.py)

CruxEval's functions, of the finished run: the same command and
--set trace_evaluation.jsonl=FILE with `code` and `input` in each line.
"""

from cwm_jax.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    ExecutionConfig,
    GeneratedTraces,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    RopeParameters,
    RunConfig,
    SourceConfig,
    TokenizerConfig,
    TraceEvaluationConfig,
    layer_types_3_to_1,
)

CORPUS = "runs/traces/worldmodel_gpu"
VOCAB_SIZE = 4096
T = 2048
BATCH_TOKENS = 64 * T
STEPS = 1200


def get_config() -> RunConfig:
    model = ModelConfig(  # 97M parameters
        vocab_size=VOCAB_SIZE,
        hidden_size=768,
        intermediate_size=2688,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=2,
        head_dim=64,
        layer_types=layer_types_3_to_1(12),
        sliding_window=512,
        rope_parameters=RopeParameters(rope_theta=10_000.0),
        max_position_embeddings=2 * T,
        bos_token_id=VOCAB_SIZE - 256,
        eos_token_id=(VOCAB_SIZE - 255, VOCAB_SIZE - 248, VOCAB_SIZE - 247),
        pad_token_id=VOCAB_SIZE - 252,
    )
    traces = SourceConfig(
        name="traces",
        kind="traces",
        path=CORPUS,
        weight=0.85,
        generate=GeneratedTraces(programs=40_000),
    )
    return RunConfig(
        run_name="worldmodel_gpu",
        model=model,
        data=DataConfig(
            sources=(traces, SourceConfig(name="stdlib", kind="stdlib", weight=0.15)),
            packing="best_fit",
            heldout_fraction=0.01,
            trace_context_loss=True,
        ),
        tokenizer=TokenizerConfig(vocab_size=VOCAB_SIZE),
        batch=BatchConfig(
            max_target_length=T, per_device_batch_size=32, global_batch_tokens=BATCH_TOKENS
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            warmup_tokens=100 * BATCH_TOKENS,
            train_tokens=STEPS * BATCH_TOKENS,
        ),
        execution=ExecutionConfig(
            dtype="bfloat16", remat_policy="minimal", loss_chunk_tokens=16_384
        ),
        checkpoint=CheckpointConfig(checkpoint_period=700),
        logging=LoggingConfig(log_period=20, eval_period=200, eval_rows=64, export="export"),
        trace_evaluation=TraceEvaluationConfig(
            corpus=CORPUS, episodes=500, max_length=2 * T, batch_size=128
        ),
    )
