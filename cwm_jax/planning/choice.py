"""Which meshes, rows and remat policies a run can have on a target, and which are the best.

Legal is what divides: heads, kv heads, FFN and vocabulary over ``tensor``, the width over fsdp x
context, rows over data x fsdp, a row's pieces over ``context``, a batch over micro-batches; GPUs
keep ``tensor`` within a node. Of those whose estimated memory fits, the best has the lowest
estimated time for a token if nothing overlaps; of what is within two hundredths of that, the one
that takes the least memory.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from cwm_jax.config import ExecutionConfig, MeshConfig, RunConfig, schema
from cwm_jax.planning.estimate import Work, estimated_collectives, memory_bytes
from cwm_jax.planning.roofline import Roofline, device_places, roofline
from cwm_jax.planning.targets import Target, target_devices
from cwm_jax.sharding import MESH_AXES, make_mesh, mesh_shape

_MAX_ROWS = 16  # of a micro-batch on a data-parallel rank
_MAX_DOUBLINGS = 10
_EQUAL_TIMES = 0.02
_POLICIES = typing.get_args(typing.get_type_hints(ExecutionConfig)["remat_policy"])
"""Each keeps less than the one before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to run on a target."""

    work: Work
    changes: dict[str, Any]
    """Values that differ from the run's, as for ``--set``."""
    memory: dict[str, float]
    """Estimated bytes on a device."""
    roofline: Roofline
    """With estimated collectives."""

    @property
    def total_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def seconds_per_token(self) -> float:
        return self.roofline.serial_s / self.work.step_tokens


def own_work(config: RunConfig, target: Target) -> Work | None:
    """The run's own mesh and rows on the target; None where they do not fit its devices."""
    sizes = _sizes_on(config.mesh, target.num_devices)
    rows = config.batch.per_device_batch_size * target.num_devices
    return _legal(config, target, sizes, rows) if sizes and rows == int(rows) else None


def candidates(
    config: RunConfig, target: Target, *, variants: Iterable[RunConfig] | None = None
) -> list[Candidate]:
    """All legal ways to run, the best first, whether they fit or not.

    Args:
        config: the run.
        target: the cluster.
        variants: of it, whose meshes and rows are tried; None: itself alone.
    """
    found = [
        describe(config, target, work)
        for variant in ([config] if variants is None else variants)
        for work in legal_works(variant, target)
    ]
    fastest = min((c.seconds_per_token for c in found), default=1.0)

    def cost(candidate: Candidate) -> tuple[int, float, int]:
        slower = int(math.log(candidate.seconds_per_token / fastest) / _EQUAL_TIMES)
        return slower, candidate.total_bytes, len(candidate.changes)

    return sorted(found, key=cost)


def describe(config: RunConfig, target: Target, work: Work) -> Candidate:
    """Estimates of a way to run ``config``."""
    chip = target.accelerator.name
    sent, places = estimated_collectives(work, chip), places_of(target, work.config.mesh)
    return Candidate(
        work=work,
        changes=_changes(config, work),
        memory=memory_bytes(work, chip),
        roofline=roofline(work, sent, target, places),
    )


def legal_works(config: RunConfig, target: Target) -> Iterator[Work]:
    """Every legal mesh and number of rows."""
    n = target.num_devices
    for sizes in mesh_sizes(n):
        ranks = sizes[0] * sizes[1]
        for rows in [ranks * 2**k for k in range(_MAX_ROWS.bit_length())]:
            work = _legal(config, target, sizes, rows)
            if work is not None:
                yield work


def smaller_variants(config: RunConfig) -> list[RunConfig]:
    """The run, and what takes less memory for more time: remat policies that keep less."""
    policies = _POLICIES[_POLICIES.index(config.execution.remat_policy) :]
    return [_with(config, "execution", remat_policy=policy) for policy in policies]


def smallest_fitting(config: RunConfig, target: Target, correction: float) -> int | None:
    """Where nothing fits the target: the next double of its devices on which something does.

    Args:
        config: the run.
        target: gives the kind of device.
        correction: compiled over estimated bytes where that is known.
    """
    chip, usable = target.accelerator.name, target.usable_bytes / max(correction, 1.0)
    for n in (target.num_devices * 2**k for k in range(1, _MAX_DOUBLINGS)):
        larger = dataclasses.replace(target, shape=_like(target, n))
        works = (w for variant in smaller_variants(config) for w in legal_works(variant, larger))
        if any(sum(memory_bytes(work, chip).values()) < usable for work in works):
            return n
    return None


