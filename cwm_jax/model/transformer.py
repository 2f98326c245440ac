"""The Code World Model: a pre-norm decoder with local and global attention layers.

The module below says what is computed; the functions at the end make it pure: parameters are a
nested dict of arrays, and everything else is an argument.

    params = {"embed_tokens": {"embedding"}, "layers": {"0": ..., "3": ...}, "tail": {...},
              "norm": {"scale"}, "lm_head": {"kernel"}}

The layers repeat a group (three local after one global): ``layers[j]`` holds the j-th layer of each
of the R groups, stacked on a leading axis that is scanned; ``tail`` holds the layers after the last
whole group. Without ``layers`` the tail holds them all (``separate_layers``).

B batch, T position, D embed, V vocab, R repeats of the group.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float, Int

from cwm_jax.config import REMAT_POLICIES, ExecutionConfig, ModelConfig
from cwm_jax.kernels.mask import document_starts
from cwm_jax.model.attention import Attention
from cwm_jax.model.cache import CacheAccess, Caches, LayerCache
from cwm_jax.model.context import RowLayout, RowView, make_exchange, row_layout
from cwm_jax.model.layers import Embedding, Linear, Mlp, RMSNorm
from cwm_jax.model.quantized import QuantizedKernel
from cwm_jax.model.rope import rope_tables
from cwm_jax.sharding import BATCH_AXES, map_over_shards, shard, shards_of

Params = dict[str, Any]
DEFAULT_EXECUTION = ExecutionConfig()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerInputs:
    """What every layer reads besides the residual stream."""

    cos: Float[Array, "B T 1 half"]
    sin: Float[Array, "B T 1 half"]
    views: dict[str, RowView] | None
    """What the tokens see of each other, by layer type; None with a cache, where access has it."""
    access: CacheAccess | None
    """What they write and read of the cache, by layer type."""
    execution: ExecutionConfig = dataclasses.field(metadata={"static": True})


class DecoderLayer(nnx.Module):
    """Attention and SwiGLU, each normalised before and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer_type: str, *, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer_type, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        inputs: LayerInputs,
        cache: LayerCache | None = None,
        repeat: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        x = checkpoint_name(x, "layer_input")
        normed = shard(self.input_layernorm(x), "batch", "seq", "act_embed")
        attended, cache = self.self_attn(normed, inputs, cache, repeat)
        x = checkpoint_name(shard_residual(x + attended), "mlp_input")
        normed = shard(self.post_attention_layernorm(x), "batch", "seq", "act_embed")
        return shard_residual(x + self.mlp(normed)), cache


