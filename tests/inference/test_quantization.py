"""Law: rounding errors within half a step; parity: products of quantized kernels; sharding."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny import tiny_model

from cwm_jax import forward, init
from cwm_jax.config import ExecutionConfig, MeshConfig
from cwm_jax.inference.cache import decode, extend, init_cache
from cwm_jax.inference.engine import Engine, EngineOptions
from cwm_jax.inference.quantization import (
    FORMATS,
    cast,
    check_device,
    dequantize_params,
    describe,
    num_bytes,
    quantize,
    quantized_axes,
    round_to,
)
from cwm_jax.inference.requests import SamplingParams
from cwm_jax.inference.scoring import score
from cwm_jax.model import quantized
from cwm_jax.model.quantized import QuantizedKernel
from cwm_jax.model.transformer import logical_axes
from cwm_jax.sharding import make_mesh, tree_shardings

CONFIG = tiny_model()  # two groups and a tail
TOKENS = np.random.default_rng(0).integers(CONFIG.vocab_size, size=(2, 24), dtype=np.int32)


@pytest.fixture(scope="module")
def params():
    return init(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def all_quantized(params):
    return {name: quantize(params, CONFIG, name) for name in FORMATS}


run_forward = jax.jit(forward, static_argnums=1)


def kernels(params):
    leaves = jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda leaf: isinstance(leaf, QuantizedKernel)
    )
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if "kernel" in str(path)}


def mean_kl(p, q):
    p, q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
    return float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1)))


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_no_weight_is_off_by_more_than_half_a_step(name, params, all_quantized):
    restored = kernels(dequantize_params(all_quantized[name]))
    for path, kernel in kernels(params).items():
        scales = np.asarray(kernels(all_quantized[name])[path].scales, np.float32)
        repeats = [n // m for n, m in zip(kernel.shape, scales.shape, strict=True)]
        steps = scales
        for axis, count in enumerate(repeats):
            steps = np.repeat(steps, count, axis)
        error = np.abs(np.asarray(restored[path]) - np.asarray(kernel))
        assert np.all(error <= steps / 2 * (1 + 1e-4)), path
        assert error.max() > steps.min() / 4, path  # it is rounded, and no finer than said


def test_fp8_is_off_by_the_rounding_of_its_mantissa(params, all_quantized):
    restored = kernels(dequantize_params(all_quantized["fp8"]))
    for path, kernel in kernels(params).items():
        scales = np.asarray(kernels(all_quantized["fp8"])[path].scales)
        kernel = np.asarray(kernel)
        bound = np.maximum(np.abs(kernel) * 2**-4, scales * 2**-10)  # 3 bits; subnormals' half step
        assert np.all(np.abs(np.asarray(restored[path]) - kernel) <= bound * (1 + 1e-5)), path


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("weights", [[0.0] * 8, [1e-30] * 8, [3e38] * 8, [0, 0, 0, -1, 0, 0, 0, 5]])
def test_any_row_has_finite_values_and_scales(name, weights):
    values, scales = round_to(FORMATS[name], np.array([weights], np.float32), 1)
    restored = values.astype(np.float32) * scales.astype(np.float32)
    assert np.all(np.isfinite(restored))
    half_a_step = float(np.float32(scales[0, 0])) / 2 if max(weights) > 1e-20 else 1e-29
    rtol = 2**-4 if name == "fp8" else 1e-6
    np.testing.assert_allclose(restored[0], weights, rtol=rtol, atol=half_a_step)


def test_int8_values_and_scales_are_those_of_qwix(params, all_quantized):
    qwix = pytest.importorskip("qwix")
    for path, kernel in kernels(params).items():
        first = int(path.startswith("['layers']"))
        num_in = 2 if "o_proj" in path else 1
        channels = [a for a in range(kernel.ndim) if not first <= a < first + num_in]
        theirs = qwix.quantize(kernel, jnp.int8, channelwise_axes=channels)
        ours = kernels(all_quantized["int8"])[path]
        np.testing.assert_allclose(ours.scales, theirs.scale, rtol=1e-6)
        assert np.mean(np.asarray(ours.values) != np.asarray(theirs.qvalue)) < 1e-3, path  # ties


@pytest.mark.parametrize("name", FORMATS)
def test_forward_is_that_of_the_dequantized_kernels(name, all_quantized):
    logits = run_forward(all_quantized[name], CONFIG, TOKENS)
    expected = run_forward(dequantize_params(all_quantized[name]), CONFIG, TOKENS)
    np.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("name", FORMATS)
def test_products_for_gpus_are_the_same(name, rows, all_quantized):
    """XLA's programs for GPUs differ by the number of rows; they run on a CPU too."""
    kernel = all_quantized[name]["tail"]["0"]["self_attn"]["o_proj"]["kernel"]
    x = jax.random.normal(jax.random.key(1), (1, rows, CONFIG.hidden_size))
    values, scales = kernel.flat(2)
    expected = x @ quantized.dequantize(values, scales, jnp.float32)
    for product in (quantized._product, quantized._product_on_gpu):
        np.testing.assert_allclose(product(x, values, scales), expected, atol=1e-5)
    assert kernel.product(x.reshape(1, rows, 4, 8), 2, jnp.dtype("bfloat16")).dtype == "bfloat16"


