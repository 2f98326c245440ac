"""Memory that serving a model takes on one device, by arithmetic."""

from __future__ import annotations

import dataclasses

import jax

from cwm_jax.config import ModelConfig
from cwm_jax.inference.cache import PAGE_TOKENS, CacheLayout
from cwm_jax.inference.quantization import FORMATS, abstract_quantized, num_bytes
from cwm_jax.model.transformer import abstract_params
from cwm_jax.training.hardware import GIB, Accelerator

WEIGHTS = ("bfloat16", "float32", *FORMATS)
CACHES = ("bfloat16", "float32", "int8")
_SPARE_TOKENS = 8  # the engine's steps between two looks, EngineOptions.decode_steps
# Seen in programs compiled for an H100 (docs/LOG.md): the 32B's take 0.02 to 4.2 GiB besides the
# arguments, of which this is a bound.
_COPIES_OF_CONTEXT, _COPIES_OF_KERNEL, _COPIES_OF_LOGITS = 4, 9, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """What is on a device that serves; bytes."""

    model_config: ModelConfig
    accelerator: Accelerator
    weights: str
    kv: str
    max_length: int
    max_rows: int
    weights_bytes: int
    """Scales included."""
    row_bytes: int
    """Of the cache of one row of ``max_length`` tokens."""
    full_row_bytes: int
    """What it would take if local layers kept all tokens as global ones do."""
    workspace_bytes: int
    """A bound on what programs take besides weights and cache."""

    @property
    def usable_bytes(self) -> int:
        """Of the device's memory, for programs."""
        return int(self.accelerator.memory_bytes * self.accelerator.usable_memory_fraction)

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.max_rows * self.row_bytes + self.workspace_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.usable_bytes

    @property
    def most_rows(self) -> int:
        """Rows of ``max_length`` tokens that fit; 0 if not even one does."""
        left = self.usable_bytes - self.weights_bytes - self.workspace_bytes
        return max(0, left // self.row_bytes)

    def report(self) -> str:
        """Some lines for people."""
        length, rows = f"{self.max_length:,} tokens", self.max_rows
        lines = [
            ("weights", self.weights_bytes, f"{self.weights}, scales included"),
            (
                "cache",
                rows * self.row_bytes,
                f"{self.kv}, {rows} x {length}; {_gib(self.row_bytes)} a row, "
                f"{_gib(self.full_row_bytes)} if local layers kept all tokens",
            ),
            ("workspace", self.workspace_bytes, "at most, of prefill and decode"),
            ("in all", self.total_bytes, ""),
            (
                "usable",
                self.usable_bytes,
                f"{self.accelerator.usable_memory_fraction:.0%} of {self.accelerator.name}'s "
                f"{_gib(self.accelerator.memory_bytes)}",
            ),
        ]
        text = [f"{name:10} {_gib(size):>10}   {note}".rstrip() for name, size, note in lines]
        verdict = "fits" if self.fits else "does not fit"
        return "\n".join([*text, f"{verdict}; {self.most_rows} rows of {length} would"])


def serving_plan(
    model_config: ModelConfig,
    *,
    accelerator: Accelerator,
    weights: str = "bfloat16",
    kv: str | None = None,
    max_length: int | None = None,
    max_rows: int = 1,
    group_size: int | None = None,
    prefill_tokens: int = 512,
) -> ServingPlan:
    """Plans one device; nothing is allocated.

    Args:
        model_config: the architecture.
        accelerator: of ``cwm_jax.training.hardware``.
        weights: of the linear maps: bfloat16, float32, int8, int4 or fp8.
        kv: bfloat16, float32 or int8, which has a float32 scale per token and head; None is the
            dtype of weights, bfloat16 for quantized ones.
        max_length: tokens of a prompt and its continuation; None is the model's most.
        max_rows: requests that decode together.
        group_size: of int4 weights.
        prefill_tokens: of one prefill call.

    Raises:
        ValueError: an unknown dtype, a length that the model is not meant for, no row.
    """
    longest = model_config.max_position_embeddings
    max_length = longest if max_length is None else max_length
    kv = kv or (weights if weights in CACHES and weights not in FORMATS else "bfloat16")
    for name, value, known in (("weights", weights, WEIGHTS), ("kv", kv, CACHES)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    if not 2 <= max_length <= longest:
        raise ValueError(
            f"max_length is {max_length}; expected 2 to {longest}, the model's "
            "max_position_embeddings"
        )
    if max_rows < 1:
        raise ValueError(f"max_rows is {max_rows}; expected 1 or more")
    return ServingPlan(
        model_config=model_config,
        accelerator=accelerator,
        weights=weights,
        kv=kv,
        max_length=max_length,
        max_rows=max_rows,
        weights_bytes=_weights_bytes(model_config, weights, group_size),
        row_bytes=_row_bytes(model_config, kv, max_length),
        full_row_bytes=_row_bytes(_all_global(model_config), kv, max_length),
        workspace_bytes=_workspace_bytes(model_config, max_length, max_rows, prefill_tokens),
    )


def _weights_bytes(model_config: ModelConfig, weights: str, group_size: int | None) -> int:
    if weights in FORMATS:
        return num_bytes(abstract_quantized(model_config, weights, group_size=group_size))
    shapes = abstract_params(model_config)
    return num_bytes(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, weights), shapes))


def _row_bytes(model_config: ModelConfig, kv: str, max_length: int) -> int:
    layout = CacheLayout(model_config, max_length, PAGE_TOKENS, _SPARE_TOKENS)
    return sum(layout.row_pages(kind) * layout.page_bytes(kind, kv) for kind in layout.kinds)


def _all_global(model_config: ModelConfig) -> ModelConfig:
    kinds = ("full_attention",) * model_config.num_hidden_layers
    return dataclasses.replace(model_config, layer_types=kinds)


def _workspace_bytes(
    model_config: ModelConfig, max_length: int, max_rows: int, prefill_tokens: int
) -> int:
    """In bfloat16: the context of a prefill in one global layer, copies of kernels, logits."""
    K, H = model_config.num_key_value_heads, model_config.head_dim
    D, F = model_config.hidden_size, model_config.intermediate_size
    keys_and_values = 2 * (max_length + prefill_tokens) * K * H * 2
    kernel = max(D * F, D * model_config.num_attention_heads * H) * 2
    activations = prefill_tokens * (2 * F + 3 * D) * 4
    logits = max_rows * model_config.vocab_size * 4
    return (
        _COPIES_OF_CONTEXT * keys_and_values
        + _COPIES_OF_KERNEL * kernel
        + activations
        + _COPIES_OF_LOGITS * logits
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
