"""Contract: the Triton kernels at CWM's sizes lower for CUDA, and compile for GPUs without one.

Compiling checks what the interpreter does not: types and shapes that Triton takes, and the shared
memory of a block. Nothing is run.
"""

import jax
import jax.numpy as jnp
import pytest
from aot.targets import abstract_gpu, gpu_target
from jax.sharding import NamedSharding, PartitionSpec

from cwm_jax.inference.cache import PAGE_TOKENS
from cwm_jax.kernels.decode import decode_attention, decode_attention_in_pages
from cwm_jax.kernels.mask import interval_mask
from cwm_jax.kernels.triton import triton_attention
from cwm_jax.planning.targets import has_gpu_compiler

N, K, WINDOW = 48, 8, 8192
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
needs_compiler = pytest.mark.skipif(not has_gpu_compiler(), reason="needs jax's CUDA plugin")


def values_and_gradients(q, k, v, d_out, segment_ids):
    mask, scale = interval_mask(segment_ids, WINDOW), q.shape[-1] ** -0.5
    out, vjp = jax.vjp(lambda *x: triton_attention(*x, mask, scale=scale), q, k, v)
    return out, vjp(d_out)


def training_arguments(dtype, H=128, T=8192):
    shapes = (1, T, N, H), (1, T, K, H), (1, T, K, H), (1, T, N, H)
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return [*arrays, jax.ShapeDtypeStruct((1, T), jnp.int32)]


def decode(q, k, v, *where, ring):
    """``where`` is positions, behind pages if the cache lies in them, and scales if it is int8."""
    in_pages = k.shape[0] != q.shape[0]
    run = decode_attention_in_pages if in_pages else decode_attention
    scales = where[1 + in_pages :]
    k_scale, v_scale = scales or (None, None)
    return run(
        q,
        k,
        v,
        *where[: 1 + in_pages],
        sliding_window=WINDOW if ring else None,
        k_scale=k_scale,
        v_scale=v_scale,
        ring=ring,
    )


def decode_arguments(dtype, cache_dtype, num_slots, T=1, B=2, H=128):
    cache = jax.ShapeDtypeStruct((B, K, num_slots, H), cache_dtype)
    scale = jax.ShapeDtypeStruct((B, K, num_slots), jnp.float32)
    return [
        jax.ShapeDtypeStruct((B, T, N, H), dtype),
        cache,
        cache,
        jax.ShapeDtypeStruct((B, T), jnp.int32),
        *([scale] * 2 if cache_dtype == jnp.int8 else []),
    ]


def paged_arguments(cache_dtype, num_slots, B=8, H=128):
    """Of rows in twice as many pages as they need."""
    n = num_slots // PAGE_TOKENS
    cache = jax.ShapeDtypeStruct((2 * B * n, K, PAGE_TOKENS, H), cache_dtype)
    scale = jax.ShapeDtypeStruct(cache.shape[:-1], jnp.float32)
    return [
        jax.ShapeDtypeStruct((B, 1, N, H), jnp.bfloat16),
        cache,
        cache,
        jax.ShapeDtypeStruct((B, n), jnp.int32),
        jax.ShapeDtypeStruct((B, 1), jnp.int32),
        *([scale] * 2 if cache_dtype == jnp.int8 else []),
    ]


def compile_for(target, function, arguments):
    sharding = NamedSharding(gpu_target(target), PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in arguments]
    return jax.jit(function).lower(*arguments).compile()


DECODE_CASES = {
    "global": (False, decode_arguments(jnp.bfloat16, jnp.bfloat16, 131072)),
    "global, int8, no whole tiles": (False, decode_arguments(jnp.bfloat16, jnp.int8, 131000)),
    "ring": (True, decode_arguments(jnp.bfloat16, jnp.bfloat16, WINDOW)),
    "ring, int8, four queries": (True, decode_arguments(jnp.bfloat16, jnp.int8, 8320, T=4)),
    "pages": (False, paged_arguments(jnp.bfloat16, 32768)),
    "ring of pages, int8": (True, paged_arguments(jnp.int8, WINDOW + PAGE_TOKENS)),
}


@pytest.mark.parametrize("case", ["training", *DECODE_CASES])
def test_kernels_lower_to_triton_calls(case):
    function, arguments = values_and_gradients, training_arguments(jnp.bfloat16, T=8000)
    if case != "training":
        ring, arguments = DECODE_CASES[case]
        function = lambda *x: decode(*x, ring=ring)  # noqa: E731
    with jax.sharding.use_abstract_mesh(abstract_gpu("NVIDIA A100-SXM4-80GB")):
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    assert "xla.gpu.triton" in lowered.as_text()


@pytest.mark.aot
@needs_compiler
@pytest.mark.parametrize("target", ["a100", "h200"])
@pytest.mark.parametrize(
    ("dtype", "H"),
    [(jnp.bfloat16, 128), (jnp.bfloat16, 64), (jnp.float16, 128), (jnp.float32, 128)],
)
def test_forward_and_backward_compile_and_hold_no_scores(target, dtype, H):
    compiled = compile_for(target, values_and_gradients, training_arguments(dtype, H))
    one_head_of_scores = 4 * 8192**2
    assert compiled.memory_analysis().temp_size_in_bytes < one_head_of_scores / 16


@pytest.mark.aot
@needs_compiler
@pytest.mark.parametrize("target", ["a100", "h200"])
@pytest.mark.parametrize("case", DECODE_CASES)
def test_decode_compiles_and_copies_no_cache(target, case):
    ring, arguments = DECODE_CASES[case]
    compiled = compile_for(target, lambda *x: decode(*x, ring=ring), arguments)
    keys = arguments[1]
    assert compiled.memory_analysis().temp_size_in_bytes < keys.size * keys.dtype.itemsize / 2
