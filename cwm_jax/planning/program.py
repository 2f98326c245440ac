"""The run's real train step, compiled for devices that are not there, and what XLA says of it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from cwm_jax.config import RunConfig
from cwm_jax.planning.collectives import Collective, collectives
from cwm_jax.planning.targets import Target, target_devices
from cwm_jax.sharding import MESH_AXES, batch_sharding, make_mesh, shard_bytes
from cwm_jax.training.plan import Plan
from cwm_jax.training.state import abstract_state, state_shardings
from cwm_jax.training.step import make_train_step

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# What XLA for TPU says in refusing a program: "Used 36.96G of 15.75G hbm", of all of it, or, before
# it places anything, "HLO temporaries (42.30G) exceeds available HBM (15.75G)".
_ALL_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_TEMPORARIES = re.compile(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM")
_HOST_MEMORY = "pinned_host"
_CUSTOM_CALL = re.compile(r'custom_call_target="([^"]+)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes on each device."""

    params: int
    optimizer: int
    counters: int
    """Steps, random key, and what else is in the state."""
    batch: int
    gradients: int
    """In float32, summed over micro-batches: a part of the temporaries, from the shardings."""
    activations: int
    """The rest of the temporaries, which XLA does not divide further."""
    code: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled train step."""

    memory: DeviceMemory
    """All that XLA lays out; a TPU's compiler reuses some of it at other times."""
    peak_bytes: int
    """In use at one time on a device, at most, by XLA's analysis."""
    collectives: tuple[Collective, ...]
    custom_calls: tuple[str, ...]
    """Targets of its custom calls, kernels among them, each once."""
    lower_s: float
    compile_s: float


class DoesNotFitError(ValueError):
    """XLA refuses a program for want of device memory."""

    def __init__(self, message: str, arguments_bytes: int = 0):
        super().__init__(message)
        whole, temporaries = _ALL_USED.search(message), _TEMPORARIES.search(message)
        found = whole or temporaries
        size = float(found[1]) * _UNITS[found[2]] if found else None
        if size is not None and not whole:
            size += arguments_bytes
        self.needed_bytes = None if size is None else int(size)
        """On each device; None where XLA gives no number."""


def compile_step(config: RunConfig, plan: Plan, target: Target) -> Program:
    """Compiles the step of the run's first stage, without an attention cap, donated as in a run.

    Raises:
        DoesNotFitError: XLA refuses the program for want of memory.
        ValueError: the compiler is absent, or the mesh does not fit the target or the model.
    """
    mesh = make_mesh(config.mesh, target_devices(target))
    shardings = state_shardings(config, mesh)
    state = jax.tree.map(_placed, abstract_state(config), shardings)
    batch = _abstract_batch(config, plan, mesh)
    step = jax.jit(
        make_train_step(config, plan=plan), donate_argnums=0, out_shardings=(shardings, None)
    )
    started = time.perf_counter()
    with jax.set_mesh(mesh), _nothing_cached(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        lowered = step.lower(state, batch)
        lower_s = time.perf_counter() - started
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise DoesNotFitError(str(error), state_bytes((state, batch))) from error
            raise
    compile_s = time.perf_counter() - started - lower_s
    text = compiled.as_text() or ""
    sizes: dict[str, int] = dict(zip(MESH_AXES, mesh.devices.shape, strict=True))
    analysis: Any = compiled.memory_analysis()
    return Program(
        memory=_memory(analysis, state, batch),
        peak_bytes=analysis.peak_memory_in_bytes,
        collectives=tuple(collectives(text, sizes)),
        custom_calls=tuple(sorted(set(_CUSTOM_CALL.findall(text)))),
        lower_s=lower_s,
        compile_s=compile_s,
    )


def state_bytes(tree: Any) -> int:
    """Bytes in each device's memory of arrays that have a sharding; not those in the host's."""
    return sum(
        shard_bytes(leaf)
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != _HOST_MEMORY
    )


def _placed(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _abstract_batch(config: RunConfig, plan: Plan, mesh: Any) -> dict[str, Any]:
    """As the loop puts it: ``[A, B, T]``, A micro-batches."""
    accumulation = plan.stages[0].accumulation_steps
    shape = (accumulation, plan.micro_batch_rows, config.batch.max_target_length)
    sharding = batch_sharding(mesh, leading=1)
    rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
    mask = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    names = ("tokens", "targets", "positions", "segment_ids")
    return {**dict.fromkeys(names, rows), "loss_mask": mask}


def _memory(analysis: Any, state: Any, batch: Any) -> DeviceMemory:
    params, optimizer = state_bytes(state.params), state_bytes(state.opt_state)
    float32_params = sum(shard_bytes(leaf, itemsize=4) for leaf in jax.tree.leaves(state.params))
    # a donated state is written where it was read, else it would be there twice
    assert analysis.alias_size_in_bytes >= params + optimizer
    outputs = max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
    temporaries = analysis.temp_size_in_bytes + outputs
    gradients = min(float32_params, temporaries)
    inputs = state_bytes(batch)
    return DeviceMemory(
        params=params,
        optimizer=optimizer,
        counters=max(0, analysis.argument_size_in_bytes - params - optimizer - inputs),
        batch=inputs,
        gradients=gradients,
        activations=temporaries - gradients,
        code=analysis.generated_code_size_in_bytes,
    )


@contextlib.contextmanager
def _nothing_cached():
    """Without its device a compiled program cannot be read back from jax's cache."""
    from jax.experimental.compilation_cache import compilation_cache

    enabled = getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009 (dynamic)
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()
