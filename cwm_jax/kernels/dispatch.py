"""One entry for attention: the implementation is named or chosen, and none falls back silently.

B batch, T query positions, S key positions, N query heads, K kv heads, H head width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Int, Int8

from cwm_jax.kernels.cached import cached_attention_in_pages
from cwm_jax.kernels.chunked import chunked_attention
from cwm_jax.kernels.flash import HEAD_DIMS
from cwm_jax.kernels.mask import IntervalMask, causal_mask, interval_mask
from cwm_jax.kernels.reference import reference_attention


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What ``attention`` would run, and why."""

    implementation: str
    device: str
    reason: str
    refused: dict[str, str]
    """Why each other implementation cannot run here, or comes later."""

    def __str__(self) -> str:
        lines = [f"{self.implementation} on {self.device}: {self.reason}"]
        return "\n".join(lines + [f"  not {name}: {why}" for name, why in self.refused.items()])


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
    explain: bool = False,
) -> Any:
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
        implementation: one of ``IMPLEMENTATIONS``, or ``auto``: the first of ``PREFERENCES`` for
            this process's devices that can honour the arguments. A name compiles for its device
            also where that is absent (ahead-of-time compilation).
        block_tokens: block size of ``chunked``; None is the measured default.
        explain: True returns an ``Explanation`` and computes nothing; shapes alone will do.

    Returns:
        Array of q's shape and dtype; softmax and sums are in float32.

    Raises:
        ValueError: shapes that do not fit, a window below 1, an unknown implementation, or one
            that cannot honour the arguments: the text names what can.
    """
    _check(q, k, v, mask, segment_ids, sliding_window)
    if mask is None:
        B, T = q.shape[:2]
        if segment_ids is None:
            mask = causal_mask(B, T, sliding_window)
        else:
            mask = interval_mask(segment_ids, sliding_window)
    chosen = _choose(implementation, q, mask)
    if explain:
        return chosen
    if scale is None:
        scale = float(q.shape[-1] ** -0.5)
    options = {"block_tokens": block_tokens} if chosen.implementation == "chunked" else {}
    run = IMPLEMENTATIONS[chosen.implementation].load()
    return run(q, k, v, mask, scale=scale, **options)


def attention_to_pages(
    q: Float[Array, "B T N H"],
    k: Float[Array, "pages K slots H"] | Int8[Array, "pages K slots H"],
    v: Float[Array, "pages K slots H"] | Int8[Array, "pages K slots H"],
    pages: Int[Array, "B n"],
    positions: Int[Array, "B T"],
    *,
    sliding_window: int | None,
    ring: bool = False,
    k_scale: Float[Array, "pages K slots"] | None = None,
    v_scale: Float[Array, "pages K slots"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "B T N H"]:
    """A few new tokens' attention to what a cache holds of their rows, in pages.

    Args:
        q, k, v, pages, positions, sliding_window, ring, k_scale, v_scale: as for
            ``cached_attention_in_pages``.
        implementation: as for ``attention``; see ``reads_pages_in_place``.

    Raises:
        ValueError: as the implementations do.
    """
    run = cached_attention_in_pages
    if reads_pages_in_place(implementation, q.shape[-1]):
        run = _lazy("decode", "decode_attention_in_pages")()
    return run(
        q,
        k,
        v,
        pages,
        positions,
        sliding_window=sliding_window,
        ring=ring,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def reads_pages_in_place(implementation: str, head_dim: int) -> bool:
    """Whether ``attention_to_pages`` is the GPU kernel, which reads the live slots alone.

    It is for ``triton`` and ``hopper``, and for ``auto`` on NVIDIA's devices if the head width is a
    power of two; every other name copies the pages together, in XLA.
    """
    if implementation == "auto":
        is_cuda = _device_class(jax.devices()[0]) in ("sm_90", "cuda")
        return is_cuda and head_dim >= 16 and not head_dim & (head_dim - 1)
    return implementation in ("triton", "hopper")


def pays_to_copy_rows(implementation: str, head_dim: int) -> bool:
    """Whether it pays to lay rows out whole before some steps, instead of in each.

    On a CPU, where a product reads its cache faster than pages are copied (measured, docs/LOG.md)
    and there is memory for both.
    """
    in_place = reads_pages_in_place(implementation, head_dim)
    return not in_place and _device_class(jax.devices()[0]) == "other"


# ---------------------------------------------------------------- what there is


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implementation:
    """What an implementation can honour; None is anything."""

    load: Callable[[], Callable[..., Any]]
    """Imports and returns ``run(q, k, v, mask, *, scale)``."""
    head_dims: tuple[int, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    packed: bool = True
    """False: only rows of one document without padding, a query for each key."""

    def why_not(self, q: Any, mask: IntervalMask) -> str | None:
        """What keeps it from these arguments, on whatever device."""
        if self.head_dims and q.shape[-1] not in self.head_dims:
            return f"head_dim is {q.shape[-1]}; expected {' or '.join(map(str, self.head_dims))}"
        if self.dtypes and q.dtype.name not in self.dtypes:
            return f"the dtype is {q.dtype.name}; expected {' or '.join(self.dtypes)}"
        if not self.packed and (mask.packed or not mask.aligned):
            what = "rows are packed" if mask.packed else "queries are a part of the row"
            return f"{what}; expected one document in each row and a query for each key"
        return None


def _lazy(module: str, name: str) -> Callable[[], Callable[..., Any]]:
    """Pallas' backends are imported when they are asked for: each takes a second."""

    def load():
        import importlib

        return getattr(importlib.import_module(f"cwm_jax.kernels.{module}"), name)

    return load


