"""Parity with transformers' ``CwmForCausalLM`` in float32 on random weights, beyond the window."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny import sharp_params
from tolerances import GRADIENT_RTOL, LOGITS_ATOL
from transformers import CwmConfig, CwmForCausalLM

from convert.names import weights
from convert.sources import ParamsSource
from cwm_jax.config import ExecutionConfig, ModelConfig, RopeParameters, layer_types_3_to_1
from cwm_jax.model.transformer import forward

# Wavelengths are 6, 11 (kept), 20, 35, 63 (blended), 112, 199, 353 tokens (divided).
LLAMA3 = RopeParameters(rope_type="llama3", rope_theta=100.0, original_max_position_embeddings=64)
PLAIN = RopeParameters(rope_theta=100.0)
EXECUTIONS = {
    "reference": ExecutionConfig(attention="reference"),
    "chunked": ExecutionConfig(attention="chunked", attention_block_tokens=16),
}
EXECUTION = pytest.mark.parametrize("execution", EXECUTIONS.values(), ids=EXECUTIONS)


def model_config(num_layers, num_heads, num_kv_heads, window, rope) -> ModelConfig:
    return ModelConfig(
        vocab_size=101,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=16,
        layer_types=layer_types_3_to_1(num_layers, last_global=num_layers == 10),
        sliding_window=window,
        rope_parameters=rope,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=(1, 2),
    )


CONFIGS = {
    "gqa1-8layers-plain": model_config(8, 4, 4, 8, PLAIN),
    "gqa2-10layers-llama3": model_config(10, 4, 2, 11, LLAMA3),
    "gqa6-8layers-llama3": model_config(8, 6, 1, 16, LLAMA3),
    "gqa6-10layers-plain": model_config(10, 12, 2, 5, PLAIN),
}
CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


random_params = functools.lru_cache(sharp_params)


@functools.lru_cache
def hf_model(config: ModelConfig) -> CwmForCausalLM:
    hf_config = CwmConfig(**config.to_hf(), attn_implementation="eager")
    model = CwmForCausalLM(hf_config).float().eval()
    model.load_state_dict(to_torch(config, random_params(config)), strict=True)
    return model


def to_torch(config: ModelConfig, params) -> dict[str, torch.Tensor]:
    source = ParamsSource(config, params)
    return {
        w.hf_name: torch.from_numpy(np.array(source.read(w, 0, w.hf_shape[0])))
        for w in weights(config)
    }


def random_tokens(config: ModelConfig, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(config.vocab_size, size=shape)


def hf_logits(config: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return hf_model(config)(torch.from_numpy(tokens)).logits.numpy()


_forward = jax.jit(forward, static_argnums=1, static_argnames="execution")


def our_logits(config: ModelConfig, tokens: np.ndarray, **options) -> np.ndarray:
    return np.asarray(_forward(random_params(config), config, jnp.asarray(tokens), **options))


@CONFIG
@EXECUTION
def test_logits(config, execution):
    tokens = random_tokens(config, 2, 4 * config.sliding_window + 7)
    theirs = hf_logits(config, tokens)
    assert theirs.std() > 0.5  # else the tolerance would mean nothing
    ours = our_logits(config, tokens, execution=execution)
    assert np.abs(ours - theirs).max() <= LOGITS_ATOL


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 12},
        {"sliding_window": 10},
        {"layer_types": layer_types_3_to_1(10)},  # the last layer local
        {"rope_parameters": dataclasses.replace(LLAMA3, factor=8.0)},
        {"rope_parameters": PLAIN},
        {"rms_norm_eps": 1e-2},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_wrong_constant_is_far_outside_the_tolerance(change):
    config = CONFIGS["gqa2-10layers-llama3"]
    wrong = dataclasses.replace(config, **change)
    tokens = random_tokens(config, 1, 4 * config.sliding_window)
    params = random_params(config)
    if "layer_types" in change:  # the tree depends on the pattern: go by way of layer numbers
        params = _same_weights(config, wrong)
    ours = np.asarray(_forward(params, wrong, jnp.asarray(tokens)))
    assert np.abs(ours - hf_logits(config, tokens)).max() > 50 * LOGITS_ATOL


def _same_weights(config: ModelConfig, other: ModelConfig):
    from convert.sources import params_from

    source = ParamsSource(config, random_params(config))
    read_ours = {w.hf_name: w for w in weights(config)}

    class Renumbered:
        model_config = other
        dtypes = source.dtypes

        def read(self, weight, start, stop):
            return source.read(read_ours[weight.hf_name], start, stop)

        def unit_rows(self, weight):
            return weight.unit_rows

    return params_from(Renumbered())


LENGTHS = ((45, 23, 1), (61, 20))  # of the documents in each row; the rest is padding


def packed_batch(config: ModelConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens, positions, segment_ids of two rows of 83."""
    tokens = random_tokens(config, 2, 83)
    positions, segment_ids = np.zeros((2, 83), np.int32), np.zeros((2, 83), np.int32)
    for row, start, length, number in documents():
        positions[row, start : start + length] = np.arange(length)
        segment_ids[row, start : start + length] = number
    return tokens, positions, segment_ids