@functools.lru_cache(maxsize=256)
def places_of(target: Target, mesh: MeshConfig) -> tuple[tuple[int, ...], ...]:
    """Of each device in the mesh's order; see ``device_places``."""
    return tuple(device_places(target, make_mesh(mesh, target_devices(target))))


@functools.lru_cache(maxsize=32)
def mesh_sizes(n: int) -> tuple[tuple[int, ...], ...]:
    """All sizes of ``MESH_AXES`` that multiply to n."""
    divisors = [k for k in range(1, n + 1) if n % k == 0]
    rest = itertools.product(divisors, repeat=len(MESH_AXES) - 1)
    return tuple(
        (n // product, *sizes)
        for sizes in rest
        if n % (product := sizes[0] * sizes[1] * sizes[2]) == 0
    )


def _legal(config: RunConfig, target: Target, sizes: tuple[int, ...], rows: float) -> Work | None:
    data, fsdp, context, tensor = sizes
    model, T = config.model, config.batch.max_target_length
    widths = (
        model.num_attention_heads,
        model.num_key_value_heads,
        model.intermediate_size,
        model.vocab_size,
    )
    pieces = context * (2 if config.execution.context_layout == "zigzag" and context > 1 else 1)
    divides = [
        *(width % tensor == 0 for width in widths),
        model.hidden_size % (fsdp * context) == 0,
        T % (pieces * tensor) == 0,
        rows >= 1 and rows % (data * fsdp) == 0,
        tensor <= (target.devices_per_node or tensor),
    ]
    if not all(divides):
        return None
    accumulation = _accumulation(config, int(rows) * T)
    if accumulation is None:
        return None
    n = target.num_devices
    mesh = MeshConfig(data=data, fsdp=fsdp, context=context, tensor=tensor)
    if _sizes_on(config.mesh, n) == sizes:
        mesh = config.mesh  # with its slices, and its -1
    config = dataclasses.replace(_with(config, "batch", per_device_batch_size=rows / n), mesh=mesh)
    return Work(config=config, sizes=sizes, rows=int(rows), accumulation=accumulation)


def _sizes_on(mesh: MeshConfig, n: int) -> tuple[int, ...] | None:
    """Its sizes on n devices; None where they do not multiply to n."""
    try:
        return mesh_shape(mesh, n)
    except ValueError:
        return None


def _accumulation(config: RunConfig, micro_batch_tokens: int) -> int | None:
    """Micro-batches of the first stage; None where they do not divide a batch of the run."""
    batch, optimizer = config.batch, config.optimizer
    if batch.global_batch_tokens is None:
        return batch.gradient_accumulation_steps or 1
    if isinstance(batch.global_batch_tokens, str):  # a law
        return 1  # of a batch that is rounded to whole micro-batches; the plan has the number
    if isinstance(batch.global_batch_tokens, int):
        sizes = [batch.global_batch_tokens]
    else:
        phases = batch.global_batch_tokens
        ends = [phase.from_tokens for phase in phases[1:]] + [float("inf")]
        stop = optimizer.start_tokens + optimizer.train_tokens
        sizes = [
            phase.batch_tokens
            for phase, end in zip(phases, ends, strict=True)
            if phase.from_tokens < stop and end > optimizer.start_tokens
        ]
    if any(size % micro_batch_tokens for size in sizes):
        return None
    return sizes[0] // micro_batch_tokens


def _changes(config: RunConfig, work: Work) -> dict[str, Any]:
    """What differs, as keys of ``--set``."""
    old, new = schema.flatten(config), schema.flatten(work.config)
    return {key: value for key, value in new.items() if old[key] != value}


def _like(target: Target, n: int) -> tuple[int, ...]:
    """A shape of n devices of that kind; for counting alone."""
    if target.platform == "cuda":
        in_node = min(n, 8)
        return (n // in_node, in_node)
    return (n, *[1] * (len(target.shape) - 1))


def _with(config: RunConfig, section: str, **changes) -> RunConfig:
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **changes)}
    )
