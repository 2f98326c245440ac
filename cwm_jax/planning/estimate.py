"""What a step needs, from arithmetic alone: FLOPs, memory traffic, memory, collectives.

Exact are the FLOPs (of rows of one document) and the bytes of the state. The traffic is a lower
bound of stated terms. Memory of activations and collectives serve to choose what to compile: those
of the compiled program replace them in a plan.

T tokens of a row, D embed, N heads, K kv heads, H head width, F mlp width, V vocab, L layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from cwm_jax.config import ModelConfig, RunConfig
from cwm_jax.model.context import Gathered, RowLayout, make_exchange
from cwm_jax.planning.collectives import Collective
from cwm_jax.planning.targets import CORES_PER_CHIP, TPU_DIMENSIONS
from cwm_jax.sharding import MESH_AXES, mesh_axes
from cwm_jax.training.plan import Plan
from cwm_jax.training.scaling.flops import (
    flops_per_token,
    mean_visible_keys,
    num_embedding_parameters,
    num_non_embedding_parameters,
)

# Parts of a layer's forward pass that the backward pass computes again: (products, attention).
_RECOMPUTED = {"none": (0, 0), "dots": (0, 0), "minimal": (0, 1), "full": (1, 1)}
TPU_LANES = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A step of a run on a mesh."""

    config: RunConfig
    sizes: tuple[int, ...]
    """Of ``MESH_AXES``."""
    rows: int
    """Of a micro-batch, over all devices."""
    accumulation: int

    @property
    def model(self) -> ModelConfig:
        return self.config.model

    @property
    def row_tokens(self) -> int:
        return self.config.batch.max_target_length

    @property
    def step_tokens(self) -> int:
        return self.rows * self.row_tokens * self.accumulation

    @property
    def num_devices(self) -> int:
        return int(np.prod(self.sizes))

    @property
    def tensor(self) -> int:
        return self.along("tensor")

    @property
    def weight_shards(self) -> int:
        """Devices that share a weight's embed dimension."""
        return self.along(*mesh_axes("embed"))

    @property
    def local_rows(self) -> float:
        """Rows of a micro-batch of which a device has tokens."""
        return self.rows / self.along(*mesh_axes("batch"))

    @property
    def local_tokens(self) -> float:
        """Tokens of a micro-batch that a device's tensor group computes."""
        return self.local_rows * self.row_tokens / self.along("context")

    @property
    def compute_bytes(self) -> int:
        """Of an element in matrix products."""
        return jnp.dtype(self.config.execution.dtype or self.config.execution.weight_dtype).itemsize

    @property
    def weight_bytes(self) -> int:
        """Of an element of the master weights and moments."""
        return jnp.dtype(self.config.execution.weight_dtype).itemsize

    @property
    def num_params(self) -> int:
        model = self.model
        return num_non_embedding_parameters(model) + num_embedding_parameters(model)

    @property
    def recomputed(self) -> tuple[int, int]:
        """Whether a layer's products, and its attention, are computed again.

        Raises:
            ValueError: a remat policy that is not planned for.
        """
        policy = self.config.execution.remat_policy
        if policy not in _RECOMPUTED:
            raise ValueError(
                f"no plan for execution.remat_policy={policy}; planned for: "
                f"{', '.join(_RECOMPUTED)}"
            )
        return _RECOMPUTED[policy]

    def along(self, *axes: str) -> int:
        """Devices along these mesh axes."""
        sizes: dict[str, int] = dict(zip(MESH_AXES, self.sizes, strict=True))
        return int(np.prod([sizes[axis] for axis in axes]))


def work_of(plan: Plan) -> Work:
    """The first stage of a run."""
    return Work(
        config=plan.config,
        sizes=plan.mesh_sizes,
        rows=plan.micro_batch_rows,
        accumulation=plan.stages[0].accumulation_steps,
    )


