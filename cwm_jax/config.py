"""The only schema of a run: frozen, keyword-only dataclasses, validated when they are made.

Architecture keys are those of Hugging Face's ``CwmConfig`` (``cwm_jax.architecture``); run-time
keys are those that MaxText users know. Derive a variant with ``dataclasses.replace``; a required
field has no default. Numbers that follow from others (steps, tokens per batch, FLOPs) are computed
in ``cwm_jax.training.plan``, never stored.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from cwm_jax.architecture import ModelConfig, RopeParameters, layer_types_3_to_1
from cwm_jax.schema import check_positive, check_types

__all__ = [
    "BatchConfig",
    "BatchPhase",
    "CheckpointConfig",
    "DataConfig",
    "ExecutionConfig",
    "GeneratedTraces",
    "LengthBucket",
    "LoggingConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RopeParameters",
    "RunConfig",
    "SourceConfig",
    "TokenizerConfig",
    "TraceEvaluationConfig",
    "layer_types_3_to_1",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How the model is computed; it changes speed and rounding, never what is computed.

    Attributes:
        dtype: of activations and of the weights in matrix products; None takes the parameters' own.
        weight_dtype: of the master weights that ``init`` makes.
        attention: implementation, see ``cwm_jax.kernels.attention``.
        attention_block_tokens: queries in a block of the chunked attention; None chooses by device.
        remat_policy: what the backward pass keeps of a layer: ``none`` keeps all, ``minimal`` the
            results of matrix products, ``full`` the layer's input alone.
        scan_layers: scan over the repeating group of layers (compile time independent of depth) or
            unroll.
        loss_chunk_tokens: tokens of a device whose logits exist at one time in the loss.
    """

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    weight_dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "reference", "chunked"] = "auto"
    attention_block_tokens: int | None = None
    remat_policy: Literal["none", "minimal", "full"] = "none"
    scan_layers: bool = True
    loss_chunk_tokens: int = 2048

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "attention_block_tokens", "loss_chunk_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; -1 (once) takes what the other axes leave.

    Attributes:
        data: replicas of the weights, each with rows of its own.
        fsdp: devices that share weights, optimizer state and rows.
        tensor: devices that share heads, FFN and vocabulary.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        sizes = dataclasses.astuple(self)
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(
                f"mesh is {dataclasses.asdict(self)}; expected sizes >= 1 and -1 at most once"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedTraces:
    """A trace corpus of generated programs, written where a run finds none.

    Attributes:
        programs: how many are generated; those whose trace is a near-duplicate are dropped.
        difficulties: of the programs in turn, each 1 to 5.
        kinds: constructs of the programs, see ``cwm_jax.trace.generator.KINDS``; empty takes all.
        seed: of the programs.
        unsafe: trace them without bubblewrap: they do nothing harmful by construction.
    """

    programs: int
    difficulties: tuple[int, ...] = (1, 2, 3, 4, 5)
    kinds: tuple[str, ...] = ()
    seed: int = 0
    unsafe: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "programs")
        if not self.difficulties or not {*self.difficulties} <= {1, 2, 3, 4, 5}:
            raise ValueError(f"difficulties is {self.difficulties}; expected some of 1 to 5")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One corpus of the training mixture.

    Attributes:
        name: unique in the mixture; names its folder of shards.
        kind: ``stdlib`` (the running interpreter's standard library), ``folder``, ``jsonl``,
            ``parquet``, ``traces`` (a corpus of execution traces), ``trace_outputs`` (its programs
            as plain text, each with an assertion of its output in place of its trace).
        path: folder, or file or folder of files (``jsonl``, ``parquet``).
        glob: which files below a folder belong to it; None takes every file of the kind (of a
            corpus of traces always those of its manifest).
        text_field: JSON key or Parquet column that holds the text.
        weight: share of the tokens that come from this source, relative to the others with a
            weight.
        epochs: how often the run sees each of its tokens, which gives the source the share
            ``epochs * unique tokens / train_tokens`` instead of one by weight; sources with a
            weight divide what is left. 1 to 4 in mid-training (report).
        non_utf8: what to do with a document that is not UTF-8: ``skip`` it (counted in the
            manifest) or keep its ``bytes`` as single-byte tokens.
        generate: of a corpus of traces: programs that are traced to ``path`` if nothing is there.
    """

    name: str
    kind: Literal["stdlib", "folder", "jsonl", "parquet", "traces", "trace_outputs"]
    path: str | None = None
    glob: str | None = None
    text_field: str = "text"
    weight: float = 1.0
    epochs: float | None = None
    non_utf8: Literal["skip", "bytes"] = "skip"
    generate: GeneratedTraces | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "weight", "epochs")
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                f"source name is {self.name!r}; expected letters, digits, '-' and '_' alone"
            )
        if (self.path is None) != (self.kind == "stdlib"):
            expected = "no path: it is the interpreter's own" if self.kind == "stdlib" else "a path"
            raise ValueError(
                f"source {self.name!r}: path is {self.path!r}; kind {self.kind!r} takes {expected}"
            )
        if self.is_of_episodes and self.glob is not None:
            raise ValueError(
                f"source {self.name!r}: glob is {self.glob!r}; kind {self.kind!r} takes none: its "
                "manifest names the files"
            )
        if self.generate is not None and not self.is_of_episodes:
            raise ValueError(
                f"source {self.name!r}: kind is {self.kind!r} and generate is set; expected kind "
                "'traces' or 'trace_outputs', which alone can be generated: drop generate"
            )
        if self.epochs is not None and self.weight != 1.0:
            raise ValueError(
                f"source {self.name!r}: weight is {self.weight} and epochs {self.epochs}; expected "
                "one of them: drop epochs, or leave weight at 1.0"
            )

    @property
    def is_of_episodes(self) -> bool:
        """Whether the documents come from a corpus of traces: a context, and what follows it."""
        return self.kind in ("traces", "trace_outputs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer a run uses.

    Attributes:
        path: a tiktoken ``tokenizer.model``, a ``tokenizer.json`` or a folder with one; None trains
            a byte-level BPE on the training split of the sources.
        vocab_size: of the BPE to be trained, its reserved tokens included; None with a path.
        training_bytes: text that the training of the BPE reads at most.
    """

    path: str | None = None
    vocab_size: int | None = None
    training_bytes: int = 32_000_000

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "vocab_size", "training_bytes")
        if (self.path is None) == (self.vocab_size is None):
            raise ValueError(
                "tokenizer: give either path (an existing one) or vocab_size (train one)"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthBucket:
    """Documents of like length, which share steps.

    Attributes:
        max_document_tokens: of its longest document; the next bucket begins one above. None takes
            all that are longer than the bucket before.
        attention_cap: keys that a query of a global layer sees in these steps, its own included;
            None does not cap.
    """

    max_document_tokens: int | None = None
    attention_cap: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "max_document_tokens", "attention_cap")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on.

    Attributes:
        sources: corpora, mixed by their weights or epochs.
        cache_directory: where tokenised shards (and a trained tokenizer) are kept and found again.
        heldout_fraction: share of documents, chosen by a hash of their name, that is never trained
            on.
        packing: ``concat_then_split`` fills every row and cuts documents at its end; ``first_fit``
            and ``best_fit`` keep documents whole (longer ones are cut into rows first) and pad.
        shuffle: draw documents in a random order that the run's seed fixes, anew each epoch.
        prefetch_rows: packed rows prepared ahead of the step (for each length bucket).
        length_buckets: all rows of a step are of one bucket's documents, so that no device waits
            for another's long ones; buckets have their shares of the tokens. Empty: no buckets.
        trace_context_loss: count the tokens before the first frame of a trace, or before the output
            of ``trace_outputs``, in the loss too.
            (assumed off: not published)
    """

    sources: tuple[SourceConfig, ...]
    cache_directory: str = "runs/data"
    heldout_fraction: float = 0.02
    packing: Literal["concat_then_split", "first_fit", "best_fit"] = "concat_then_split"
    shuffle: bool = True
    prefetch_rows: int = 64
    length_buckets: tuple[LengthBucket, ...] = ()
    trace_context_loss: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "prefetch_rows")
        names = [source.name for source in self.sources]
        if not names:
            raise ValueError("data.sources is empty; name at least one SourceConfig")
        if len(set(names)) != len(names):
            raise ValueError(
                f"data.sources has a name twice: {sorted(names)}; each names a folder of shards"
            )
        if not 0 < self.heldout_fraction < 1:
            raise ValueError(
                f"data.heldout_fraction is {self.heldout_fraction}; expected between 0 and 1"
            )
        _check_length_buckets([bucket.max_document_tokens for bucket in self.length_buckets])


def _check_length_buckets(limits: list[int | None]) -> None:
    bounded = [limit for limit in limits[:-1] if limit is not None]
    rising = len(bounded) == len(limits[:-1]) and sorted(set(bounded)) == bounded
    if limits and not (rising and limits[-1] is None):
        raise ValueError(
            f"data.length_buckets have max_document_tokens {limits}; expected rising numbers and "
            "none in the last bucket, which takes all longer documents"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchPhase:
    """From ``from_tokens`` of the schedule on, a step consumes ``batch_tokens``."""

    from_tokens: int
    batch_tokens: int

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "batch_tokens")
        if self.from_tokens < 0:
            raise ValueError(f"from_tokens is {self.from_tokens}; expected 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Rows and tokens of a step.

    Attributes:
        max_target_length: tokens T in a row.
        per_device_batch_size: rows per device in one micro-batch; a fraction where several devices
            share a row (0.125 is one row for 8 devices with ``mesh.tensor=8``).
        global_batch_tokens: tokens of one optimizer step; ``"law"`` takes the report's scaling law;
            phases let it change while training; None takes one micro-batch times
            gradient_accumulation_steps.
        gradient_accumulation_steps: micro-batches of a step; None derives it from
            global_batch_tokens.
    """

    max_target_length: int
    per_device_batch_size: float
    global_batch_tokens: int | Literal["law"] | tuple[BatchPhase, ...] | None = None
    gradient_accumulation_steps: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(
            self,
            "max_target_length",
            "per_device_batch_size",
            "gradient_accumulation_steps",
            *(["global_batch_tokens"] if isinstance(self.global_batch_tokens, int) else []),
        )
        if self.global_batch_tokens is not None and self.gradient_accumulation_steps is not None:
            raise ValueError(
                "batch: global_batch_tokens and gradient_accumulation_steps are both set; either "
                "follows from the other: drop one"
            )
        if isinstance(self.global_batch_tokens, tuple):
            starts = [phase.from_tokens for phase in self.global_batch_tokens]
            if not starts or starts[0] != 0 or sorted(set(starts)) != starts:
                raise ValueError(
                    f"batch.global_batch_tokens phases start at {starts}; expected 0 first and "
                    "rising"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule, which counts tokens.

    Attributes:
        learning_rate: peak; ``"law"`` takes the report's scaling law for this run's compute.
        warmup_tokens: linear rise from 0 to the peak.
        schedule: ``cosine`` over ``horizon_tokens`` or ``constant`` after the warm-up.
        horizon_tokens: where the cosine ends; None ends it with this run. Phases that share one
            schedule (pre- and mid-training) share a horizon.
        start_tokens: tokens of that schedule that earlier phases have consumed.
        train_tokens: tokens that this run consumes.
        final_learning_rate_fraction: of the peak, at the horizon.
        adam_b1, adam_b2, adam_eps, weight_decay: AdamW; norms are not decayed.
        gradient_clipping_threshold: of the global norm; None does not clip.
        z_loss: weight of the squared log-partition term of the loss.
        max_nonfinite_steps: steps in a row whose loss or gradient is not finite (each is skipped
            and counted) after which the run stops.
    """

    learning_rate: float | Literal["law"]
    train_tokens: int
    warmup_tokens: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    horizon_tokens: int | None = None
    start_tokens: int = 0
    final_learning_rate_fraction: float = 0.01  # report: 8e-4 -> 8e-6
    adam_b1: float = 0.9  # report
    adam_b2: float = 0.95  # report
    adam_eps: float = 1e-8  # assumed: not published
    weight_decay: float = 0.1  # report
    gradient_clipping_threshold: float | None = 1.0  # report
    z_loss: float = 0.0  # assumed: not published
    max_nonfinite_steps: int = 10

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(
            self,
            "train_tokens",
            "horizon_tokens",
            "gradient_clipping_threshold",
            "adam_eps",
            "max_nonfinite_steps",
            *(["learning_rate"] if self.learning_rate != "law" else []),
        )
        for name in ("warmup_tokens", "start_tokens", "weight_decay", "z_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("adam_b1", "adam_b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"optimizer.{name} is {getattr(self, name)}; expected 0 or more, below 1"
                )
        if not 0 <= self.final_learning_rate_fraction <= 1:
            raise ValueError(
                f"optimizer.final_learning_rate_fraction is {self.final_learning_rate_fraction}; "
                "expected between 0 and 1"
            )
        if self.horizon_tokens is not None and self.warmup_tokens >= self.horizon_tokens:
            raise ValueError(
                f"optimizer.warmup_tokens ({self.warmup_tokens}) does not end before "
                f"horizon_tokens ({self.horizon_tokens})"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run is saved and what it starts from.

    Attributes:
        checkpoint_period: steps between saves; the last step is always saved.
        keep_last: newest checkpoints that are kept.
        keep_period: checkpoints at multiples of this step are kept for ever; None keeps none of
            them.
        async_checkpointing: write while training goes on.
        load_parameters_path: checkpoint or converted folder whose weights a fresh run starts from,
            cast to ``execution.weight_dtype``.
        load_full_state_path: checkpoint whose weights and optimizer state it starts from (the next
            phase).
    """

    checkpoint_period: int = 1000
    keep_last: int = 3
    keep_period: int | None = None
    async_checkpointing: bool = True
    load_parameters_path: str | None = None
    load_full_state_path: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "checkpoint_period", "keep_last", "keep_period")
        if self.load_parameters_path is not None and self.load_full_state_path is not None:
            raise ValueError(
                "checkpoint: set load_parameters_path or load_full_state_path, not both"
            )


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
        modes: ways of predicting, see ``cwm_jax.evals.traces``.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run; ``configs/*.py`` each return one from ``get_config()``.

    Attributes:
        run_name: names the folder below base_output_directory; a run whose folder exists is
            resumed.
        seed: of the weights' initial values and of the order of the data.
        steps: stop after this many steps (a resumable cut); None runs through
            optimizer.train_tokens.
    """

    run_name: str
    model: ModelConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    execution: ExecutionConfig = ExecutionConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    trace_evaluation: TraceEvaluationConfig | None = None
    base_output_directory: str = "runs"
    seed: int = 0
    steps: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "steps")
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
