"""The rows that the runs of a sweep read: tokenised once, the same for every run of a seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from cwm_jax.config import RunConfig
from cwm_jax.data.loader import Loader, heldout_rows
from cwm_jax.data.mixture import source_shares
from cwm_jax.data.packing import Row, cut_rows
from cwm_jax.data.prepare import prepare_all
from cwm_jax.data.vocabulary import load_or_train_tokenizer
from cwm_jax.trace.corpus import generate_corpus


class SweepRows:
    """Corpora, tokenizer and shards of a run's sources, made where they are not there yet."""

    def __init__(self, base: RunConfig):
        for source in base.data.sources:
            if source.generate is not None:
                generate_corpus(source)
        tokenizer = load_or_train_tokenizer(base.tokenizer, base.data)
        self._base = base
        self._shards = prepare_all(base.data, tokenizer, model_vocab_size=base.model.vocab_size)

    @property
    def train_tokens(self) -> int:
        """Different ones that there are, of all sources."""
        return sum(shards.manifest.train.tokens for shards in self._shards)

    def micro_batches(self, seed: int, *, train_tokens: int) -> Iterator[Row]:
        """Endless ones, in the order in which ``train.py`` reads them for that seed.

        Args:
            seed: of the order.
            train_tokens: of the run, which sources with a number of epochs need.
        """
        base, rows = self._base, int(self._base.batch.per_device_batch_size)
        shares = source_shares(base.data.sources, self._shards, train_tokens=train_tokens)
        with Loader(
            self._shards,
            base.data,
            shares=shares,
            max_target_length=base.batch.max_target_length,
            seed=seed,
            own_rows=tuple(range(rows)),
            micro_batch_rows=rows,
        ) as loader:
            while True:
                yield loader.next_rows(rows)

    def repeated(self, seed: int, *, train_tokens: int, unique_tokens: int) -> Iterator[Row]:
        """The first ``unique_tokens``, as rows in a new order each time round."""
        T, rows = self._base.batch.max_target_length, int(self._base.batch.per_device_batch_size)
        count = max(rows, unique_tokens // T)
        read = self.micro_batches(seed, train_tokens=train_tokens)
        first = list(itertools.islice(read, -(-count // rows)))
        kept = {name: np.concatenate([row[name] for row in first])[:count] for name in first[0]}
        random = np.random.default_rng(seed)
        order = itertools.chain.from_iterable(random.permutation(count) for _ in itertools.count())
        while True:
            chosen = list(itertools.islice(order, rows))
            yield {name: values[chosen] for name, values in kept.items()}

    def heldout(self, *, train_tokens: int) -> list[Row]:
        """``logging.eval_rows`` rows of no training document, as micro-batches."""
        base, size = self._base, int(self._base.batch.per_device_batch_size)
        rows = heldout_rows(
            self._shards,
            base.data,
            shares=source_shares(base.data.sources, self._shards, train_tokens=train_tokens),
            max_target_length=base.batch.max_target_length,
            num_rows=base.logging.eval_rows,
        )
        return cut_rows(rows, size)
