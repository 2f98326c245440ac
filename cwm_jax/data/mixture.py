"""Who gets how many of a run's tokens: sources by weight or epochs, and buckets of like length."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from cwm_jax.config import LengthBucket, SourceConfig
from cwm_jax.data.shards import Shards
from cwm_jax.data.sources import DataError

# Sources with epochs alone cannot fill a run to the token: their shares may miss 1 by this.
_ROUNDING = 0.01
# 2**64 over the golden ratio: multiples of it modulo 2**64 fill the range as evenly as can be.
_GOLDEN = 0x9E3779B97F4A7C15


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceShare:
    """A source's part of a run.

    Attributes:
        name: of the source.
        unique_tokens: of its training split.
        share: of the run's tokens, between 0 and 1.
        epochs: how often the run sees each of them.
    """

    name: str
    unique_tokens: int
    share: float
    epochs: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BucketPart:
    """The documents of one source that are in one bucket.

    Attributes:
        source: number of the source.
        indices: of the documents among the records of its training split; None: all of them.
        documents: how many there are.
        tokens: in them.
        share: of the run's tokens.
    """

    source: int
    indices: np.ndarray | None
    documents: int
    tokens: int
    share: float

    @property
    def documents_per_token(self) -> float:
        """Documents of this part that a token of the run draws on average."""
        return self.share * self.documents / self.tokens


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """Documents of like length, of all sources; without ``length_buckets`` all documents."""

    parts: tuple[BucketPart, ...]

    @property
    def share(self) -> float:
        """Of the run's tokens."""
        return sum(part.share for part in self.parts)


def source_shares(
    sources: Sequence[SourceConfig], shards: Sequence[Shards], *, train_tokens: int
) -> tuple[SourceShare, ...]:
    """What each source gets of a run of ``train_tokens``.

    A source with epochs gets ``epochs * unique tokens / train_tokens`` (report, section 4); those
    with a weight divide the rest.

    Args:
        sources: as in ``DataConfig``.
        shards: of each of them, in their order.
        train_tokens: of the run.

    Raises:
        DataError: the shares by epochs leave nothing to the others, exceed 1, or do not fill the
            run where no source has a weight.
    """
    unique = [s.manifest.train.tokens for s in shards]
    by_epochs = {
        number: source.epochs * tokens / train_tokens
        for number, (source, tokens) in enumerate(zip(sources, unique, strict=True))
        if source.epochs is not None
    }
    taken = sum(by_epochs.values())
    weights = sum(source.weight for source in sources if source.epochs is None)
    _check_filled(sources, unique, taken, train_tokens=train_tokens, weighted=weights > 0)
    scale = 1.0 if weights else 1 / taken
    found = []
    for number, (source, tokens) in enumerate(zip(sources, unique, strict=True)):
        by_weight = (1 - taken) * source.weight / weights if weights else 0.0
        share = by_epochs[number] * scale if number in by_epochs else by_weight
        epochs = share * train_tokens / tokens
        found.append(
            SourceShare(name=source.name, unique_tokens=tokens, share=share, epochs=epochs)
        )
    return tuple(found)


def _check_filled(
    sources: Sequence[SourceConfig],
    unique: Sequence[int],
    taken: float,
    *,
    train_tokens: int,
    weighted: bool,
) -> None:
    if taken < 1 if weighted else abs(taken - 1) <= _ROUNDING:
        return
    asked = ", ".join(
        f"{source.name} {source.epochs:g} x {tokens:,}"
        for source, tokens in zip(sources, unique, strict=True)
        if source.epochs is not None
    )
    if weighted:
        expected = "fewer, so that the sources with a weight get some: lower epochs or raise it"
    else:
        expected = (
            "as many: change epochs, set optimizer.train_tokens to "
            f"{round(taken * train_tokens)}, or give a source a weight to fill the rest"
        )
    raise DataError(
        f"the epochs of data.sources ask for {taken * train_tokens:,.0f} tokens ({asked}), "
        f"{taken:.1%} of optimizer.train_tokens ({train_tokens:,}); expected {expected}"
    )


def make_buckets(
    shards: Sequence[Shards],
    length_buckets: Sequence[LengthBucket],
    shares: Sequence[SourceShare],
) -> tuple[Bucket, ...]:
    """The training documents by length; one bucket of all where ``length_buckets`` is empty.

    Every source's share is divided over the buckets as its tokens are, so each bucket's share is
    the data's own.
    """
    if not length_buckets:
        parts = (_whole(number, s, shares[number].share) for number, s in enumerate(shards))
        return (Bucket(parts=tuple(parts)),)
    lengths = [s.lengths("train") for s in shards]
    limits = [bucket.max_document_tokens for bucket in length_buckets]
    buckets = []
    for above, longest in zip([None, *limits], limits, strict=False):
        parts = (
            _part(number, lengths[number], above, longest, share.share)
            for number, share in enumerate(shares)
        )
        buckets.append(Bucket(parts=tuple(part for part in parts if part is not None)))
    return tuple(buckets)


def _whole(number: int, shards: Shards, share: float) -> BucketPart:
    split = shards.manifest.train
    return BucketPart(
        source=number, indices=None, documents=split.documents, tokens=split.tokens, share=share
    )


def _part(
    number: int, lengths: np.ndarray, above: int | None, longest: int | None, share: float
) -> BucketPart | None:
    chosen = lengths > (above or 0)
    if longest is not None:
        chosen &= lengths <= longest
    indices = np.flatnonzero(chosen).astype(np.uint32)
    if not len(indices):
        return None
    tokens = int(lengths[indices].sum(dtype=np.int64))
    return BucketPart(
        source=number,
        indices=indices,
        documents=len(indices),
        tokens=tokens,
        share=share * tokens / int(lengths.sum(dtype=np.int64)),
    )


def bucket_of_step(buckets: Sequence[Bucket], seed: int, step: int) -> int:
    """The bucket of all rows of a step: each as often as its share, evenly spread.

    A function of the seed, the step and the shares alone, so that all hosts and a resumed run
    agree. After n steps the counts are off by at most about log n steps (golden-ratio sequence).
    """
    digest = hashlib.sha256(f"{seed}/length buckets".encode()).digest()
    start = int.from_bytes(digest[:8], "big")
    at = ((start + step * _GOLDEN) % 2**64 >> 11) / 2**53  # exact, and below 1
    ends = np.cumsum([bucket.share for bucket in buckets])
    return int(np.searchsorted(ends / ends[-1], at, side="right"))


def describe_shares(shares: Sequence[SourceShare]) -> Iterator[str]:
    """A line for each source, for the start of a run."""
    for share in shares:
        yield (
            f"source {share.name}: {share.unique_tokens:,} unique tokens, {share.share:.2%} of the "
            f"run, {share.epochs:.3g} epochs"
        )


def describe_buckets(
    buckets: Sequence[Bucket], length_buckets: Sequence[LengthBucket]
) -> Iterator[str]:
    """A line for each length bucket, for the start of a run; none without."""
    for bucket, config in zip(buckets, length_buckets, strict=False):
        documents = sum(part.documents for part in bucket.parts)
        text = length_bucket_text(config)
        yield f"bucket of {text}: {documents:,} documents, {bucket.share:.2%} of the run"


def length_bucket_text(bucket: LengthBucket) -> str:
    """``documents to 65,537 tokens, global attention capped at 32,768``."""
    longest, cap = bucket.max_document_tokens, bucket.attention_cap
    to = "all longer documents" if longest is None else f"documents to {longest:,} tokens"
    return f"{to}, global attention " + ("not capped" if cap is None else f"capped at {cap:,}")