# ---------------------------------------------------------------- FLOPs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
    """Per token, of rows of one document: forward and backward of all devices together."""

    products: float
    attention: float
    """Visible pairs; the backward pass at twice the forward, as MFU counts it."""
    recomputed_products: float
    recomputed_attention: float
    """By the remat policy, and the scores that every attention's backward pass makes again."""

    @property
    def model(self) -> float:
        return self.products + self.attention

    @property
    def hardware(self) -> float:
        return self.model + self.recomputed_products + self.recomputed_attention


def flops(work: Work, attention_cap: int | None = None) -> Flops:
    """Of a token of the run, global layers capped if asked."""
    model, T = work.model, work.row_tokens
    windows = [model.window(kind) or attention_cap for kind in model.layer_types]
    keys = sum(mean_visible_keys(T, window) for window in windows)
    pair = model.num_attention_heads * model.head_dim * keys  # 2 FLOP for each of its products
    products = flops_per_token(model, T, attention_cap=attention_cap) - 12 * pair
    again_products, again_attention = work.recomputed
    norms = model.hidden_size * (2 * model.num_hidden_layers + 1)
    layers = num_non_embedding_parameters(model) - norms
    return Flops(
        products=products,
        attention=12 * pair,
        recomputed_products=2.0 * layers * again_products,
        recomputed_attention=(4 * again_attention + 2) * pair,
    )


