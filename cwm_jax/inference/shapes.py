"""The few shapes of an engine's calls, and requests laid out in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from cwm_jax.inference.cache import CacheLayout, Extension
from cwm_jax.inference.choice import Choice, num_words, pack_allowed
from cwm_jax.inference.requests import MAX_STOP_TOKENS
from cwm_jax.inference.rows import Rows
from cwm_jax.inference.scheduler import Piece, Row
from cwm_jax.model.cache import Places

_LEAST_TOKENS = 64  # assumed: of a prefill call, and fourfold steps of it
_LEAST_CONTEXT = 512  # assumed: likewise of what it reads
_LEAST_KEYS = 128  # assumed: read by a decode step, and doublings of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes are rounded up: those of prompts and rows by fours, of keys by twos.

    Attributes:
        layout: of the cache.
        nowhere: a page that there is not.
        prefill_tokens: the most of a prefill call.
        max_rows: the most of a decode call.
        batch_shards: rows of a prefill call, and what divides those of a decode call.
        reads_in_place: whether decoding reads what is there alone, whatever the size.
    """

    layout: CacheLayout
    nowhere: int
    prefill_tokens: int
    max_rows: int
    batch_shards: int
    reads_in_place: bool

    @property
    def extensions(self) -> list[tuple[int, int]]:
        """Of all prefill calls: tokens, and tokens of the context."""
        return [(T, context) for T in self._token_sizes for context in self._context_sizes]

    @property
    def decodings(self) -> list[tuple[int, int]]:
        """Of all decode calls: rows, and keys that are read."""
        return [(B, num_keys) for B in self._row_sizes for num_keys in self._key_sizes]

    @property
    def _token_sizes(self) -> list[int]:
        return _sizes(_LEAST_TOKENS, self.prefill_tokens, 4)

    @property
    def _context_sizes(self) -> list[int]:
        return [0, *_sizes(_LEAST_CONTEXT, self.layout.max_length, 4)]

    @property
    def _key_sizes(self) -> list[int]:
        if self.reads_in_place:
            return [self.layout.max_length]
        return _sizes(_LEAST_KEYS, self.layout.max_length, 2)

    @property
    def _row_sizes(self) -> list[int]:
        most = -(-self.max_rows // self.batch_shards)
        return [size * self.batch_shards for size in _sizes(1, most, 4)]

    def num_keys(self, longest: int) -> int:
        """For rows of at most so many tokens."""
        return _at_least(min(longest, self.layout.max_length), self._key_sizes)

    def extension(self, rows: Sequence[Sequence[Piece]]) -> Extension:
        """Pieces of prompts, ``batch_shards`` rows of them."""
        used = max(sum(len(piece.tokens) for piece in row) for row in rows)
        context = max((row[0].start for row in rows if row), default=0)
        T = _at_least(used, self._token_sizes)
        whole = self.no_extension(T, _at_least(context, self._context_sizes))
        for b, pieces in enumerate(rows):
            start = 0
            for number, piece in enumerate(pieces, start=1):
                part = slice(start, start := start + len(piece.tokens))
                self._put(whole, (b, part), piece, number)
            if pieces:
                whole.context_lengths[b] = pieces[0].start
                for kind, found in pieces[0].context.items():
                    whole.context[kind][b, : len(found)] = found
        return whole

    def _put(self, whole: Any, place: tuple[int, slice], piece: Piece, number: int) -> None:
        positions = piece.start + np.arange(len(piece.tokens))
        whole.tokens[place], whole.segment_ids[place] = piece.tokens, number
        whole.positions[place] = positions
        for kind, pages in piece.pages.items():
            whole.places[kind].pages[place] = np.where(pages < 0, self.nowhere, pages)
            whole.places[kind].slots[place] = positions % self.layout.page_tokens

    def no_extension(self, T: int, context_tokens: int) -> Any:
        """An ``Extension`` of padding alone, in NumPy arrays."""
        B, kinds = self.batch_shards, self.layout.kinds
        context = {kind: self.layout.context_pages(kind, context_tokens) for kind in kinds}
        return Extension(
            _zeros(B, T),
            _zeros(B, T),
            _zeros(B, T),
            {kind: Places(_zeros(B, T) + self.nowhere, _zeros(B, T)) for kind in kinds},
            {kind: _zeros(B, n) for kind, n in context.items()},
            _zeros(B),
        )

    def rows(self, rows: Sequence[Row], vocab_size: int) -> Rows:
        """Rows that decode together."""
        whole = self.no_rows(_at_least(len(rows), self._row_sizes), vocab_size)
        for b, row in enumerate(rows):
            request, sampling = row.request, row.request.sampling
            whole.tokens[b], whole.lengths[b] = request.tokens[-1], row.num_cached
            whole.limits[b], whole.active[b] = request.limit, True
            whole.stops[b, : len(sampling.stop_token_ids)] = sampling.stop_token_ids
            for kind, table in row.tables.items():
                whole.pages[kind][b] = np.maximum(table, 0)
            choice = whole.choice
            choice.temperature[b], choice.top_k[b] = sampling.temperature, sampling.top_k
            choice.top_p[b], choice.min_p[b] = sampling.top_p, sampling.min_p
            choice.keys[b] = request.key
            if row.allowed is not None:
                choice.allowed[b] = pack_allowed(row.allowed, vocab_size)
        return whole

    def no_rows(self, B: int, vocab_size: int) -> Any:
        """``Rows`` of padding alone, in NumPy arrays."""
        floats = np.float32
        choice = Choice(
            temperature=_zeros(B, dtype=floats),
            top_k=_zeros(B),
            top_p=_zeros(B, dtype=floats) + 1,
            min_p=_zeros(B, dtype=floats),
            keys=_zeros(B, 2, dtype=np.uint32),
            allowed=~_zeros(B, num_words(vocab_size), dtype=np.uint32),
        )
        return Rows(
            tokens=_zeros(B),
            lengths=_zeros(B),
            limits=_zeros(B),
            active=_zeros(B, dtype=bool),
            stops=_zeros(B, MAX_STOP_TOKENS) - 1,
            pages={kind: _zeros(B, self.layout.row_pages(kind)) for kind in self.layout.kinds},
            choice=choice,
        )


def _zeros(*shape: int, dtype: Any = np.int32) -> Any:
    return np.zeros(shape, dtype)


def _at_least(size: int, sizes: list[int]) -> int:
    return next(s for s in sizes if s >= size)


def _sizes(least: int, most: int, factor: int) -> list[int]:
    """``least`` and its multiples by powers of ``factor``, and ``most``."""
    sizes = []
    while least < most:
        sizes.append(least)
        least *= factor
    return [*sizes, most]
