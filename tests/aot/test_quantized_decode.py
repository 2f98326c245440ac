"""Contract: decoding the 32B on an H100 reads its weights where they lie, and as they are stored.

XLA says what a program takes besides its arguments: a layer's or the stack's weights in bfloat16
would be seen there. Nothing is run.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from aot.targets import gpu_target
from jax.sharding import NamedSharding, PartitionSpec

from configs.cwm_32b import MODEL
from cwm_jax.config import ExecutionConfig
from cwm_jax.inference.cache import decode, init_cache
from cwm_jax.inference.quantization import abstract_quantized, num_bytes
from cwm_jax.model.transformer import init, separate_layers
from cwm_jax.planning.serving import serving_plan
from cwm_jax.planning.targets import has_gpu_compiler
from cwm_jax.training.hardware import GIB, accelerator

pytestmark = [
    pytest.mark.aot,
    pytest.mark.usefixtures("unchecked_types"),  # a cache of shapes alone
    pytest.mark.skipif(not has_gpu_compiler(), reason="needs jax's CUDA plugin"),
]
EXECUTION = ExecutionConfig(attention="hopper")


def compile_decode(
    weights: str, kv: str, rows: int, *, length: int = 131_072, model=MODEL, stacked: bool = True
):
    sharding = NamedSharding(gpu_target("h100"), PartitionSpec())

    def placed(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    if weights == "bfloat16":
        params = jax.eval_shape(lambda: init(model, jax.random.key(0), dtype=weights))
    else:
        params = abstract_quantized(model, weights)
    if not stacked:
        params = jax.eval_shape(lambda p: separate_layers(p, model), params)
    params = placed(params)
    make = functools.partial(init_cache, model, rows, length, dtype=kv, stacked=stacked)
    cache = placed(jax.eval_shape(make))
    tokens = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=sharding)
    step = jax.jit(lambda *x: decode(*x, execution=EXECUTION), donate_argnums=1)
    compiled = step.lower(params, cache, tokens).compile()
    assert num_bytes(params) + num_bytes(cache) <= compiled.memory_analysis().argument_size_in_bytes
    return compiled.memory_analysis()


@pytest.mark.parametrize(
    ("weights", "kv"),
    [("int8", "bfloat16"), ("int8", "int8"), ("int4", "bfloat16"), ("fp8", "int8")],
)
def test_one_row_of_the_whole_context_reads_each_weight_once(weights, kv):
    memory = compile_decode(weights, kv, rows=1)
    assert memory.temp_size_in_bytes < 64 * 2**20  # the smallest layer's kernels are larger
    assert memory.peak_memory_in_bytes < {"int8": 41, "int4": 27, "fp8": 41}[weights] * GIB


@pytest.mark.parametrize(("weights", "rows"), [("bfloat16", 1), ("int8", 8)])
def test_layers_apart_are_not_copied(weights, rows):
    """Eight layers: in stacks, their weights in bfloat16 or of several rows are."""
    model = dataclasses.replace(MODEL, num_hidden_layers=8, layer_types=MODEL.layer_types[:8])
    compile_ = functools.partial(compile_decode, weights, "bfloat16", rows, length=16_384)
    layer = 6144 * 21_504  # bytes of an MLP's kernel in int8
    assert compile_(model=model, stacked=True).temp_size_in_bytes > layer
    assert compile_(model=model, stacked=False).temp_size_in_bytes < layer


@pytest.mark.parametrize(("weights", "kv", "rows"), [("int8", "bfloat16", 3), ("int4", "int8", 8)])
def test_rows_stay_within_the_plan(weights, kv, rows):
    memory = compile_decode(weights, kv, rows)
    plan = serving_plan(
        MODEL, accelerator=accelerator("h100"), weights=weights, kv=kv, max_rows=rows
    )
    assert plan.fits
    assert memory.temp_size_in_bytes < plan.workspace_bytes
    assert memory.peak_memory_in_bytes < plan.total_bytes
