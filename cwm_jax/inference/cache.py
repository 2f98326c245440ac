"""The cache of some rows: made empty, extended by many tokens of a row, or by one of every row.

Pure functions over ``(params, cache, tokens)``: jit them with the cache donated, or it is copied.

Local layers keep their window alone. A cache is pages of ``page_tokens`` positions; the pages of a
global layer hold a whole row, those of a local layer form a ring: position p lies in page
``p // page_tokens % n`` of its row. ``CacheLayout`` says how many there are of each, and
``extend_pages`` and ``decode_pages`` take any pages for any row: the engine deals them out as rows
grow, and shares them. A ``KVCache`` has fixed ones, for a researcher's loop.

C rows of the cache, B rows and T tokens of a call, V vocab.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cwm_jax.config import SLIDING_ATTENTION, ExecutionConfig, ModelConfig
from cwm_jax.kernels.mask import extending_mask
from cwm_jax.model.cache import Caches, Decoding, Extending, LayerCache, Places
from cwm_jax.model.transformer import (
    DEFAULT_EXECUTION,
    Params,
    cached_hidden_states,
    logits_from_hidden,
)
from cwm_jax.sharding import shard

PAGE_TOKENS = 64  # assumed: a tile of the GPU kernel; less wastes less, more is indexed faster


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """Sizes of a cache in pages.

    Attributes:
        max_length: tokens of a row.
        page_tokens: positions of a page.
        spare_tokens: positions beyond the window of which a local layer's ring keeps room: as many
            as a row may grow while its pages stay the same.
        stacked: whether the caches of layers lie in stacks, as the weights do; False after
            ``separate_layers``.
    """

    model_config: ModelConfig
    max_length: int
    page_tokens: int = PAGE_TOKENS
    spare_tokens: int = 1
    stacked: bool = True

    @property
    def kinds(self) -> tuple[str, ...]:
        """Layer types that the model has, the global one first."""
        return tuple(sorted({*self.model_config.layer_types}))

    def row_pages(self, kind: str) -> int:
        """Pages that a whole row has in a layer of that type."""
        whole = -(-self.max_length // self.page_tokens)
        window = self.model_config.window(kind)
        if window is None:
            return whole
        # the newest position may be the first of its page, the oldest seen the last of its own
        return min(whole, -(-(window + self.spare_tokens - 1) // self.page_tokens) + 1)

    def context_pages(self, kind: str, num_tokens: int) -> int:
        """Pages that hold what a token sees of the ``num_tokens`` before it."""
        pages = -(-num_tokens // self.page_tokens)
        window = self.model_config.window(kind)
        if window is None:
            return pages
        return min(pages, -(-(window - 1) // self.page_tokens) + 1)

    def first_context_page(self, kind: str, num_tokens):
        """Number of the page that holds the first of them; an int or an array of them."""
        window = self.model_config.window(kind)
        if window is None:
            return num_tokens * 0
        first = num_tokens - (window - 1)
        return first * (first > 0) // self.page_tokens

    def page_bytes(self, kind: str, dtype: str) -> int:
        """Of a page in all layers of that type; int8 has a float32 scale per head and token."""
        config = self.model_config
        num_layers = sum(layer_type == kind for layer_type in config.layer_types)
        head = config.head_dim * jnp.dtype(dtype).itemsize + (4 if dtype == "int8" else 0)
        return 2 * num_layers * self.page_tokens * config.num_key_value_heads * head


def init_pages(layout: CacheLayout, num_pages: Mapping[str, int], *, dtype: str) -> Caches:
    """Empty pages, so many in every layer of a type; ``dtype`` may be int8."""
    config, kinds = layout.model_config, layout.model_config.layer_types
    K, H = config.num_key_value_heads, config.head_dim

    def zeros(kind: str, repeats: int) -> LayerCache:
        shape = (repeats, num_pages[kind], K, layout.page_tokens, H)
        axes = ("layers", None, "act_kv_heads", None, "head_dim")

        def make(shape, axes, dtype):
            return shard(jnp.zeros(shape, dtype), *axes)

        arrays = [make(shape, axes, dtype) for _ in range(2)]
        if dtype == "int8":
            arrays += [make(shape[:-1], axes[:-1], jnp.float32) for _ in range(2)]
        return LayerCache(*arrays)

    period = config.period if layout.stacked else 0
    return Caches(
        [zeros(kind, config.num_repeats) for kind in kinds[:period]],
        [zeros(kind, 1) for kind in kinds[period * config.num_repeats :]],
    )


class Extension(NamedTuple):
    """Tokens that go on in rows; the same for all layers of a type."""

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    """In their rows."""
    segment_ids: Int[Array, "B T"]
    """1 goes on where the context of the call's row ends; others are rows that begin; 0 padding."""
    places: dict[str, Places]
    """By layer type: where they are written."""
    context: dict[str, Int[Array, "B n"]]
    """By layer type: pages of the context, from ``CacheLayout.first_context_page`` on."""
    context_lengths: Int[Array, " B"]


