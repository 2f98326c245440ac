"""How and where a model is computed."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from cwm_jax.config.schema import check_positive, check_types, nearest_hint

# Tensors of a layer that its backward pass can read instead of computing them again.
_PRODUCTS = ("query", "key", "value", "mlp_input", "gate", "up")
REMAT_TENSORS = ("layer_input", *_PRODUCTS, "attention")
# What each policy keeps besides the layer's input.
REMAT_POLICIES = {"full": (), "minimal": _PRODUCTS, "dots": (*_PRODUCTS, "attention")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How the model is computed; it changes speed and rounding, never what is computed.

    Attributes:
        dtype: of activations and of the weights in matrix products; None takes the parameters' own.
        weight_dtype: of the master weights that ``init`` makes.
        attention: implementation, see ``cwm_jax.kernels.attention``.
        attention_block_tokens: queries in a block of the chunked attention; None chooses by device.
        remat_policy: what the backward pass keeps of a layer and does not compute again: ``none``
            keeps all; ``dots`` what spares every matrix product, attention's included; ``minimal``
            what spares the products with weights (attention runs twice); ``full`` the layer's
            input alone.
        remat_save: tensors kept besides, by name: ``query``, ``key`` (both with RoPE) and
            ``value``, ``attention`` (its output and log-sum-exps; not of ``reference``, ``cudnn``
            and ``splash``), ``mlp_input`` (the residual stream after attention), ``gate``, ``up``.
        remat_offload: tensors kept in the host's memory, those named above and ``layer_input``,
            whether the policy keeps them on the device or not at all.
        optimizer_memory: where Adam's moments lie between steps; ``pinned_host`` is the host's
            memory, from and to which the update streams them.
        scan_layers: scan over the repeating group of layers (compile time independent of depth) or
            unroll.
        loss_chunk_tokens: tokens of a device whose logits exist at one time in the loss.
        context_layout: which tokens of a row a device along ``mesh.context`` holds in training: a
            ``contiguous`` piece, or in ``zigzag`` a piece from either end, which gives each the
            same causal work in global layers and doubles what local layers exchange.
    """

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    weight_dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal[
        "auto", "reference", "chunked", "tpu", "hopper", "triton", "cudnn", "splash"
    ] = "auto"
    attention_block_tokens: int | None = None
    remat_policy: Literal["none", "dots", "minimal", "full"] = "none"
    remat_save: tuple[str, ...] = ()
    remat_offload: tuple[str, ...] = ()
    optimizer_memory: Literal["device", "pinned_host"] = "device"
    scan_layers: bool = True
    loss_chunk_tokens: int = 2048
    context_layout: Literal["contiguous", "zigzag"] = "zigzag"

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "attention_block_tokens", "loss_chunk_tokens")
        self._check_remat()

    def _check_remat(self) -> None:
        for field in ("remat_save", "remat_offload"):
            names = getattr(self, field)
            known = [n for n in REMAT_TENSORS if n != "layer_input" or field == "remat_offload"]
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"execution.{field} names {name!r}{nearest_hint(name, known)}; tensors of "
                        f"a layer: {', '.join(known)}"
                    )
            if names and self.remat_policy == "none":
                raise ValueError(
                    f"execution.{field} is {names} and remat_policy none, which keeps all on the "
                    "device; expected full, minimal or dots"
                )
        if both := set(self.remat_save) & set(self.remat_offload):
            raise ValueError(
                f"execution.remat_save and remat_offload both name {', '.join(sorted(both))}; a "
                "tensor is kept in one place"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; -1 (once) takes what the other axes leave.

    Attributes:
        data: replicas of the weights, each with rows of its own.
        fsdp: devices that share weights, optimizer state and rows.
        context: devices that share a row's tokens, and weights as along fsdp.
        tensor: devices that share heads, FFN, vocabulary and, between those, a row's tokens.
        dcn_data, dcn_fsdp: the part of data and of fsdp that runs across slices (TPU slices or GPU
            nodes, joined by the slower network); their product is the number of slices, 1 leaves
            the order of the devices to JAX.
    """

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1
    dcn_data: int = 1
    dcn_fsdp: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "dcn_data", "dcn_fsdp")
        axes = ("data", "fsdp", "context", "tensor")
        sizes = {axis: getattr(self, axis) for axis in axes}
        if list(sizes.values()).count(-1) > 1 or any(n < 1 and n != -1 for n in sizes.values()):
            raise ValueError(f"mesh is {sizes}; expected sizes >= 1 and -1 at most once")

    @property
    def num_devices(self) -> int | None:
        """Devices that the mesh takes; None where a size is -1."""
        sizes = (self.data, self.fsdp, self.context, self.tensor)
        return None if -1 in sizes else math.prod(sizes)