def documents():
    """(row, first position, length, number from 1) of each packed document."""
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for number, length in enumerate(lengths, 1):
            yield row, start, length, number
            start += length


@pytest.mark.parametrize("name", ["gqa2-10layers-llama3", "gqa6-8layers-llama3"])
@EXECUTION
def test_packed_rows_are_their_documents(name, execution):
    config = CONFIGS[name]
    tokens, positions, segment_ids = packed_batch(config)
    options = {"segment_ids": jnp.asarray(segment_ids), "execution": execution}
    packed = our_logits(config, tokens, **options)
    if execution.attention == "reference":  # positions follow from segment_ids
        given = our_logits(config, tokens, positions=jnp.asarray(positions), **options)
        np.testing.assert_array_equal(given, packed)
    for row, start, length, _ in documents():
        alone = tokens[row : row + 1, start : start + length]
        in_row = packed[row, start : start + length]
        assert np.abs(in_row - hf_logits(config, alone)[0]).max() <= LOGITS_ATOL


def our_gradients(config, execution, tokens, targets, **options):
    def cross_entropy(params, tokens, targets, options):
        logits = forward(params, config, tokens, execution=execution, **options)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
        mask = targets >= 0
        return -jnp.sum(picked[..., 0] * mask) / mask.sum()

    return jax.jit(jax.value_and_grad(cross_entropy))(
        random_params(config), jnp.asarray(tokens), jnp.asarray(targets), options
    )


def torch_gradients(config, rows) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean cross-entropy over all (tokens, targets) of ``rows`` and its gradients."""
    model = hf_model(config)
    model.zero_grad()
    total = 0.0
    num_targets = sum(targets.size for _, targets in rows)
    for tokens, targets in rows:
        logits = model(torch.from_numpy(tokens)).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(targets).flatten(), reduction="sum"
        )
        (loss / num_targets).backward()
        total += loss.item() / num_targets
    return total, {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(config, ours, theirs) -> None:
    for name, mine in to_torch(config, ours).items():
        distance = torch.linalg.norm(mine - theirs[name]) / torch.linalg.norm(theirs[name])
        assert distance <= GRADIENT_RTOL, f"{name}: {distance:.2g}"


@pytest.mark.parametrize(
    ("name", "execution"),
    [
        ("gqa1-8layers-plain", EXECUTIONS["reference"]),
        ("gqa2-10layers-llama3", EXECUTIONS["chunked"]),
        (
            "gqa6-10layers-plain",
            dataclasses.replace(EXECUTIONS["chunked"], remat_policy="full", scan_layers=False),
        ),
    ],
    ids=["gqa1-reference", "gqa2-chunked", "gqa6-chunked-remat-unrolled"],
)
def test_gradients(name, execution):
    config = CONFIGS[name]
    window = config.sliding_window
    tokens = random_tokens(config, 2, 4 * window + 8)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    loss, ours = our_gradients(config, execution, inputs, targets)
    expected, theirs = torch_gradients(config, [(inputs, targets)])
    assert abs(float(loss) - expected) <= 1e-5 * expected
    assert_same_gradients(config, ours, theirs)


def test_gradients_of_packed_rows():
    config = CONFIGS["gqa2-10layers-llama3"]
    tokens, positions, segment_ids = packed_batch(config)
    targets = np.full_like(tokens, -1)
    rows = []
    for row, start, length, _ in documents():
        if length > 1:
            inside = slice(start, start + length - 1)
            targets[row, inside] = tokens[row, start + 1 : start + length]
            rows.append((tokens[row : row + 1, inside], targets[row : row + 1, inside]))
    options = {"positions": jnp.asarray(positions), "segment_ids": jnp.asarray(segment_ids)}
    loss, ours = our_gradients(config, EXECUTIONS["chunked"], tokens, targets, **options)
    expected, theirs = torch_gradients(config, rows)
    assert abs(float(loss) - expected) <= 1e-5 * expected
    assert_same_gradients(config, ours, theirs)
