"""Grouped-query attention of one layer, local or global.

B batch, T query position, D embed, N heads, K kv heads, H head width.
"""

from __future__ import annotations

from typing import Any

from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.kernels import attention, attention_to_pages, cached_attention
from cwm_jax.model.cache import Decoding, LayerCache, behind
from cwm_jax.model.layers import Linear, residual_gain
from cwm_jax.model.rope import apply_rope
from cwm_jax.sharding import BATCH_AXES, map_over_shards, shard

_HEADS = ("batch", "seq", "act_heads", "head_dim")
_KV_HEADS = ("batch", "kv_seq", "act_kv_heads", "head_dim")
# With a cache, whose pages are those of all rows, heads alone are divided.
_HEADS_ALONE = (None, None, "act_heads", "head_dim")
_KV_HEADS_ALONE = (None, None, "act_kv_heads", "head_dim")
_PAGES = (None, "act_kv_heads", None, "head_dim")


class Attention(nnx.Module):
    """q, k, v projections, RoPE, masked attention and the output projection; no biases."""

    def __init__(self, config: ModelConfig, layer_type: str, *, rngs: nnx.Rngs):
        D, H = config.hidden_size, config.head_dim
        N, K = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = Linear((D, N, H), ("embed", "heads", "head_dim"), rngs=rngs)
        self.k_proj = Linear((D, K, H), ("embed", "kv_heads", "head_dim"), rngs=rngs)
        self.v_proj = Linear((D, K, H), ("embed", "kv_heads", "head_dim"), rngs=rngs)
        self.o_proj = Linear(
            (N, H, D),
            ("heads", "head_dim", "embed"),
            num_in=2,
            gain=residual_gain(config),
            rngs=rngs,
        )
        self.layer_type, self.sliding_window = layer_type, config.window(layer_type)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        inputs,
        cache: LayerCache | None = None,
        repeat: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        q = apply_rope(shard(self.q_proj(x), *_HEADS), inputs.cos, inputs.sin)
        k = apply_rope(shard(self.k_proj(x), *_KV_HEADS), inputs.cos, inputs.sin)
        v = shard(self.v_proj(x), *_KV_HEADS)
        q, k, v = (
            checkpoint_name(q, "query"),
            checkpoint_name(k, "key"),
            checkpoint_name(v, "value"),
        )
        if cache is None:
            out = self._attend(q, k, v, inputs)
        else:
            out, cache = self._attend_with_cache(q, k, v, inputs, cache, repeat)
        return self.o_proj(out), cache

    def _attend(self, q, k, v, inputs):
        view = inputs.views[self.layer_type]

        def attend(q, k, v, mask):
            out = attention(
                view.exchange.queries(q),
                view.exchange.keys(k),
                view.exchange.keys(v),
                mask,
                **_attention_options(inputs.execution),
            )
            return view.exchange.outputs(out)

        attend = map_over_shards(
            attend, in_axes=(_HEADS, _KV_HEADS, _KV_HEADS, BATCH_AXES), out_axes=_HEADS
        )
        return attend(q, k, v, view.mask)

    def _attend_with_cache(self, q, k, v, inputs, cache: LayerCache, repeat):
        access = inputs.access[self.layer_type]
        if isinstance(access, Decoding):
            cache = cache.write(repeat, k, v, access.places)
            return self._attend_to_pages(q, inputs, cache, access, repeat), cache
        keys = behind(cache.row_keys(repeat, access.pages, k.dtype), k, access.offsets)
        values = behind(cache.row_values(repeat, access.pages, v.dtype), v, access.offsets)

        def attend(q, k, v, mask):
            return attention(q, k, v, mask, **_attention_options(inputs.execution))

        attend = map_over_shards(
            attend,
            in_axes=(_HEADS_ALONE, _KV_HEADS_ALONE, _KV_HEADS_ALONE, ()),
            out_axes=_HEADS_ALONE,
        )
        return attend(q, keys, values, access.mask), cache.write(repeat, k, v, access.places)

    def _attend_to_pages(self, q, inputs, cache: LayerCache, access: Decoding, repeat):
        if access.pages is None:
            k, v, *scales = (x[repeat] for x in cache if x is not None)
            k_scale, v_scale = scales or (None, None)
            return cached_attention(
                q,
                k,
                v,
                access.positions,
                sliding_window=self.sliding_window,
                ring=access.ring,
                k_scale=k_scale,
                v_scale=v_scale,
            )
        # the pages of all repeats are one array for a kernel: a slice of it would be a copy
        R, num_pages = cache.keys.shape[:2]
        pages = access.pages + repeat * num_pages
        arrays = [x.reshape(R * num_pages, *x.shape[2:]) for x in cache if x is not None]

        def attend(q, pages, positions, *arrays):
            k, v, k_scale, v_scale = arrays if len(arrays) == 4 else (*arrays, None, None)
            return attention_to_pages(
                q,
                k,
                v,
                pages,
                positions,
                sliding_window=self.sliding_window,
                ring=access.ring,
                k_scale=k_scale,
                v_scale=v_scale,
                implementation=inputs.execution.attention,
            )

        axes = [_PAGES, _PAGES, _PAGES[:-1], _PAGES[:-1]][: len(arrays)]
        attend = map_over_shards(
            attend, in_axes=(_HEADS_ALONE, (), (), *axes), out_axes=_HEADS_ALONE
        )
        return attend(q, pages, access.positions, *arrays)


def _attention_options(execution: ExecutionConfig) -> dict[str, Any]:
    return {
        "implementation": execution.attention,
        "block_tokens": execution.attention_block_tokens,
    }