def test_quality_and_size_are_in_the_order_of_the_bits(params, all_quantized):
    exact = run_forward(params, CONFIG, TOKENS)
    kl = {name: mean_kl(exact, run_forward(q, CONFIG, TOKENS)) for name, q in all_quantized.items()}
    assert 0 < kl["int8"] < kl["fp8"] < kl["int4"] < 0.2
    sizes = {name: num_bytes(q) for name, q in all_quantized.items()}
    assert sizes["int4"] < sizes["int8"] == sizes["fp8"] < num_bytes(params) / 2
    assert [describe(q) for q in all_quantized.values()] == ["int8", "int4", "fp8"]


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_scores_and_caches_take_them(name, all_quantized):
    params = all_quantized[name]
    logits = np.asarray(run_forward(params, CONFIG, TOKENS))
    length = TOKENS.shape[1]
    cache = init_cache(CONFIG, 2, 32)
    _, cache = jax.jit(extend)(
        params,
        cache,
        TOKENS[:, :-1],
        lengths=np.full(2, length - 1, np.int32),
        rows=np.arange(2, dtype=np.int32),
    )
    decoded, _ = jax.jit(decode)(params, cache, TOKENS[:, -1])
    np.testing.assert_allclose(decoded, logits[:, -1], atol=1e-4)
    scores = score(params, CONFIG, jnp.asarray(TOKENS), targets=jnp.asarray(TOKENS))
    np.testing.assert_array_equal(scores.predictions, logits.argmax(-1))


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_tensor_parallel_equals_one_device(name, all_quantized):
    config = tiny_model(intermediate_size=64)
    params = quantize(
        init(config, jax.random.key(2)),
        config,
        name,
        **({"group_size": 8} if name == "int4" else {}),
    )
    expected = run_forward(params, config, TOKENS)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        shardings = tree_shardings(mesh, quantized_axes(params, config), params)
        placed = jax.device_put(params, shardings)
        up = placed["layers"]["0"]["mlp"]["up_proj"]["kernel"]
        assert up.values.sharding.spec == PartitionSpec(None, ("fsdp", "context"), "tensor")
        assert len(up.values.sharding.device_set) == 4
        logits = run_forward(
            placed, config, jax.device_put(TOKENS, NamedSharding(mesh, PartitionSpec()))
        )
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_casts_leave_quantized_kernels_alone(all_quantized):
    params = cast(all_quantized["fp8"], "bfloat16")
    assert params["norm"]["scale"].dtype == jnp.bfloat16
    for kernel in kernels(params).values():
        assert kernel.values.dtype == jnp.float8_e4m3fn
        assert kernel.scales.dtype == jnp.float32
    logits = run_forward(params, CONFIG, TOKENS)
    assert mean_kl(run_forward(all_quantized["fp8"], CONFIG, TOKENS), logits) < 1e-3


def test_the_engine_takes_them(all_quantized):
    options = EngineOptions(max_length=32, max_rows=2, prefill_tokens=16)
    execution = ExecutionConfig(dtype="bfloat16")
    engine = Engine(all_quantized["int8"], CONFIG, None, options, execution=execution)
    for kernel in kernels(engine._params).values():
        assert (kernel.values.dtype, kernel.scales.dtype) == (jnp.int8, jnp.float32)
    request = engine.submit(TOKENS[0, :9].tolist(), SamplingParams(max_tokens=3, temperature=0.0))
    while engine.has_work:
        deltas = engine.step()
    assert deltas[-1][0] is request
    with pytest.raises(ValueError, match="weights are fp8 and the device is cpu"):
        engine.update_weights(all_quantized["fp8"])


def test_plain_kernels_are_computed_as_before(params):
    """Training's program has no trace of quantization."""
    text = str(jax.make_jaxpr(forward, static_argnums=1)(params, CONFIG, TOKENS))
    assert "platform_index" not in text
    assert "i8[" not in text
    assert "platform_index" in str(
        jax.make_jaxpr(forward, static_argnums=1)(quantize(params, CONFIG, "int8"), CONFIG, TOKENS)
    )
    axes = logical_axes(CONFIG)
    assert quantized_axes(params, CONFIG) == axes


@pytest.mark.parametrize(
    ("name", "group_size", "text"),
    [
        ("int5", None, "format is 'int5'; expected one of int8, int4, fp8"),
        ("int8", 16, "group_size is 16 and the format int8"),
        ("int4", 12, "group_size is 12; expected an even divisor .* one of 2, 4, 8, 16"),
        ("int4", 1, "group_size is 1; expected an even divisor"),
    ],
)
def test_what_does_not_fit_is_refused(name, group_size, text, params):
    with pytest.raises(ValueError, match=text):
        quantize(params, CONFIG, name, group_size=group_size)


def test_quantizing_twice_is_refused(all_quantized):
    with pytest.raises(ValueError, match="params are int4 already"):
        quantize(all_quantized["int4"], CONFIG, "int8")


def test_fp8_is_refused_where_the_device_has_none(all_quantized):
    check_device(all_quantized["int8"])
    with pytest.raises(ValueError, match=r"weights are fp8 and the device is cpu.*int8 instead"):
        check_device(all_quantized["fp8"])
    for capability, refused in (("8.0", True), ("8.9", False), ("9.0", False), ("10.0", False)):
        gpu = SimpleNamespace(compute_capability=capability, device_kind="GPU", platform="gpu")
        if refused:
            with pytest.raises(ValueError, match=r"compute capability 8\.9"):
                check_device(all_quantized["fp8"], gpu)
        else:
            check_device(all_quantized["fp8"], gpu)
