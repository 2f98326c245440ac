"""The plan of a run on a cluster that is not there: compiled for it, measured by XLA, estimated.

Compiled are the program, its memory and its collectives; the times are a roofline of them, and of
analytic FLOPs and memory traffic. Where the run's mesh does not fit the target one is chosen for
it; where the program does not fit the memory, the cheapest change that does is looked for by
estimate and confirmed by compiling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from cwm_jax.config import RunConfig
from cwm_jax.planning.choice import (
    Candidate,
    candidates,
    describe,
    own_work,
    places_of,
    smaller_variants,
    smallest_fitting,
)
from cwm_jax.planning.estimate import Work, work_of
from cwm_jax.planning.program import DoesNotFitError, Program, compile_step
from cwm_jax.planning.roofline import Roofline, roofline
from cwm_jax.planning.targets import Target
from cwm_jax.sharding import MESH_AXES
from cwm_jax.training.plan import Plan, make_plan

_MAX_TRIES = 3  # programs that are compiled in looking for one that fits

Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """A way to run, compiled for the target."""

    candidate: Candidate
    target: Target
    plan: Plan
    program: Program | None
    """None: XLA refused it for want of memory."""
    refusal: DoesNotFitError | None

    @property
    def fits(self) -> bool:
        """For a TPU as XLA says, which refuses what does not; for a GPU it compiles anything."""
        if self.program is None or self.target.platform == "tpu":
            return self.program is not None
        return self.program.memory.total <= self.target.usable_bytes

    @property
    def work(self) -> Work:
        return self.candidate.work

    @property
    def needed_bytes(self) -> int | None:
        """On each device; None where XLA refuses it without a number."""
        if self.program is not None:
            on_tpu = self.target.platform == "tpu"
            return self.program.peak_bytes if on_tpu else self.program.memory.total
        return self.refusal.needed_bytes if self.refusal else None

    @property
    def correction(self) -> float:
        """Compiled over estimated bytes; 1 where XLA gives no number."""
        needed = self.needed_bytes
        return 1.0 if needed is None else needed / self.candidate.total_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """What a run would need and cost on a target."""

    config: RunConfig
    """As asked."""
    target: Target
    attempt: Attempt
    roofline: Roofline
    """Of the compiled program; of the estimate where XLA refused it."""
    tried: tuple[Attempt, ...]
    """Compiled before it, none of which fits."""
    remedy: Attempt | None
    """Where it does not fit: the cheapest change that does."""
    smallest_num_devices: int | None
    """Where nothing fits: devices of this kind that would be enough, by the estimate."""

    @property
    def fits(self) -> bool:
        return self.attempt.fits

    @property
    def step_s(self) -> tuple[float, float]:
        """Everything overlapped, nothing overlapped."""
        return self.roofline.overlapped_s, self.roofline.serial_s

    @property
    def tokens_per_s(self) -> tuple[float, float]:
        return tuple(self.attempt.work.step_tokens / s for s in self.step_s)  # type: ignore

    @property
    def mfu(self) -> tuple[float, float]:
        """Model FLOPs, without recomputation, over the devices' peak."""
        peak = self.target.accelerator.peak_flops * self.target.num_devices
        return tuple(self.roofline.flops.model * n / peak for n in self.tokens_per_s)  # type: ignore

    @property
    def phase_days(self) -> tuple[float, float]:
        """Of all of ``optimizer.train_tokens``, without stops."""
        tokens = self.config.optimizer.train_tokens
        return tuple(tokens / n / 86_400 for n in self.tokens_per_s)  # type: ignore

    @property
    def device_hours(self) -> tuple[float, float]:
        return tuple(days * 24 * self.target.num_devices for days in self.phase_days)  # type: ignore


