"""Contract: the Hopper kernels at CWM's sizes lower for CUDA, and compile for an H200 without one.

ptxas says what decides their speed: that no register is spilled and that the products of a
warpgroup are not serialised; it also refuses too much shared memory. Nothing is run.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from aot.targets import abstract_gpu, gpu_target
from jax.sharding import NamedSharding, PartitionSpec

from cwm_jax.kernels.hopper import hopper_attention
from cwm_jax.kernels.mask import interval_mask
from cwm_jax.planning.targets import has_gpu_compiler

N, K, WINDOW = 48, 8, 8192
LENGTHS = 8192, 32_768, 131_072  # windows and documents are values: they change no program


def values_and_gradients(q, k, v, d_out, segment_ids, window):
    mask, scale = interval_mask(segment_ids, window), q.shape[-1] ** -0.5
    out, vjp = jax.vjp(lambda *x: hopper_attention(*x, mask, scale=scale), q, k, v)
    return out, vjp(d_out)


def arguments(T, H=128, dtype=jnp.bfloat16, sharding=None):
    shapes = (1, T, N, H), (1, T, K, H), (1, T, K, H), (1, T, N, H)
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in shapes]
    return [*arrays, jax.ShapeDtypeStruct((1, T), jnp.int32, sharding=sharding)]


@pytest.mark.parametrize("H", [64, 128])
def test_kernels_lower_to_mosaic_calls(H):
    def function(*x):
        return values_and_gradients(*x, WINDOW)

    with jax.sharding.use_abstract_mesh(abstract_gpu("NVIDIA H200")):
        traced = jax.jit(function).trace(*arguments(8000, H))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu_v2") >= 3  # forward, dq, dkv


@pytest.mark.aot
@pytest.mark.skipif(not has_gpu_compiler(), reason="needs jax's CUDA plugin")
@pytest.mark.parametrize(
    ("T", "H", "dtype"),
    [*((T, 128, "bfloat16") for T in LENGTHS), (8192, 64, "bfloat16"), (8192, 128, "float16")],
)
def test_forward_and_backward_compile_without_spills(T, H, dtype, monkeypatch, capfd):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    sharding = NamedSharding(gpu_target("h200"), PartitionSpec())
    function = jax.jit(lambda *x: values_and_gradients(*x, WINDOW))
    compiled = function.lower(*arguments(T, H, jnp.dtype(dtype), sharding)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2**20
    said = "".join(capfd.readouterr())
    assert len(re.findall(r"Compiling entry function 'cwm_attention_\w+'", said)) == 3
    assert re.findall(r"(\d+) bytes spill (?:stores|loads)", said) == ["0"] * 6
    assert "serialized" not in said