def extend_pages(
    params: Params,
    layout: CacheLayout,
    caches: Caches,
    extension: Extension,
    *,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> tuple[Float[Array, "B T D"], Caches]:
    """What the output head reads at each token, and the caches with them."""
    P, T = layout.page_tokens, extension.tokens.shape[1]

    def access(kind: str) -> Extending:
        pages, lengths = extension.context[kind], extension.context_lengths
        offsets = lengths - layout.first_context_page(kind, lengths) * P
        num_keys = pages.shape[1] * P + T
        if not pages.shape[1]:
            offsets = jnp.zeros_like(offsets)
        window = layout.model_config.window(kind)
        mask = extending_mask(extension.segment_ids, offsets, num_keys, window)
        return Extending(extension.places[kind], pages, offsets, mask)

    return cached_hidden_states(
        params,
        layout.model_config,
        extension.tokens,
        positions=extension.positions,
        caches=caches,
        access={kind: access(kind) for kind in layout.kinds},
        execution=execution,
    )


def decode_pages(
    params: Params,
    layout: CacheLayout,
    caches: Caches,
    tokens: Int[Array, " B"],
    *,
    lengths: Int[Array, " B"],
    active: Bool[Array, " B"],
    pages: Mapping[str, Int[Array, "B n"]] | None,
    num_keys: int | None = None,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> tuple[Float[Array, "B V"], Caches]:
    """Appends a token to each row: float32 logits of the token after it, and the caches with it.

    Args:
        params, layout, execution: as for ``extend_pages``.
        tokens: the next of each row.
        lengths: tokens that each row holds before.
        active: of other rows nothing is written.
        pages: of each row by layer type, ``CacheLayout.row_pages`` of them; None: ``caches`` are
            those of ``whole_rows``.
        num_keys: positions that are read, at least as many as the longest row then holds; None is
            all.
    """
    num_keys = min(num_keys or layout.max_length, layout.max_length)
    B, P = tokens.shape[0], layout.page_tokens

    def access(kind: str) -> Decoding:
        read = min(layout.row_pages(kind), -(-num_keys // P))
        ring = kind == SLIDING_ATTENTION and read * P < num_keys
        if pages is None:
            table, target = None, jnp.arange(B, dtype=jnp.int32)[:, None]
            slots = lengths % (read * P)
        else:
            table, slots = pages[kind], lengths % P
            place = (lengths // P % table.shape[1])[:, None]
            target, table = jnp.take_along_axis(table, place, axis=1), table[:, :read]
        target = jnp.where(active[:, None], target, _nowhere(caches))
        return Decoding(Places(target, slots[:, None]), table, lengths[:, None], ring)

    x, caches = cached_hidden_states(
        params,
        layout.model_config,
        tokens[:, None],
        positions=lengths[:, None],
        caches=caches,
        access={kind: access(kind) for kind in layout.kinds},
        execution=execution,
    )
    return logits_from_hidden(params, x)[:, 0], caches


def whole_rows(
    layout: CacheLayout, caches: Caches, pages: Mapping[str, Int[Array, "B n"]], num_keys: int
) -> Caches:
    """Copies of rows, as far as ``num_keys`` positions need them: row b is page b.

    For devices that would otherwise copy a row's pages together in each step.
    """

    def whole(kind: str, x):
        n = min(pages[kind].shape[1], -(-num_keys // layout.page_tokens))
        rows = x[:, pages[kind][:, :n]].swapaxes(2, 3)  # [R, B, K, n, slots, ...]
        return rows.reshape(*rows.shape[:3], -1, *rows.shape[5:])

    return _map_layers(layout, whole, caches)


def put_back(
    layout: CacheLayout,
    caches: Caches,
    rows: Caches,
    pages: Mapping[str, Int[Array, "B n"]],
    *,
    lengths: Int[Array, " B"],
    counts: Int[Array, " B"],
    max_count: int,
) -> Caches:
    """The caches with the tokens that ``whole_rows`` have gained.

    Args:
        layout, caches, pages: as of ``whole_rows``.
        rows: its result, with the tokens.
        lengths: of the rows before.
        counts: tokens gained, at most ``max_count``.
    """
    index = jnp.arange(max_count, dtype=jnp.int32)[None]
    positions, P = lengths[:, None] + index, layout.page_tokens

    def put(kind: str, x, row):
        n, S = pages[kind].shape[1], row.shape[3]
        target = jnp.take_along_axis(pages[kind], positions // P % n, axis=1)
        target = jnp.where(index < counts[:, None], target, _nowhere(caches))
        new = row[:, jnp.arange(row.shape[1])[:, None], :, positions % S]
        return x.at[:, target, :, positions % P].set(new, mode="drop")

    return _map_layers(layout, put, caches, rows)


def _map_layers(layout: CacheLayout, function, *caches: Caches) -> Caches:
    """``function(kind, *arrays)`` of every array of every layer."""
    kinds = layout.model_config.layer_types
    tail = kinds[len(kinds) - len(caches[0].tail) :]

    def of(kind: str, *layers: LayerCache) -> LayerCache:
        return jax.tree.map(lambda *arrays: function(kind, *arrays), *layers)

    return Caches(
        [of(kind, *x) for kind, *x in zip(kinds, *(c.layers for c in caches), strict=False)],
        [of(kind, *x) for kind, *x in zip(tail, *(c.tail for c in caches), strict=True)],
    )


def _nowhere(caches: Caches) -> int:
    return max(layer.keys.shape[1] for layer in (*caches.layers, *caches.tail))


# ---------------------------------------------------------------- rows with pages of their own


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of all layers for C rows, each one document from position 0."""

    caches: Caches
    lengths: Int[Array, " C"]
    """Tokens that each row holds; what lies in later slots is never seen."""
    layout: CacheLayout = dataclasses.field(metadata={"static": True})

    @property
    def max_length(self) -> int:
        """Tokens of a row."""
        return self.layout.max_length

    def pages(self, kind: str) -> Int[Array, "C n"]:
        """Of each row."""
        C, n = self.lengths.shape[0], self.layout.row_pages(kind)
        return jnp.arange(C * n, dtype=jnp.int32).reshape(C, n)


def init_cache(
    model_config: ModelConfig,
    batch_size: int,
    max_length: int,
    *,
    dtype: str = "float32",
    page_tokens: int = PAGE_TOKENS,
    stacked: bool = True,
) -> KVCache:
    """An empty cache of ``batch_size`` rows of ``max_length`` tokens; ``dtype`` may be int8.

    ``stacked`` is False for the parameters of ``separate_layers``.
    """
    layout = CacheLayout(model_config, max_length, page_tokens, stacked=stacked)
    num_pages = {kind: batch_size * layout.row_pages(kind) for kind in layout.kinds}
    caches = init_pages(layout, num_pages, dtype=dtype)
    return KVCache(caches, jnp.zeros(batch_size, jnp.int32), layout)


def extend(
    params: Params,
    cache: KVCache,
    tokens: Int[Array, "B T"],
    *,
    lengths: Int[Array, " B"],
    rows: Int[Array, " B"],
    num_cached: int | None = None,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> tuple[Float[Array, "B T D"], KVCache]:
    """Appends the first ``lengths`` of ``tokens``, padded on the right: a piece of each prompt.

    Args:
        params, execution: as for ``forward``.
        cache: its other rows stay as they are; give it to ``empty_rows`` to begin some anew.
        tokens: of each row; together with what it holds at most ``max_length``.
        lengths: 0 leaves a row as it is.
        rows: of the cache, no two the same; a row past the last one is written nowhere.
        num_cached: tokens that are read of a row at most, at least as many as the longest of
            ``rows`` holds; 0 if all are empty; None is all.

    Returns:
        What ``logits_from_hidden`` reads at each token, and the cache.
    """
    layout, P, T = cache.layout, cache.layout.page_tokens, tokens.shape[1]
    num_cached = min(layout.max_length if num_cached is None else num_cached, layout.max_length)
    before = cache.lengths.at[rows].get(mode="fill", fill_value=0)
    index = jnp.arange(T, dtype=jnp.int32)[None]
    positions, real = before[:, None] + index, index < lengths[:, None]
    places, context = {}, {}
    for kind in layout.kinds:
        table = cache.pages(kind).at[rows].get(mode="fill", fill_value=_nowhere(cache.caches))
        n = table.shape[1]
        pages = jnp.take_along_axis(table, positions // P % n, axis=1)
        kept = real & (index >= lengths[:, None] - n * P)  # a ring keeps its last round
        places[kind] = Places(jnp.where(kept, pages, _nowhere(cache.caches)), positions % P)
        first = layout.first_context_page(kind, before)[:, None]
        order = first + jnp.arange(layout.context_pages(kind, num_cached), dtype=jnp.int32)
        context[kind] = jnp.take_along_axis(table, order % n, axis=1)
    extension = Extension(tokens, positions, real.astype(jnp.int32), places, context, before)
    x, caches = extend_pages(params, layout, cache.caches, extension, execution=execution)
    after = cache.lengths.at[rows].add(lengths, mode="drop")
    return x, KVCache(caches, after, layout)


def decode(
    params: Params,
    cache: KVCache,
    tokens: Int[Array, " C"],
    *,
    num_keys: int | None = None,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> tuple[Float[Array, "C V"], KVCache]:
    """Appends one token to every row; float32 logits of the token after it.

    Args:
        params, execution: as for ``forward``.
        cache: a row that is full stays so, and its logits mean nothing.
        tokens: the next of each row.
        num_keys: positions that are read, at least as many as the longest row then holds; None is
            all.
    """
    logits, caches = decode_pages(
        params,
        cache.layout,
        cache.caches,
        tokens,
        lengths=cache.lengths,
        active=cache.lengths < cache.max_length,
        pages={kind: cache.pages(kind) for kind in cache.layout.kinds},
        num_keys=num_keys,
        execution=execution,
    )
    lengths = jnp.minimum(cache.lengths + 1, cache.max_length)
    return logits, KVCache(caches, lengths, cache.layout)


def empty_rows(cache: KVCache, rows: Int[Array, " B"]) -> KVCache:
    """The cache with those rows empty."""
    return dataclasses.replace(cache, lengths=cache.lengths.at[rows].set(0, mode="drop"))


def cache_bytes(cache: KVCache) -> int:
    """Of the keys and values, and the scales of an int8 cache."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(cache.caches))