def attention_imbalance(work: Work) -> float:
    """Visible pairs of the device that has most, over the mean of all."""
    T, model = work.row_tokens, work.model
    layout = RowLayout(work.config.execution.context_layout, work.along("context"))
    ends = np.arange(layout.num_pieces + 1) * (T // layout.num_pieces)
    pairs = np.zeros(layout.num_pieces)
    for kind in model.layer_types:
        window = model.window(kind)
        before = [n * mean_visible_keys(int(n), window) if n else 0.0 for n in ends]
        pairs += np.diff(before)
    on_device = [
        sum(float(pairs[layout.piece(device, slot)]) for slot in range(layout.slots))
        for device in range(layout.num_shards)
    ]
    return max(on_device) * len(on_device) / sum(on_device)


# ---------------------------------------------------------------- memory traffic


def traffic(work: Work) -> dict[str, float]:
    """Bytes that a device must at least read and write in a step, by what they are for.

    Weights: in each micro-batch the products' own operands, once for each product. Optimizer:
    weights, both moments and the gradient, once. Activations: each product's and each
    normalisation's operands and results once, forward, backward (twice) and recomputed. Logits:
    written once and read twice in float32.
    """
    e, again = work.compute_bytes, work.recomputed[0]
    local = work.num_params / work.tensor
    shard = local / work.weight_shards
    gradient = 4 * (1 if work.accumulation == 1 else 3 * work.accumulation)
    layer = work.local_tokens * _layer_traffic(work) * e * (3 + again)
    logits = work.local_tokens * work.model.vocab_size / work.tensor * 4 * 3
    return {
        "weights": local * e * (3 + again) * work.accumulation,
        "optimizer": shard * (6 * work.weight_bytes + 4 + gradient),
        "activations": layer * work.model.num_hidden_layers * work.accumulation,
        "logits": logits * work.accumulation,
    }


def _layer_traffic(work: Work) -> float:
    """Elements of a token that the forward pass of a layer reads and writes."""
    model, t = work.model, work.tensor
    D, F = model.hidden_size, model.intermediate_size / t
    q = model.num_attention_heads * model.head_dim / t
    qkv = q + 2 * model.num_key_value_heads * model.head_dim / t
    attention = (D + qkv) + (qkv + q) + (q + D)
    mlp = (D + 2 * F) + 3 * F + (F + D)
    return attention + mlp + 10 * D / t  # two norms, two sums


# ---------------------------------------------------------------- memory


def memory_bytes(work: Work, chip: str) -> dict[str, float]:
    """Bytes on a device, by what they are for; the sum within 15 % of nine compiled programs.

    Source: the terms follow the model's arrays; how many of them live at one time is fitted to
    compiled programs of the 32B (docs/LOG.md).
    """
    e, shards = work.compute_bytes, work.weight_shards * work.tensor
    shard = work.num_params / shards
    # with accumulation the sum in float32 and a micro-batch's own in the compute dtype
    gradient = 4 if work.accumulation == 1 else 4 + e
    kept = work.local_tokens * _kept_elements(work) * e * work.model.num_hidden_layers
    return {
        "state": 3 * work.weight_bytes * shard,
        "gradients": gradient * shard,
        "weights in the compute dtype": e * shard if e != work.weight_bytes else 0.0,
        "kept for the backward pass": kept,
        "gathered head": _head_bytes(work, chip),
        "one layer or the loss": max(_layer_bytes(work), _loss_bytes(work))
        * (1.5 if chip in TPU_DIMENSIONS else 1.0),
    }


def _kept_elements(work: Work) -> float:
    """Of a token in a layer, until its backward pass."""
    model, t, policy = work.model, work.tensor, work.config.execution.remat_policy
    D, F = model.hidden_size, model.intermediate_size / t
    q = model.num_attention_heads * model.head_dim / t
    kv = 2 * model.num_key_value_heads * model.head_dim / t
    kept = D / t
    if policy != "full":
        kept += q + kv + 2 * F + D / t  # results of products with weights
    if policy in ("dots", "none"):
        kept += q  # of attention
    if policy == "none":
        kept += q + kv / 2 + 2 * F + 4 * D + 3 * D / t  # of RoPE, norms, SiLU and sums
    return kept


def _layer_bytes(work: Work) -> float:
    """Of a layer's backward pass: its group's gathered weights, its activations, gathered keys."""
    model, t = work.model, work.tensor
    weights = num_non_embedding_parameters(model) / model.num_hidden_layers / t
    qkv = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim / t
    token = 10 * model.intermediate_size / t + 6 * qkv + 6 * model.hidden_size
    keys = 0.0
    if work.along("context") > 1:
        width = 2 * model.num_key_value_heads * model.head_dim / t
        keys = 3 * work.local_rows * work.row_tokens * width
    return work.compute_bytes * ((model.period + 2) * weights + work.local_tokens * token + keys)


def _head_bytes(work: Work, chip: str) -> float:
    """Held beside all else. (read in compiled programs: GPUs 2.9 GiB, v6e 4.9, v5p 7.2 to 7.6)"""
    copies = 5.0 if chip in CORES_PER_CHIP else 3.5 if chip in TPU_DIMENSIONS else 2.0
    head = work.model.hidden_size * work.model.vocab_size / work.tensor
    return copies * work.compute_bytes * head


def _loss_bytes(work: Work) -> float:
    """Of the loss: the head and its float32 gradient, a chunk's logits and their gradient."""
    e, V = work.compute_bytes, work.model.vocab_size / work.tensor
    chunk = min(work.local_tokens, work.config.execution.loss_chunk_tokens)
    return V * (work.model.hidden_size * (4 + e) + chunk * (8 + e))


# ---------------------------------------------------------------- collectives


def estimated_collectives(work: Work, chip: str) -> list[Collective]:
    """What a step sends on a kind of chip; of the 32B's compiled programs within 15 % of the bytes.

    Source: the terms follow the model; where XLA sends more than they say, that was read in
    compiled programs (docs/LOG.md).
    """
    found = [*_of_weights(work, chip), *_of_context(work), *_of_tensor(work, chip)]
    return [item for item in found if len(item.group) > 1 and item.executions]


def _of_weights(work: Work, chip: str) -> Iterator[Collective]:
    axes, n, steps = mesh_axes("embed"), work.weight_shards, work.accumulation
    # Of pieces that fill no whole lanes XLA makes all-reduces, which send twice: scatters on TPUs,
    # on those with two cores in a chip gathers too (v5p: 373 GiB in place of 180).
    whole_lanes = work.model.hidden_size / n % TPU_LANES == 0
    gather = 2 if chip in CORES_PER_CHIP and not whole_lanes else 1
    scatter = 2 if chip in TPU_DIMENSIONS and not whole_lanes else 1
    local = work.num_params / work.tensor * (n - 1) / n
    head = work.model.hidden_size * work.model.vocab_size / work.tensor * (n - 1) / n
    e = work.compute_bytes
    # Beside tensor parallelism XLA for TPU gathers as it multiplies, by permutes (v6e: 63 GiB).
    kind = "collective-permute" if chip in TPU_DIMENSIONS and work.tensor > 1 else "all-gather"
    # forward and backward (recomputation shares the second's), embedding and head in one of them
    yield _collective(work, kind, axes, gather * e * (local - head), 2 * steps)
    # the head's gradient is summed over the loss's chunks in float32
    yield _collective(work, "reduce-scatter", axes, scatter * (e * local + (4 - e) * head), steps)
    copies = work.along("data")
    shard = work.num_params / work.tensor / n
    yield _collective(work, "all-reduce", ("data",), 2 * e * shard * (copies - 1) / copies, steps)


def _of_context(work: Work) -> Iterator[Collective]:
    n, model, axes = work.along("context"), work.model, ("context",)
    layout = RowLayout(work.config.execution.context_layout, n)
    width = 2 * model.num_key_value_heads * model.head_dim / work.tensor * work.compute_bytes
    forward = 1 + work.recomputed[1]
    for kind in sorted(set(model.layer_types)):
        layers = model.layer_types.count(kind) * work.accumulation
        window = model.window(kind)
        if isinstance(make_exchange(layout, work.row_tokens, window), Gathered):
            sent = work.local_rows * work.row_tokens * width * (n - 1) / n
            yield _collective(work, "all-gather", axes, sent, forward * layers)
            yield _collective(work, "reduce-scatter", axes, sent, layers)
        elif window is not None:
            sent = work.local_rows * layout.slots * (window - 1) * width
            yield _collective(work, "collective-permute", axes, sent, (forward + 1) * layers)


def _of_tensor(work: Work, chip: str) -> Iterator[Collective]:
    """Sequence parallel: before attention and FFN a gather, after each a scatter; and backwards."""
    t, again = work.tensor, work.recomputed[0]
    layers = work.model.num_hidden_layers * work.accumulation
    sent = work.local_tokens * work.model.hidden_size * work.compute_bytes * (t - 1) / t
    yield _collective(work, "all-gather", ("tensor",), sent, (4 + 2 * again) * layers)
    context = work.along("context")
    # XLA for TPU, and on GPUs where rows are cut along context too, makes all-reduces of the
    # scatters (v6e, 32 x tensor 2: 60 GiB a micro-batch); with context it gathers whole rows in the
    # backward pass besides (h100:8, context 4 x tensor 2: 192 + 96 and 168 GiB).
    scatters = context == 1 and chip not in TPU_DIMENSIONS
    kind, times = ("reduce-scatter", 1) if scatters else ("all-reduce", 2)
    yield _collective(work, kind, ("tensor",), times * sent, (4 + again) * layers)
    if context > 1 and t > 1:
        n = context * t
        row = work.local_rows * work.row_tokens * work.model.hidden_size * work.compute_bytes
        yield _collective(work, "all-gather", ("context", "tensor"), row * (n - 1) / n, 2 * layers)


def _collective(work: Work, kind: str, axes: tuple[str, ...], sent: float, executions: int):
    devices = np.arange(work.num_devices).reshape(work.sizes)
    index = tuple(slice(None) if axis in axes else 0 for axis in MESH_AXES)
    group = tuple(int(device) for device in devices[index].ravel())
    varying = tuple(axis for axis in axes if work.along(axis) > 1)
    return Collective(
        kind=kind, name="", axes=varying, group=group, sent_bytes=sent, executions=executions
    )
