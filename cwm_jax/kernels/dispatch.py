"""One entry for attention; the implementation is named, and none falls back silently.

B batch, T query positions, S key positions, N query heads, K kv heads, H head width.
"""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from cwm_jax.kernels.chunked import chunked_attention
from cwm_jax.kernels.mask import IntervalMask, causal_mask, interval_mask
from cwm_jax.kernels.reference import reference_attention


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    sliding_window: int | None = None,
    scale: float | None = None,
    implementation: str = "auto",
    block_tokens: int | None = None,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention under CWM's mask: causal AND window AND same document.

    Args:
        q, k, v: RoPE already applied; query head n reads kv head ``n // (N/K)``.
        mask: from ``interval_mask``, made once for all layers of a window; None makes it from the
            next two.
        segment_ids: int32, 0 is padding (it sees nothing, outputs 0 and has zero gradient), equal
            neighbours are one document; None is one document per row.
        sliding_window: keys that a query sees, its own included; None sees the whole document so
            far.
        scale: of the scores; None is ``H**-0.5``.
        implementation: ``reference`` (dense oracle), ``chunked`` (blocked XLA, any device);
            ``auto`` is ``chunked``.
        block_tokens: block size of ``chunked``; None is the measured default.

    Returns:
        Array of q's shape and dtype; softmax and sums are in float32.

    Raises:
        ValueError: shapes that do not fit, a window below 1, or an unknown implementation.
    """
    _check(q, k, v, mask, segment_ids, sliding_window)
    if mask is None and segment_ids is None:
        mask = causal_mask(*q.shape[:2], sliding_window)
    elif mask is None:
        mask = interval_mask(segment_ids, sliding_window)
    if scale is None:
        scale = float(q.shape[-1] ** -0.5)
    if implementation == "reference":
        return reference_attention(q, k, v, mask, scale=scale)
    if implementation in ("auto", "chunked"):
        return chunked_attention(q, k, v, mask, scale=scale, block_tokens=block_tokens)
    raise ValueError(
        f"attention implementation is {implementation!r}; expected 'auto', 'reference' or 'chunked'"
    )


def _check(q, k, v, mask, segment_ids, sliding_window) -> None:
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"attention got q {q.shape}, k {k.shape}, v {v.shape}; expected [B, T, N, H] and "
            "twice [B, S, K, H]"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads do not divide into {k.shape[2]} kv heads")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(
            f"sliding_window is {sliding_window}; expected 1 or more (it counts the query)"
        )
    if mask is not None:
        if segment_ids is not None or sliding_window is not None:
            raise ValueError("attention got mask and segment_ids or sliding_window; expected one")
        sizes = (*mask.key_start.shape, mask.query_start.shape[1])
        if sizes != (*q.shape[:2], k.shape[1]):
            raise ValueError(
                f"mask is for {sizes[0]} rows of {sizes[1]} queries and {sizes[2]} keys; got q "
                f"{q.shape}, k {k.shape}"
            )
        return
    if q.shape[1] != k.shape[1]:
        raise ValueError(
            f"attention got {q.shape[1]} queries and {k.shape[1]} keys; expected equal numbers, or "
            "a mask made with query_index"
        )
    if segment_ids is not None and segment_ids.shape != q.shape[:2]:
        raise ValueError(f"segment_ids has shape {segment_ids.shape}; expected {q.shape[:2]}")