def shard_residual(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """States the residual stream's layout: sequence parallel where its length divides."""
    divides = x.shape[1] % shards_of("residual_seq") == 0  # a decoder's one token does not
    return shard(x, "batch", "residual_seq" if divides else "seq", "act_embed")


class Transformer(nnx.Module):
    """Embedding, decoder layers, final norm and the untied output head."""

    def __init__(self, config: ModelConfig, *, stacked: bool = True, rngs: nnx.Rngs):
        def stack(layer_type: str) -> DecoderLayer:
            @nnx.split_rngs(splits=config.num_repeats)
            @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: "layers"})
            def make(rngs: nnx.Rngs) -> DecoderLayer:
                return DecoderLayer(config, layer_type, rngs=rngs)

            return make(rngs)

        kinds, period = config.layer_types, config.period if stacked else 0
        tail = kinds[period * config.num_repeats :]
        self.embed_tokens = Embedding(config, rngs=rngs)
        self.layers = nnx.Dict({str(j): stack(kind) for j, kind in enumerate(kinds[:period])})
        self.tail = nnx.Dict(
            {str(j): DecoderLayer(config, kind, rngs=rngs) for j, kind in enumerate(tail)}
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(
            (config.hidden_size, config.vocab_size), ("embed", "vocab"), rngs=rngs
        )
        self.config = config

    def hidden_states(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None,
        execution: ExecutionConfig,
        caches: Caches | None = None,
        access: CacheAccess | None = None,
        attention_cap: int | None = None,
        layout: RowLayout | None = None,
    ) -> tuple[Float[Array, "B T D"], Caches]:
        """The final norm's output, in the compute dtype, and the caches with the tokens written."""
        dtype = execution.dtype or self.embed_tokens.embedding[...].dtype
        cos, sin = rope_tables(positions, self.config.rope_parameters, self.config.head_dim)
        views = None
        if caches is None:
            layout = layout or row_layout("contiguous")
            views = _views(self.config, tokens, segment_ids, attention_cap, layout)
        inputs = LayerInputs(cos, sin, views, access, execution)
        x = shard_residual(self.embed_tokens(tokens, dtype))
        group = [nnx.split(layer) for layer in _in_order(self.layers)]

        def run_group(carry, group_inputs):
            x, kept = carry
            states, repeat = group_inputs
            repeat = 0 if repeat is None else repeat  # None without caches, where nothing reads it
            for j, ((graphdef, _), state) in enumerate(zip(group, states, strict=True)):
                run = _layer_function(graphdef, execution, repeat, scanned=execution.scan_layers)
                x, kept[j] = run(state, x, inputs, kept[j])
            return (x, kept), None

        if caches is None:
            repeats, caches = None, Caches([None] * len(self.layers), [None] * len(self.tail))
        else:
            repeats = jnp.arange(self.config.num_repeats)
        layers = list(caches.layers)
        if group:
            stacked = tuple(state for _, state in group)
            unroll = 1 if execution.scan_layers else self.config.num_repeats
            (x, layers), _ = jax.lax.scan(run_group, (x, layers), (stacked, repeats), unroll=unroll)
        tail = []
        for layer, cache in zip(_in_order(self.tail), caches.tail, strict=True):
            graphdef, state = nnx.split(layer)
            run = _layer_function(graphdef, execution, 0, scanned=False)
            x, cache = run(state, x, inputs, cache)
            tail.append(cache)
        return shard(self.norm(x), "batch", "seq", "act_embed"), Caches(layers, tail)


def _views(
    config: ModelConfig, tokens, segment_ids, attention_cap, layout: RowLayout
) -> dict[str, RowView]:
    """One view for each kind of layer, made once for all of its layers, of each device's tokens."""
    packed = segment_ids is not None
    kinds = sorted({*config.layer_types})  # a set's order changes from process to process
    windows = {kind: config.window(kind) or attention_cap for kind in kinds}
    exchanges = {
        kind: make_exchange(layout, tokens.shape[1], window) for kind, window in windows.items()
    }

    def make(segment_ids):
        return {
            kind: RowView(exchange.mask(segment_ids, windows[kind], packed=packed), exchange)
            for kind, exchange in exchanges.items()
        }

    if not packed:
        segment_ids = jnp.ones_like(tokens)
    return map_over_shards(make, in_axes=(BATCH_AXES,), out_axes=BATCH_AXES)(segment_ids)


def _in_order(layers) -> list[Any]:
    return [layers[str(j)] for j in range(len(layers))]  # merged, its keys are sorted: "10" < "2"


def _layer_function(graphdef, execution: ExecutionConfig, repeat, *, scanned: bool):
    def run(state, x, inputs, cache):
        return nnx.merge(graphdef, state)(x, inputs, cache, repeat)

    if execution.remat_policy != "none":
        # outside a scan XLA would find the recomputation equal to the first and undo it
        run = jax.checkpoint(run, prevent_cse=not scanned, policy=_remat_policy(execution))
    return run


def _remat_policy(execution: ExecutionConfig):
    """By names alone: what no ``checkpoint_name`` marks is computed again."""
    kept = {*REMAT_POLICIES[execution.remat_policy], *execution.remat_save}
    if not execution.remat_offload:
        return jax.checkpoint_policies.save_only_these_names(*sorted(kept))
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=sorted(kept - {*execution.remat_offload}),
        names_which_can_be_offloaded=execution.remat_offload,
        offload_src="device",
        offload_dst="pinned_host",
    )


# ---------------------------------------------------------------- pure functions


def init(model_config: ModelConfig, key: jax.Array, *, dtype: str = "float32") -> Params:
    """Fresh parameters.

    Args:
        model_config: the architecture.
        key: a JAX random key; equal keys give equal parameters.
        dtype: of every parameter; values are drawn in float32 and rounded.
    """
    return _init(model_config, key, dtype)


@functools.partial(jax.jit, static_argnums=(0, 2))  # one program instead of one for each weight
def _init(model_config: ModelConfig, key: jax.Array, dtype: str) -> Params:
    with nnx.use_eager_sharding(False):
        model = Transformer(model_config, rngs=nnx.Rngs(params=key))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.tree.map(lambda x: x.astype(dtype), params)


