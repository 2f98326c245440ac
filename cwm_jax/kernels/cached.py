"""Attention of new tokens to keys that a cache keeps, in portable XLA: dense over the slots.

The slots can be cut into splits whose softmaxes are combined in the end, exactly: on a device of
many cores one long cache is then read by all of them. ``kernels/decode.py`` does the same in one
GPU kernel, and reads the live slots only. Where the cache lies in pages, this copies them together
first; the GPU kernel reads them where they are.

B batch, T queries, S slots, N heads, K kv heads, G = N/K, H head width, P splits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8

LEAST = -1e30  # below every score, and finite: a split may hold nothing that a query sees


def cached_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"] | Int8[Array, "B K S H"],
    v: Float[Array, "B K S H"] | Int8[Array, "B K S H"],
    positions: Int[Array, "B T"],
    *,
    sliding_window: int | None,
    scale: float | None = None,
    k_scale: Float[Array, "B K S"] | None = None,
    v_scale: Float[Array, "B K S"] | None = None,
    ring: bool = False,
    num_splits: int = 1,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention under CWM's mask, in rows of one document each.

    Args:
        q: RoPE applied; query head n reads kv head ``n // (N/K)``.
        k, v: slot s holds the row's position s, the queries' own included; int8 with scales.
        positions: of the queries, below S unless ``ring``; slots after them may hold anything
            finite. A query at a negative position sees nothing and gives 0.
        sliding_window: keys that a query sees, its own included; None sees all before it.
        scale: of the scores; None is ``H**-0.5``.
        k_scale, v_scale: a slot's key is ``k * k_scale``, its value ``v * v_scale``.
        ring: slot s holds the newest position p, up to the row's largest of ``positions``, with
            ``p % S == s``: a local layer reads S slots however long the row is. The T queries of a
            row are neighbours then.
        num_splits: parts of the slots with a softmax each; S is a multiple of it.

    Raises:
        ValueError: splits that do not divide the slots, one scale without the other or without an
            int8 cache, or a ring that has lost keys which a query sees.
    """
    check_cache(q, k, v, k_scale, v_scale, sliding_window, ring, num_slots=k.shape[2])
    (B, T, N, H), (K, S), P = q.shape, k.shape[1:3], num_splits
    if S % P:
        raise ValueError(
            f"num_splits is {P} for a cache of {S} slots; expected a divisor of the slots"
        )
    k, v = (x.reshape(B, K, P, S // P, H).astype(q.dtype) for x in (k, v))
    rows = fold_queries(q, K)
    scores = jnp.einsum("bkrh,bkpsh->bkprs", rows, k, preferred_element_type=jnp.float32)
    scores *= H**-0.5 if scale is None else scale
    if k_scale is not None:
        scores *= _split(k_scale, P)[:, :, :, None]
    visible = visible_slots(positions, S, sliding_window, ring)
    visible = jnp.repeat(visible, N // K, axis=1).reshape(B, 1, T * N // K, P, S // P)
    scores = jnp.where(visible.swapaxes(2, 3), scores, -jnp.inf)
    peak = jnp.maximum(scores.max(-1), LEAST)
    weights = jnp.exp(scores - peak[..., None])
    total = weights.sum(-1)
    if v_scale is not None:
        weights *= _split(v_scale, P)[:, :, :, None]
    out = jnp.einsum(
        "bkprs,bkpsh->bkprh", weights.astype(q.dtype), v, preferred_element_type=jnp.float32
    )
    return unfold_queries(combine_splits(Partial(out, total, peak)), T).astype(q.dtype)


def cached_attention_in_pages(
    q: Float[Array, "B T N H"],
    k: Float[Array, "pages K slots H"] | Int8[Array, "pages K slots H"],
    v: Float[Array, "pages K slots H"] | Int8[Array, "pages K slots H"],
    pages: Int[Array, "B n"],
    positions: Int[Array, "B T"],
    *,
    k_scale: Float[Array, "pages K slots"] | None = None,
    v_scale: Float[Array, "pages K slots"] | None = None,
    **options,
) -> Float[Array, "B T N H"]:
    """``cached_attention`` to rows whose slots lie in pages, S = n * slots.

    Args:
        q, positions, options: as there.
        k, v, k_scale, v_scale: pages of any rows.
        pages: of each row, in the order of its slots.
    """

    def gather(x) -> Any:
        if x is None:
            return None
        rows = x[pages].swapaxes(1, 2)  # [B, K, n, slots, ...]
        return rows.reshape(*rows.shape[:2], -1, *rows.shape[4:])

    k, v, k_scale, v_scale = map(gather, (k, v, k_scale, v_scale))
    return cached_attention(q, k, v, positions, k_scale=k_scale, v_scale=v_scale, **options)


class Partial(NamedTuple):
    """Attention to the slots of one split, each relative to its own largest score."""

    out: Float[Array, "B K P R H"]
    """Sum of ``exp(score - peak)`` times the value."""
    total: Float[Array, "B K P R"]
    peak: Float[Array, "B K P R"]


def combine_splits(partial: Partial) -> Float[Array, "B K R H"]:
    """The softmax over all splits; 0 for a row that sees nothing."""
    share = jnp.exp(partial.peak - partial.peak.max(2, keepdims=True))
    total = jnp.sum(partial.total * share, axis=2)
    out = jnp.sum(partial.out * share[..., None], axis=2)
    return out / jnp.where(total > 0, total, 1.0)[..., None]


def visible_slots(
    positions: Int[Array, "B T"], num_slots: int, sliding_window: int | None, ring: bool
) -> Bool[Array, "B T S"]:
    """Which slots each query sees; the arguments are those of ``cached_attention``."""
    held = jnp.arange(num_slots, dtype=jnp.int32)[None]
    if ring:
        held = ring_positions(positions.max(1), num_slots)
    age = positions[:, :, None] - held[:, None]
    visible = (age >= 0) & (held >= 0)[:, None]
    return visible if sliding_window is None else visible & (age < sliding_window)


def ring_positions(newest: Int[Array, " B"], num_slots: int) -> Int[Array, "B S"]:
    """The position that each slot of a ring holds, ``newest`` the last; below 0: none yet."""
    newest = newest[:, None]
    return newest - (newest - jnp.arange(num_slots, dtype=jnp.int32)) % num_slots


def fold_queries(q: Float[Array, "B T N H"], K: int) -> Float[Array, "B K R H"]:
    """The queries of a group as rows, ``R = T * N/K``."""
    B, T, N, H = q.shape
    return q.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4).reshape(B, K, T * N // K, H)


def unfold_queries(rows: Float[Array, "B K R H"], T: int) -> Float[Array, "B T N H"]:
    """The inverse of ``fold_queries``."""
    B, K, R, H = rows.shape
    return rows.reshape(B, K, T, R // T, H).transpose(0, 2, 1, 3, 4).reshape(B, T, K * R // T, H)


def check_cache(
    q, k, v, k_scale, v_scale, sliding_window: int | None, ring: bool, *, num_slots: int
) -> None:
    """Raises ValueError as ``cached_attention`` says."""
    scales = (k_scale is not None, v_scale is not None)
    is_int8 = (k.dtype == jnp.int8, v.dtype == jnp.int8)
    if scales != is_int8:
        raise ValueError(
            f"cache of {k.dtype} keys and {v.dtype} values got k_scale: {scales[0]}, v_scale: "
            f"{scales[1]}; expected a scale for each int8 array and for no other"
        )
    T, S = q.shape[1], num_slots
    if ring and (sliding_window is None or sliding_window + T - 1 > S):
        raise ValueError(
            f"a ring of {S} slots cannot hold what {T} queries see of a window of "
            f"{sliding_window}; expected a window and at least window + queries - 1 slots"
        )


def _split(x: Float[Array, "B K S"], P: int) -> Float[Array, "B K P S2"]:
    return x.reshape(*x.shape[:2], P, -1)
