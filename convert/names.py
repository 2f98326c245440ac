"""Our parameters, Hugging Face's tensors and Meta's: one table; names, shapes, directions follow.

Axis letters: D embed, N heads, K kv heads, H head width, F mlp width, V vocab. ``"NH D"`` has N
groups of H rows. Ours and Hugging Face's rotate RoPE's pairs (i, i + H/2): q and k are not permuted
between the two. Meta's rotate (2i, 2i + 1): the rows of its q and k are in another order.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cwm_jax.config import ModelConfig


class _Row(NamedTuple):
    """{layer} is layers.j (with a leading axis of repeats) or tail.j; {i} counts the layers."""

    path: str
    hf_name: str
    meta_name: str
    axes: str
    hf_axes: str  # Meta's too
    rotated: bool = False


_LAYER = "model.layers.{i}"
_TABLE = (
    _Row(
        "embed_tokens.embedding",
        "model.embed_tokens.weight",
        "model.tok_embeddings.weight",
        "V D",
        "V D",
    ),
    _Row(
        "{layer}.input_layernorm.scale",
        f"{_LAYER}.input_layernorm.weight",
        f"{_LAYER}.attention_norm.weight",
        "D",
        "D",
    ),
    _Row(
        "{layer}.self_attn.q_proj.kernel",
        f"{_LAYER}.self_attn.q_proj.weight",
        f"{_LAYER}.attention.wq.weight",
        "D N H",
        "NH D",
        rotated=True,
    ),
    _Row(
        "{layer}.self_attn.k_proj.kernel",
        f"{_LAYER}.self_attn.k_proj.weight",
        f"{_LAYER}.attention.wk.weight",
        "D K H",
        "KH D",
        rotated=True,
    ),
    _Row(
        "{layer}.self_attn.v_proj.kernel",
        f"{_LAYER}.self_attn.v_proj.weight",
        f"{_LAYER}.attention.wv.weight",
        "D K H",
        "KH D",
    ),
    _Row(
        "{layer}.self_attn.o_proj.kernel",
        f"{_LAYER}.self_attn.o_proj.weight",
        f"{_LAYER}.attention.wo.weight",
        "N H D",
        "D NH",
    ),
    _Row(
        "{layer}.post_attention_layernorm.scale",
        f"{_LAYER}.post_attention_layernorm.weight",
        f"{_LAYER}.ffn_norm.weight",
        "D",
        "D",
    ),
    _Row(
        "{layer}.mlp.gate_proj.kernel",
        f"{_LAYER}.mlp.gate_proj.weight",
        f"{_LAYER}.feed_forward.w1.weight",
        "D F",
        "F D",
    ),
    _Row(
        "{layer}.mlp.up_proj.kernel",
        f"{_LAYER}.mlp.up_proj.weight",
        f"{_LAYER}.feed_forward.w3.weight",
        "D F",
        "F D",
    ),
    _Row(
        "{layer}.mlp.down_proj.kernel",
        f"{_LAYER}.mlp.down_proj.weight",
        f"{_LAYER}.feed_forward.w2.weight",
        "F D",
        "D F",
    ),
    _Row("norm.scale", "model.norm.weight", "model.norm.weight", "D", "D"),
    _Row("lm_head.kernel", "lm_head.weight", "model.output.weight", "D V", "V D"),
)


class ConversionError(ValueError):
    """A folder or a parameter tree that cannot be converted; the text names the culprit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    """A tensor of Hugging Face and its place among our parameters.

    Attributes:
        hf_name: its name in the safetensors files.
        meta_name: its key in Meta's checkpoints.
        path: dotted path of our array.
        repeat: index on our array's leading axis; None for an array that is not stacked.
        axes: our axes, without the leading one.
        hf_axes: Hugging Face's axes; one of several letters is these axes, flattened.
        rotated: its rows are rotated by RoPE, so Meta's are in another order.
        sizes: length of each axis.
    """

    hf_name: str
    meta_name: str
    path: str
    repeat: int | None
    axes: str
    hf_axes: str
    rotated: bool
    sizes: dict[str, int]

    @property
    def hf_shape(self) -> tuple[int, ...]:
        return tuple(math.prod(self._lengths(group)) for group in self.hf_axes.split())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one layer's part of our array."""
        return self._lengths(self.axes.replace(" ", ""))

    @property
    def split_axis(self) -> int:
        """Which of our axes a range of Hugging Face's rows is a range of."""
        return self.axes.replace(" ", "").index(self.hf_axes[0])

    @property
    def unit_rows(self) -> int:
        """Rows of Hugging Face per entry of our ``split_axis``."""
        return self.hf_shape[0] // self.shape[self.split_axis]

    def region(self, start: int, stop: int) -> tuple[int | slice, ...]:
        """Index of our array for Hugging Face's rows start to stop (multiples of unit_rows)."""
        index: list[int | slice] = [slice(None)] * len(self.shape)
        index[self.split_axis] = slice(start // self.unit_rows, stop // self.unit_rows)
        return tuple(index) if self.repeat is None else (self.repeat, *index)

    def ours_from_hf(self, rows: np.ndarray) -> np.ndarray:
        """Our part, as a view, of some of Hugging Face's rows."""
        trailing = self._lengths(self._hf_letters[1:])
        return rows.reshape(-1, *trailing).transpose(self._order)

    def hf_from_ours(self, part: np.ndarray) -> np.ndarray:
        """Hugging Face's rows of a part of our array; inverse of ``ours_from_hf``."""
        return part.transpose(np.argsort(self._order)).reshape(-1, *self.hf_shape[1:])

    def meta_from_hf(self, rows: np.ndarray) -> np.ndarray:
        """Meta's rows of some of Hugging Face's (whole heads): row 2i + c is c * (H/2) + i there.

        Source: formats, B4.
        """
        return self._exchange_pairs(rows, 2, self.sizes["H"] // 2)

    def hf_from_meta(self, rows: np.ndarray) -> np.ndarray:
        """Hugging Face's rows of some of Meta's; inverse of ``meta_from_hf``."""
        return self._exchange_pairs(rows, self.sizes["H"] // 2, 2)

    def _exchange_pairs(self, rows: np.ndarray, outer: int, inner: int) -> np.ndarray:
        if not self.rotated:
            return rows
        return rows.reshape(-1, outer, inner, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    @property
    def _hf_letters(self) -> str:
        return self.hf_axes.replace(" ", "")

    @property
    def _order(self) -> list[int]:
        return [self._hf_letters.index(letter) for letter in self.axes.replace(" ", "")]

    def _lengths(self, letters: str) -> tuple[int, ...]:
        return tuple(self.sizes[letter] for letter in letters)


def weights(model_config: ModelConfig, *, stacked: bool = True) -> list[Weight]:
    """Every tensor of the model, in the order of an export.

    ``stacked`` is False for the parameters of ``separate_layers``: all layers in the tail.
    """
    sizes = _sizes(model_config)
    return [
        Weight(
            hf_name=row.hf_name.format(i=i),
            meta_name=row.meta_name.format(i=i),
            path=row.path.format(layer=layer),
            repeat=repeat if "{layer}" in row.path else None,
            axes=row.axes,
            hf_axes=row.hf_axes,
            rotated=row.rotated,
            sizes=sizes,
        )
        for rows in _runs_of_rows()
        for i, layer, repeat in _layers(model_config, "{layer}" in rows[0].path, stacked)
        for row in rows
    ]


def array_shapes(model_config: ModelConfig, *, stacked: bool = True) -> dict[str, tuple[int, ...]]:
    """Dotted path and shape of each of our arrays."""
    repeats = model_config.num_repeats
    return {
        w.path: w.shape if w.repeat is None else (repeats, *w.shape)
        for w in weights(model_config, stacked=stacked)
    }


def check_names(found: set[str], expected: set[str], where: str) -> None:
    """Raises ConversionError unless the two sets are equal."""
    for names, kind in ((found - expected, "unknown"), (expected - found, "missing")):
        if names:
            first = sorted(names)
            more = f" and {len(first) - 1} more" if len(first) > 1 else ""
            raise ConversionError(
                f"{where}: {kind} tensor {first[0]}{more}; the config describes {len(expected)} "
                f"tensors, {len(found)} are there"
            )


def _runs_of_rows() -> list[list[_Row]]:
    """The table, cut where it enters and leaves the layers."""
    return [list(rows) for _, rows in itertools.groupby(_TABLE, lambda row: "{layer}" in row.path)]


def _layers(
    model_config: ModelConfig, repeated: bool, stacked: bool
) -> Iterator[tuple[int, str, int | None]]:
    """(layer of the model, its name in our tree, index on the leading axis)."""
    if not repeated:
        yield 0, "", None
        return
    period = model_config.period
    in_groups = period * model_config.num_repeats if stacked else 0
    for i in range(model_config.num_hidden_layers):
        if i < in_groups:
            yield i, f"layers.{i % period}", i // period
        else:
            yield i, f"tail.{i - in_groups}", None


def _sizes(model_config: ModelConfig) -> dict[str, int]:
    return {
        "D": model_config.hidden_size,
        "N": model_config.num_attention_heads,
        "K": model_config.num_key_value_heads,
        "H": model_config.head_dim,
        "F": model_config.intermediate_size,
        "V": model_config.vocab_size,
    }
