"""What a run reads: its sources, their mixture, the tokenizer."""

from __future__ import annotations

import dataclasses
from typing import Literal

from cwm_jax.config.schema import check_positive, check_types


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
            as plain text, each with an assertion of its output in place of its trace),
            ``trace_dialogs`` (its programs as dialogs that ask for the output, the trace in words
            as the answer's reasoning), ``chat`` (dialogs in JSONL, see ``cwm_jax.data.dialogs``).
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
        reasoning: of dialogs: how it is written, as ``<think>`` in ``text`` (the released model) or
            between the two reserved ``tokens`` (hybrid: off unless asked for; report, SFT).
    """

    name: str
    kind: Literal[
        "stdlib", "folder", "jsonl", "parquet", "traces", "trace_outputs", "trace_dialogs", "chat"
    ]
    path: str | None = None
    glob: str | None = None
    text_field: str = "text"
    weight: float = 1.0
    epochs: float | None = None
    non_utf8: Literal["skip", "bytes"] = "skip"
    generate: GeneratedTraces | None = None
    reasoning: Literal["text", "tokens"] = "text"

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
                "'traces', 'trace_outputs' or 'trace_dialogs', which alone can be generated: drop "
                "generate"
            )
        if self.epochs is not None and self.weight != 1.0:
            raise ValueError(
                f"source {self.name!r}: weight is {self.weight} and epochs {self.epochs}; expected "
                "one of them: drop epochs, or leave weight at 1.0"
            )

    @property
    def is_of_episodes(self) -> bool:
        """Whether the documents come from a corpus of traces."""
        return self.kind in ("traces", "trace_outputs", "trace_dialogs")

    @property
    def is_of_dialogs(self) -> bool:
        return self.kind in ("trace_dialogs", "chat")


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
        sources: corpora, mixed by their weights or epochs; none where ``rl`` is set.
        cache_directory: where tokenised shards (and a trained tokenizer) are kept and found again.
        heldout_fraction: share of documents, chosen by a hash of their name, that is never trained
            on.
        packing: ``concat_then_split`` fills every row and cuts documents at its end; ``first_fit``
            and ``best_fit`` keep documents whole (longer ones are cut into rows first) and pad.
        long_dialogs: what becomes of a dialog that is longer than a row: ``cut`` where rows end, so
            that what follows is learnt without what stands before it; or ``split`` at turns into
            pieces that fit, each with the dialog's opening before it (``cwm_jax.data.pieces``),
            which ``first_fit`` and ``best_fit`` can. (assumed: not published)
        shuffle: draw documents in a random order that the run's seed fixes, anew each epoch.
        prefetch_rows: packed rows prepared ahead of the step (for each length bucket).
        num_streams: parts into which documents are dealt, each packed by itself, whose rows make a
            batch. A host reads only those of its rows: at least as many as hosts spare each the
            others' documents. They are part of the run, whatever the hosts.
        length_buckets: all rows of a step are of one bucket's documents, so that no device waits
            for another's long ones; buckets have their shares of the tokens. Empty: no buckets.
        trace_context_loss: count the tokens before the first frame of a trace, or before the output
            of ``trace_outputs``, in the loss too.
            (assumed off: not published)
        observation_loss: share of the results of tools in dialogs that count in the loss too, each
            whole or not at all, drawn by a hash of the dialog's tokens and the result's number: the
            same in every epoch, packing and run (report: 0.5 in mid-training).
    """

    sources: tuple[SourceConfig, ...]
    cache_directory: str = "runs/data"
    heldout_fraction: float = 0.02
    packing: Literal["concat_then_split", "first_fit", "best_fit"] = "concat_then_split"
    long_dialogs: Literal["cut", "split"] = "cut"
    shuffle: bool = True
    prefetch_rows: int = 64
    num_streams: int = 1
    length_buckets: tuple[LengthBucket, ...] = ()
    trace_context_loss: bool = False
    observation_loss: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.observation_loss, bool):
            raise ValueError(
                f"data.observation_loss is {self.observation_loss}; expected a share from 0 to 1: "
                f"write {float(self.observation_loss)}"
            )
        check_types(self)
        check_positive(self, "prefetch_rows", "num_streams")
        if not 0 <= self.observation_loss <= 1:
            raise ValueError(
                f"data.observation_loss is {self.observation_loss}; expected a share from 0 to 1"
            )
        if self.long_dialogs == "split" and self.packing == "concat_then_split":
            raise ValueError(
                "data.long_dialogs is 'split' and data.packing 'concat_then_split', which cuts "
                "dialogs where rows end; expected a packing that keeps pieces whole: set "
                "data.packing='best_fit'"
            )
        names = [source.name for source in self.sources]
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
