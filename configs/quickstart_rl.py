"""All phases of a small Code World Model: pre-training, mid-training, SFT, reinforcement learning.

Command:   python train.py --config configs/quickstart_rl.py
Hardware:  2 CPU cores, 3 GiB of memory, no download; bubblewrap for the sandbox
Time:      12 minutes (707 and 751 s, docs/LOG.md)
Result:    a table of what each phase changed; reinforcement learning answers 11.6 % of 900 held-out
           programs where SFT answers 7.7 % (paired 95 % interval +2.0 % to +5.7 %)
Values:    measured where so marked (docs/LOG.md), else assumed

The phases read each other's exports, and each is a run of its own below runs/: the same command
goes on where it was stopped. ``--set phases.3.rl.group_size=16`` changes one of them.
"""

from configs import quickstart
from cwm_jax.config import (
    BatchConfig,
    CheckpointConfig,
    CurriculumConfig,
    DataConfig,
    EnvironmentConfig,
    FilterConfig,
    GeneratedTraces,
    LoggingConfig,
    OptimizerConfig,
    Recipe,
    RLConfig,
    RunConfig,
    SourceConfig,
    TokenizerConfig,
    TraceEvaluationConfig,
)

CORPUS = "runs/traces/quickstart-rl"
T = 512  # rows hold several traces or dialogs; at 256 a third of a row is empty (measured)
BATCH_TOKENS = 2 * T
EPISODE_TOKENS = 256
PROGRAMS = GeneratedTraces(programs=16_000, difficulties=(1,), kinds=("arithmetic",))
HELDOUT_FRACTION = 0.06  # 919 programs
PRETRAIN_STEPS, MIDTRAIN_STEPS, SFT_STEPS, RL_STEPS = 400, 1000, 4000, 100


def get_config() -> Recipe:
    return Recipe(phases=(pretraining(), midtraining(), sft(), rl()))


def pretraining() -> RunConfig:
    """Plain text: the programs without their traces, and the interpreter's library."""
    return RunConfig(
        run_name="quickstart-pre",
        model=quickstart.MODEL,
        data=data(
            SourceConfig(name="code", kind="stdlib", weight=0.25),
            SourceConfig(
                name="programs", kind="trace_outputs", path=CORPUS, generate=PROGRAMS, weight=0.75
            ),
            packing="concat_then_split",
        ),
        tokenizer=TokenizerConfig(vocab_size=quickstart.VOCAB_SIZE, training_bytes=1_000_000),
        batch=batch(T, rows=2),
        optimizer=optimizer(steps=PRETRAIN_STEPS, start=0),
        checkpoint=CheckpointConfig(checkpoint_period=PRETRAIN_STEPS),
        logging=logging(),
    )


def midtraining() -> RunConfig:
    """Execution traces; the schedule and the optimizer go on."""
    return RunConfig(
        run_name="quickstart-mid",
        model=quickstart.MODEL,
        data=data(
            SourceConfig(name="traces", kind="traces", path=CORPUS, generate=PROGRAMS, weight=0.9),
            SourceConfig(
                name="programs", kind="trace_outputs", path=CORPUS, generate=PROGRAMS, weight=0.1
            ),
        ),
        tokenizer=TokenizerConfig(path="runs/quickstart-pre/export"),
        batch=batch(T, rows=2),
        optimizer=optimizer(steps=MIDTRAIN_STEPS, start=PRETRAIN_STEPS),
        checkpoint=CheckpointConfig(
            checkpoint_period=1000, load_full_state_path="runs/quickstart-pre"
        ),
        logging=logging(),
        trace_evaluation=TraceEvaluationConfig(
            corpus=CORPUS, episodes=50, max_length=512, modes=("teacher_forced", "free_running")
        ),
    )


def sft() -> RunConfig:
    """Dialogs that ask what a program returns, reasoned by its trace; a rehearsal of traces."""
    return RunConfig(
        run_name="quickstart-sft",
        model=quickstart.MODEL,
        data=data(
            SourceConfig(
                name="dialogs", kind="trace_dialogs", path=CORPUS, generate=PROGRAMS, weight=0.95
            ),
            SourceConfig(name="traces", kind="traces", path=CORPUS, generate=PROGRAMS, weight=0.05),
        ),
        tokenizer=TokenizerConfig(path="runs/quickstart-mid/export"),
        batch=batch(T, rows=2),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,  # measured
            schedule="cosine",  # report: about as good as its constant rate; better in so few steps
            warmup_tokens=50 * BATCH_TOKENS,
            train_tokens=SFT_STEPS * BATCH_TOKENS,
        ),
        checkpoint=CheckpointConfig(
            checkpoint_period=1500, load_parameters_path="runs/quickstart-mid"
        ),
        logging=logging(),
    )


def rl() -> RunConfig:
    """The same question, learnt from the answers' rewards alone."""
    return RunConfig(
        run_name="quickstart-rl",
        model=quickstart.MODEL,
        data=data(),
        tokenizer=TokenizerConfig(path="runs/quickstart-sft/export"),
        batch=batch(EPISODE_TOKENS, rows=8, steps=4),
        optimizer=OptimizerConfig(
            learning_rate=3e-4,  # measured
            schedule="constant",
            warmup_tokens=5 * 32 * EPISODE_TOKENS,
            train_tokens=RL_STEPS * 32 * EPISODE_TOKENS,
            weight_decay=0.0,
        ),
        checkpoint=CheckpointConfig(
            checkpoint_period=50, load_parameters_path="runs/quickstart-sft"
        ),
        logging=LoggingConfig(log_period=10, export="export"),
        rl=RLConfig(
            environments=(
                EnvironmentConfig(
                    name="output",
                    kind="output_prediction",
                    path=CORPUS,
                    max_tasks=1500,  # each comes again soon, and by then the curriculum knows it
                ),
            ),
            curriculum=CurriculumConfig(),
            filters=FilterConfig(gibberish_min_token_id=None),
            groups_at_once=16,
            group_size=8,
            max_rows=16,  # measured: with 32 the cache of so small a model leaves the processor's
            eval_tasks=900,
            eval_samples=2,
            eval_period=50,
        ),
    )


def data(*sources: SourceConfig, packing="best_fit") -> DataConfig:
    return DataConfig(sources=sources, packing=packing, heldout_fraction=HELDOUT_FRACTION)


def batch(length: int, *, rows: int, steps: int = 1) -> BatchConfig:
    """``steps``: micro-batches of so many rows."""
    return BatchConfig(
        max_target_length=length,
        per_device_batch_size=rows,
        global_batch_tokens=steps * rows * length,
    )


def optimizer(*, steps: int, start: int) -> OptimizerConfig:
    """One schedule over both phases, as in the report."""
    return OptimizerConfig(
        learning_rate=3e-3,  # measured
        warmup_tokens=50 * BATCH_TOKENS,
        start_tokens=start * BATCH_TOKENS,
        train_tokens=steps * BATCH_TOKENS,
        horizon_tokens=(PRETRAIN_STEPS + MIDTRAIN_STEPS) * BATCH_TOKENS,
    )


def logging() -> LoggingConfig:
    return LoggingConfig(log_period=250, eval_period=500, eval_rows=48, export="export")