_HALF = ("bfloat16", "float16")
_CUDNN_HEAD_DIMS = tuple(range(8, 257, 8))

IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": Implementation(load=lambda: reference_attention),
    "chunked": Implementation(load=lambda: chunked_attention),
    "tpu": Implementation(load=_lazy("tpu", "tpu_attention"), head_dims=HEAD_DIMS),
    "hopper": Implementation(
        load=_lazy("hopper", "hopper_attention"),
        head_dims=HEAD_DIMS,
        dtypes=_HALF,
    ),
    "triton": Implementation(load=_lazy("triton", "triton_attention"), head_dims=HEAD_DIMS),
    "cudnn": Implementation(
        load=_lazy("library", "cudnn_attention"),
        head_dims=_CUDNN_HEAD_DIMS,
        dtypes=_HALF,
        packed=False,
    ),
    "splash": Implementation(load=_lazy("library", "splash_attention"), packed=False),
}

PREFERENCES: dict[str, tuple[tuple[str, str], ...]] = {
    "sm_90": (
        ("hopper", "on an H200 the fastest of JAX's, forward with backward, and repeatable"),
        ("triton", "the kernel for what hopper lacks"),
        ("chunked", "any shape"),
    ),
    "cuda": (("triton", "compiles for sm_80, untimed"), ("chunked", "any shape")),
    "tpu": (("tpu", "compiles for v5e, v5p and v6e, untimed"), ("chunked", "any shape")),
    "other": (("chunked", "portable XLA"),),
}
"""For each kind of device the implementations that ``auto`` tries, and the evidence: the first that
can honour the arguments runs. Measured in docs/LOG.md."""


def _choose(implementation: str, q: Any, mask: IntervalMask) -> Explanation:
    device = jax.devices()[0]
    why_not = {name: x.why_not(q, mask) for name, x in IMPLEMENTATIONS.items()}
    able = [name for name, why in why_not.items() if why is None]
    refused = {name: why for name, why in why_not.items() if why is not None}
    if implementation == "auto":
        for name, reason in PREFERENCES[_device_class(device)]:
            if name in able:
                return Explanation(name, device.device_kind, reason, refused)
    if implementation not in IMPLEMENTATIONS:
        names = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(
            f"attention implementation is {implementation!r}; expected 'auto' or one of {names}"
        )
    if implementation in refused:
        raise ValueError(
            f"attention implementation {implementation!r} cannot do this: "
            f"{refused[implementation]}; these can: {', '.join(able)}"
        )
    return Explanation(implementation, device.device_kind, "named", refused)


def _device_class(device: Any) -> str:
    if device.platform == "gpu" and "NVIDIA" in device.device_kind.upper():
        is_hopper = str(getattr(device, "compute_capability", "")).startswith("9.")
        return "sm_90" if is_hopper else "cuda"
    return "tpu" if device.platform == "tpu" else "other"


# ---------------------------------------------------------------- checks


def _check(q, k, v, mask, segment_ids, sliding_window) -> None:
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"attention got q {q.shape}, k {k.shape}, v {v.shape}; expected [B, T, N, H] and "
            "twice [B, S, K, H]"
        )
    if len({x.dtype for x in (q, k, v)}) > 1:
        raise ValueError(
            f"attention got q {q.dtype}, k {k.dtype}, v {v.dtype}; expected one dtype: cast them"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads do not divide into {k.shape[2]} kv heads")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(
            f"sliding_window is {sliding_window}; expected 1 or more (it counts the query)"
        )
    if mask is None:
        _check_rows(q, k, segment_ids)
    elif segment_ids is not None or sliding_window is not None:
        raise ValueError("attention got mask and segment_ids or sliding_window; expected one")
    else:
        _check_mask(q, k, mask)


def _check_rows(q, k, segment_ids) -> None:
    if q.shape[1] != k.shape[1]:
        raise ValueError(
            f"attention got {q.shape[1]} queries and {k.shape[1]} keys; expected equal numbers, or "
            "a mask made with query_index"
        )
    if segment_ids is not None and segment_ids.shape != q.shape[:2]:
        raise ValueError(f"segment_ids has shape {segment_ids.shape}; expected {q.shape[:2]}")


def _check_mask(q, k, mask) -> None:
    sizes = (*mask.key_start.shape, mask.query_start.shape[1])
    if sizes != (*q.shape[:2], k.shape[1]):
        raise ValueError(
            f"mask is for {sizes[0]} rows of {sizes[1]} queries and {sizes[2]} keys; got q "
            f"{q.shape}, k {k.shape}"
        )