def forward(
    params: Params,
    model_config: ModelConfig,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> Float[Array, "B T V"]:
    """Logits in float32 of the token after each position.

    Args:
        params: as from ``init`` or ``convert.load_hf``.
        model_config: the architecture.
        tokens: int ids below ``vocab_size``.
        positions: place of each token in its document, for RoPE; None counts documents by
            segment_ids.
        segment_ids: 0 is padding, equal neighbours are one document; None is one document per row.
        execution: speed and rounding.

    Raises:
        ValueError: shapes that do not fit each other or the architecture.
    """
    x = hidden_states(
        params,
        model_config,
        tokens,
        positions=positions,
        segment_ids=segment_ids,
        execution=execution,
    )
    return logits_from_hidden(params, x)


def hidden_states(
    params: Params,
    model_config: ModelConfig,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
    attention_cap: int | None = None,
    layout: RowLayout | None = None,
) -> Float[Array, "B T D"]:
    """What the output head reads; arguments as for ``forward``.

    With ``attention_cap`` a query of a global layer sees that many keys, its own included, as in a
    local layer of that window. ``layout`` says in which order the tokens lie (with ``positions``
    given); None is reading order.
    """
    _check_inputs(params, model_config, tokens, positions, segment_ids)
    if positions is None:
        documents = jnp.ones_like(tokens) if segment_ids is None else segment_ids
        positions = jnp.arange(tokens.shape[1])[None] - document_starts(documents)
    model = _model(params, model_config)
    x, _ = model.hidden_states(
        tokens, positions, segment_ids, execution, attention_cap=attention_cap, layout=layout
    )
    return x


def cached_hidden_states(
    params: Params,
    model_config: ModelConfig,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"],
    caches: Caches,
    access: CacheAccess,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
) -> tuple[Float[Array, "B T D"], Caches]:
    """Writes the tokens' keys and values into caches: what the head reads, and those caches.

    Args:
        params, model_config, tokens, positions, execution: as for ``forward``.
        caches: keys and values of earlier tokens.
        access: what is written and read of them, by layer type; ``cwm_jax.inference.cache`` makes
            it.
    """
    _check_inputs(params, model_config, tokens, positions, None)
    if len(caches.layers) != len(params.get("layers", ())):
        raise ValueError(
            f"params have {len(params.get('layers', ()))} stacks of layers and the cache "
            f"{len(caches.layers)}; expected as many: make the cache with stacked="
            f"{'layers' in params}"
        )
    model = _model(params, model_config)
    return model.hidden_states(tokens, positions, None, execution, caches, access)


def logits_from_hidden(params: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """The output head: float32 logits."""
    kernel = params["lm_head"]["kernel"]
    if isinstance(kernel, QuantizedKernel):
        logits = kernel.product(x, 1, jnp.dtype(jnp.float32))
    else:
        kernel = kernel.astype(x.dtype)
        logits = jnp.einsum("btd,dv->btv", x, kernel, preferred_element_type=jnp.float32)
    return shard(logits, "batch", "seq", "act_vocab")


def abstract_params(model_config: ModelConfig) -> Params:
    """Shapes and dtypes of ``init``'s result as ``jax.ShapeDtypeStruct``, without computing it."""
    _, state = _abstract_model(model_config)
    return nnx.to_pure_dict(state)


def logical_axes(model_config: ModelConfig) -> Params:
    """Logical axes of every parameter: a tuple of names where ``init`` has an array."""
    _, state = _abstract_model(model_config)
    return nnx.to_pure_dict(
        jax.tree.map(
            lambda param: param.replace(tuple(param.get_metadata("out_sharding"))),
            state,
            is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
        )
    )


def separate_layers(params: Params, model_config: ModelConfig, *, delete: bool = False) -> Params:
    """The same parameters with every layer in ``tail``, for decoding.

    A step then reads each weight where it lies, instead of copying it out of its stack (measured:
    docs/LOG.md); programs take longer to compile, with every layer in them.

    Args:
        params: as from ``init``, or without ``layers``: these are returned as they are.
        model_config: the architecture.
        delete: whether each stacked array is deleted once it is copied, so that no more than one is
            in memory twice.
    """
    if "layers" not in params:
        return params
    period, repeats = model_config.period, model_config.num_repeats
    whole, tail = {k: v for k, v in params.items() if k != "layers"}, {}
    for j in range(period):
        leaves, structure = jax.tree.flatten(params["layers"][str(j)])
        apart = []
        for leaf in leaves:
            apart.append(_unstack(leaf))
            if delete:
                leaf.delete()
        for r, layer in enumerate(zip(*apart, strict=True)):
            tail[str(r * period + j)] = jax.tree.unflatten(structure, layer)
    for j, layer in params.get("tail", {}).items():
        tail[str(repeats * period + int(j))] = layer
    return {**whole, "tail": tail}


_unstack = jax.jit(lambda x: tuple(x[r] for r in range(x.shape[0])))


def num_parameters(model_config: ModelConfig) -> int:
    """Scalars in all parameters, embeddings and head included."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract_params(model_config)))


@functools.lru_cache(maxsize=32)
def _abstract_model(model_config: ModelConfig, stacked: bool = True) -> tuple[Any, Any]:
    # (nnx.GraphDef, nnx.State); beartype refuses hints that NNX's types contain
    # Without the mesh in use, in which NNX would look for the logical axes.
    with nnx.use_eager_sharding(False), jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        model = nnx.eval_shape(
            lambda: Transformer(
                model_config, stacked=stacked, rngs=nnx.Rngs(params=jax.random.key(0))
            )
        )
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, state


def _model(params: Params, model_config: ModelConfig) -> Transformer:
    graphdef, abstract = _abstract_model(model_config, "layers" in params)
    state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy: the cached one stays abstract
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def _check_inputs(params, model_config, tokens, positions, segment_ids) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens is {tokens.dtype}{tokens.shape}; expected integers [B, T]")
    for name, value in (("positions", positions), ("segment_ids", segment_ids)):
        if value is not None and value.shape != tokens.shape:
            raise ValueError(
                f"{name} has shape {value.shape}; expected that of tokens, {tokens.shape}"
            )
    table = params["embed_tokens"]["embedding"].shape
    if table != (model_config.vocab_size, model_config.hidden_size):
        raise ValueError(
            f"params have an embedding of shape {table}; the config says "
            f"({model_config.vocab_size}, {model_config.hidden_size}): they belong to another model"
        )