def plan_cluster(config: RunConfig, target: Target, *, note: Note = lambda _: None) -> ClusterPlan:
    """Compiles the run for the target and says what it needs.

    Args:
        config: the run; its mesh is kept if it fits the target.
        target: the cluster.
        note: gets a line before each compilation, which takes from seconds to minutes.

    Raises:
        ValueError: nothing of the run divides over the target, or the compiler is absent.
    """
    asked, config = config, with_attention(config, target)
    own = own_work(config, target)
    first = describe(config, target, own) if own else _best(config, target)
    attempt = _try(first, target, note)
    tried: tuple[Attempt, ...] = ()
    if not attempt.fits and own is None:  # another mesh was ours to choose
        for other in _fitting(config, target, attempt, [config]):
            tried, attempt = (*tried, attempt), _try(other, target, note)
            if attempt.fits or len(tried) == _MAX_TRIES - 1:
                break
    remedy, smallest = None, None
    if not attempt.fits:
        remedy, more = _remedy(config, target, attempt, note)
        tried += more
        if remedy is None:
            smallest = smallest_fitting(config, target, attempt.correction)
    return ClusterPlan(
        config=asked,
        target=target,
        attempt=attempt,
        roofline=_roofline(attempt, target),
        tried=tried,
        remedy=remedy,
        smallest_num_devices=smallest,
    )


def with_attention(config: RunConfig, target: Target) -> RunConfig:
    """``auto`` resolved for the target: it would look at the devices of the machine that plans."""
    if config.execution.attention != "auto":
        return config
    execution = dataclasses.replace(config.execution, attention=target.attention)
    return dataclasses.replace(config, execution=execution)


def _best(config: RunConfig, target: Target) -> Candidate:
    """The best that fits by the estimate; the smallest where none does."""
    found = candidates(config, target)
    if not found:
        raise ValueError(
            f"no mesh of {target.num_devices} devices divides this model and its batches; try "
            "another number of devices, or other batch.global_batch_tokens"
        )
    fitting = [c for c in found if c.total_bytes <= target.usable_bytes]
    return fitting[0] if fitting else min(found, key=lambda c: c.total_bytes)


def _try(candidate: Candidate, target: Target, note: Note) -> Attempt:
    work = candidate.work
    plan = make_plan(work.config, num_devices=target.num_devices)
    candidate = dataclasses.replace(candidate, work=work_of(plan))
    note(f"compiling for {target.name}: {describe_work(candidate.work)}")
    program, refusal = None, None
    try:
        program = compile_step(work.config, plan, target)
    except DoesNotFitError as error:
        refusal = error
    return Attempt(candidate=candidate, target=target, plan=plan, program=program, refusal=refusal)


def describe_work(work: Work) -> str:
    """Mesh, rows and remat policy in a line."""
    mesh = " x ".join(f"{axis} {n}" for axis, n in zip(MESH_AXES, work.sizes, strict=True))
    return (
        f"{mesh}, {work.accumulation} x {work.rows} rows x {work.row_tokens}, remat "
        f"{work.config.execution.remat_policy}"
    )


def _remedy(
    config: RunConfig, target: Target, attempt: Attempt, note: Note
) -> tuple[Attempt | None, tuple[Attempt, ...]]:
    """The first of the changes that fits when compiled, and those that did not."""
    tried: tuple[Attempt, ...] = ()
    for candidate in _fitting(config, target, attempt, smaller_variants(config)):
        if candidate.work == attempt.work:
            continue
        found = _try(candidate, target, note)
        if found.fits:
            return found, tried
        tried += (found,)
        if len(tried) == _MAX_TRIES - 1:
            break
    return None, tried


def _fitting(
    config: RunConfig, target: Target, attempt: Attempt, variants: list[RunConfig]
) -> list[Candidate]:
    """Those that fit by the estimate, corrected by what a compiled program needed, best first.

    A next try that is nearly the last one would fail as it did, so each takes a tenth less.
    """
    correction = max(1.0, attempt.correction)
    usable, found = target.usable_bytes / correction, []
    for candidate in candidates(config, target, variants=variants):
        if candidate.total_bytes <= usable:
            found.append(candidate)
            usable = min(usable, 0.9 * candidate.total_bytes)
    return found


def _roofline(attempt: Attempt, target: Target) -> Roofline:
    if attempt.program is None:
        return attempt.candidate.roofline
    places = places_of(target, attempt.work.config.mesh)
    return roofline(attempt.work, attempt.program.collectives, target, places)
