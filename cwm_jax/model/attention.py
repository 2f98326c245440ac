"""Grouped-query attention of one layer, local or global.

B batch, T query position, D embed, N heads, K kv heads, H head width.
"""

from __future__ import annotations

from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from cwm_jax.config import ModelConfig
from cwm_jax.kernels import attention, cached_attention
from cwm_jax.model.cache import LayerCache
from cwm_jax.model.layers import Linear, residual_gain
from cwm_jax.model.rope import apply_rope
from cwm_jax.sharding import BATCH_AXES, map_over_shards, shard

_HEADS = ("batch", "seq", "act_heads", "head_dim")
_KV_HEADS = ("batch", "kv_seq", "act_kv_heads", "head_dim")


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
        if cache is not None:
            cache = cache.write(repeat, k, v, inputs.access)
        if cache is None or inputs.views is not None:
            out = self._attend(q, k, v, inputs)
        else:
            k, v = cache.read(repeat, inputs.access.num_keys)
            window, positions = self.sliding_window, inputs.access.positions
            out = cached_attention(q, k, v, positions, sliding_window=window)
        return self.o_proj(out), cache

    def _attend(self, q, k, v, inputs):
        view = inputs.views[self.layer_type]

        def attend(q, k, v, mask):
            out = attention(
                view.exchange.queries(q),
                view.exchange.keys(k),
                view.exchange.keys(v),
                mask,
                implementation=inputs.execution.attention,
                block_tokens=inputs.execution.attention_block_tokens,
            )
            return view.exchange.outputs(out)

        attend = map_over_shards(
            attend, in_axes=(_HEADS, _KV_HEADS, _KV_HEADS, BATCH_AXES), out_axes=_HEADS
        )
        return attend(q, k, v, view.mask)
