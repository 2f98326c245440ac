"""Kernels of libraries under our mask; each refuses what it cannot honour.

Both take a mask from its static fields alone, so only rows of one document without padding
(``mask.packed`` False) with every query at its own key (``mask.aligned``). Two traps of the
libraries are closed here: a window that excludes the query's own key (ours counts it), and cuDNN's
window without ``is_causal``, which sees the future.

B batch, T positions, N query heads, K kv heads, H head width.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cwm_jax.kernels.mask import IntervalMask

_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
_CUDNN_MAX_HEAD_DIM = 256  # on Hopper and later; 128 before, which JAX itself refuses
_CUDNN_HEAD_DIM_MULTIPLE = 8

_SPLASH_MULTIPLE = 128  # of a block: the lanes of a TPU register
_SPLASH_BLOCKS = (1024, 512, 256, 128)  # 1024 is assumed to be the best; no time was measured


def cudnn_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: IntervalMask,
    *,
    scale: float,
) -> Float[Array, "B T N H"]:
    """cuDNN's flash attention; see ``cwm_jax.kernels.attention``.

    Its backward pass is not bitwise repeatable unless XLA is told to exclude such kernels.

    Raises:
        ValueError: packed rows, queries that are a part of the row, a dtype or a head width that
            cuDNN does not have.
    """
    _require_whole_documents("cudnn", mask)
    if q.dtype not in _CUDNN_DTYPES:
        raise ValueError(
            f"cudnn attention got {q.dtype}; expected bfloat16 or float16: take implementation "
            "'chunked', which has any"
        )
    H = q.shape[-1]
    if H > _CUDNN_MAX_HEAD_DIM or H % _CUDNN_HEAD_DIM_MULTIPLE:
        raise ValueError(
            f"cudnn attention got head_dim {H}; expected a multiple of {_CUDNN_HEAD_DIM_MULTIPLE} "
            f"up to {_CUDNN_MAX_HEAD_DIM}: take implementation 'chunked', which has any"
        )
    window = _window_that_bites(mask, q.shape[1])
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        is_causal=True,  # also with a window: without it the window's right side is open
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: IntervalMask,
    *,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """JAX's splash attention for TPUs; see ``cwm_jax.kernels.attention``.

    Its block map is made on the host in O(T^2) (minutes at 131k), once for each shape and window of
    a process.

    Args:
        q, k, v, mask, scale: as for ``attention``; the scale is folded into q, which rounds once
            more than the other implementations do.
        interpret: True runs the kernels on any device, slowly, for tests.

    Raises:
        ValueError: packed rows, or queries that are a part of the row.
    """
    _require_whole_documents("splash", mask)
    T = q.shape[1]
    padding = -T % _SPLASH_MULTIPLE  # after every query, so that none sees it
    attend = _splash_kernel(T + padding, q.shape[2], _window_that_bites(mask, T), interpret)
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    pad = [(0, 0), (0, padding), (0, 0), (0, 0)]
    heads_first = (jnp.pad(x, pad).transpose(0, 2, 1, 3) for x in (q, k, v))
    return jax.vmap(attend)(*heads_first).transpose(0, 2, 1, 3)[:, :T]


@functools.lru_cache(maxsize=8)
def _splash_kernel(T: int, N: int, window: int | None, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (T, T)
    seen = (
        splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
    )
    block = next(size for size in _SPLASH_BLOCKS if T % size == 0)
    blocks = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    with jax.ensure_compile_time_eval():  # the block map outlives the trace that asked for it
        return splash.make_splash_mha_single_device(
            splash.MultiHeadMask([seen] * N), block_sizes=blocks, interpret=interpret
        )


def _require_whole_documents(name: str, mask: IntervalMask) -> None:
    if mask.packed or not mask.aligned:
        rows = "packed rows" if mask.packed else "queries that are a part of the row"
        raise ValueError(
            f"{name} attention got {rows}; expected one document in each row, without padding, and "
            "a query for each key: take implementation 'chunked', which has any mask"
        )


def _window_that_bites(mask: IntervalMask, T: int) -> int | None:
    """None where every query sees all keys before it: the plain causal kernel does that."""
    window = mask.sliding_window
    return None if window is None or window >= T else window
