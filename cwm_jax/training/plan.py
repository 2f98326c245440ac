"""Every number that follows from a run's config and the devices, computed here and nowhere else."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import jax
import jax.numpy as jnp

from cwm_jax.config import BatchPhase, LengthBucket, RunConfig
from cwm_jax.data.mixture import length_bucket_text
from cwm_jax.model.transformer import num_parameters
from cwm_jax.sharding import MESH_AXES, abstract_mesh, mesh_shape, num_shards, shard_bytes
from cwm_jax.training.optimizer import learning_rate_at
from cwm_jax.training.scaling.flops import flops_per_token, num_non_embedding_parameters
from cwm_jax.training.scaling.laws import REPORT_LAWS, AppliedLaw, applied_law
from cwm_jax.training.state import abstract_state, state_shardings


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchStage:
    """Steps from ``first_step`` (0-based) on with one batch size."""

    first_step: int
    first_tokens: int
    """Tokens of the schedule consumed before ``first_step``."""
    accumulation_steps: int
    batch_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The derived numbers of a run; ``describe`` prints them."""

    config: RunConfig
    mesh_sizes: tuple[int, ...]
    micro_batch_rows: int
    """Rows over all devices in one micro-batch."""
    stages: tuple[BatchStage, ...]
    total_steps: int
    peak_learning_rate: float
    horizon_tokens: int
    learning_rate_law: AppliedLaw | None
    """None where the config has a number."""
    batch_law: AppliedLaw | None
    num_parameters: int
    flops_per_token: float
    bucket_flops_per_token: tuple[float, ...]
    """Of each length bucket, its cap and its longest document counted; without buckets of all."""
    state_bytes_per_device: int
    host_state_bytes_per_device: int
    """Of the state, what lies in the host's memory for each device."""

    @property
    def law_compute_flops(self) -> float:
        """C, in the count of the law in use, in the report's where none is."""
        law = self.learning_rate_law or self.batch_law
        if law is not None:
            return law.compute_flops
        M = REPORT_LAWS.flops_per_token(self.config.model, self.config.batch.max_target_length)
        return M * self.horizon_tokens

    def stage(self, step: int) -> BatchStage:
        """The stage of the step that starts with ``step`` steps done."""
        return [s for s in self.stages if s.first_step <= step][-1]

    def tokens_before(self, step: int) -> int:
        """Tokens of the schedule consumed before that step."""
        stage = self.stage(step)
        return stage.first_tokens + (step - stage.first_step) * stage.batch_tokens

    def learning_rate(self, step):
        """Learning rate of the step that starts with ``step`` (int or int32 array) steps done."""
        tokens = jnp.float32(0)
        for stage in self.stages:  # at most a handful
            ends_at = jnp.float32(stage.first_tokens) + jnp.float32(stage.batch_tokens) * (
                jnp.asarray(step - stage.first_step + 1, jnp.float32)
            )
            tokens = jnp.where(jnp.asarray(step) >= stage.first_step, ends_at, tokens)
        return learning_rate_at(
            tokens,
            self.config.optimizer,
            peak=self.peak_learning_rate,
            horizon_tokens=self.horizon_tokens,
        )

    def describe(self) -> str:
        """A block of text with every derived number, for the start of a run and ``--dry-run``."""
        return "\n".join(f"  {name:<22} {value}" for name, value in _rows(self))


def make_plan(config: RunConfig, *, num_devices: int | None = None) -> Plan:
    """Derives the plan of a run.

    Raises:
        ValueError: a batch that does not divide into micro-batches, a mesh that does not fit the
            devices, rows that do not divide over them, or a file of laws that cannot be used.
    """
    num_devices = jax.device_count() if num_devices is None else num_devices
    sizes = mesh_shape(config.mesh, num_devices)
    rows = _micro_batch_rows(config, num_devices, sizes)
    optimizer, T = config.optimizer, config.batch.max_target_length
    horizon = optimizer.horizon_tokens or optimizer.start_tokens + optimizer.train_tokens
    rate_law = _law(config, "optimizer.learning_rate", optimizer.learning_rate, horizon)
    batch_law = _law(config, "batch.global_batch_tokens", config.batch.global_batch_tokens, horizon)
    stages, total_steps = _stages(config, rows * T, batch_law)
    state_bytes = _state_bytes_per_device(config, sizes)
    return Plan(
        config=config,
        mesh_sizes=sizes,
        micro_batch_rows=rows,
        stages=stages,
        total_steps=min(total_steps, config.steps or total_steps),
        peak_learning_rate=rate_law.value if rate_law else float(optimizer.learning_rate),
        horizon_tokens=horizon,
        learning_rate_law=rate_law,
        batch_law=batch_law,
        num_parameters=num_parameters(config.model),
        flops_per_token=flops_per_token(config.model, T),
        bucket_flops_per_token=_bucket_flops_per_token(config),
        state_bytes_per_device=state_bytes.get("device", 0),
        host_state_bytes_per_device=state_bytes.get("pinned_host", 0),
    )


def _law(config: RunConfig, key: str, value: object, horizon_tokens: int) -> AppliedLaw | None:
    T = config.batch.max_target_length
    return applied_law(key, value, config.model, context_tokens=T, tokens=horizon_tokens)


def _bucket_flops_per_token(config: RunConfig) -> tuple[float, ...]:
    T = config.batch.max_target_length
    return tuple(
        flops_per_token(
            config.model,
            min(T, bucket.max_document_tokens or T),
            attention_cap=bucket.attention_cap,
        )
        for bucket in config.data.length_buckets or (LengthBucket(),)
    )


def _micro_batch_rows(config: RunConfig, num_devices: int, sizes: tuple[int, ...]) -> int:
    per_device = config.batch.per_device_batch_size
    rows = per_device * num_devices
    shards = num_shards(dict(zip(MESH_AXES, sizes, strict=True)), "batch")
    if rows != int(rows) or int(rows) % shards:
        raise ValueError(
            f"per_device_batch_size {per_device} on {num_devices} devices gives {rows:g} rows; "
            f"expected a multiple of {shards}, the devices along the mesh axes that split rows"
        )
    return int(rows)


def _stages(
    config: RunConfig, micro_batch_tokens: int, batch_law: AppliedLaw | None
) -> tuple[tuple[BatchStage, ...], int]:
    stages: list[BatchStage] = []
    T = config.batch.max_target_length
    begin = config.optimizer.start_tokens
    end = begin + config.optimizer.train_tokens
    phases = _phases(config, micro_batch_tokens, batch_law)
    step, tokens = 0, begin
    for i, phase in enumerate(phases):
        until = min(end, phases[i + 1].from_tokens if i + 1 < len(phases) else end)
        if tokens >= until:
            continue
        accumulation, rest = divmod(phase.batch_tokens, micro_batch_tokens)
        if rest:
            legal = [n * micro_batch_tokens for n in (accumulation, accumulation + 1) if n]
            raise ValueError(
                f"a batch of {phase.batch_tokens} tokens is not a multiple of a micro-batch's "
                f"{micro_batch_tokens} (per_device_batch_size x devices x max_target_length); "
                f"nearest: {legal}"
            )
        if phase.batch_tokens // T % config.data.num_streams:
            raise ValueError(
                f"a batch of {phase.batch_tokens // T} rows is not a multiple of data.num_streams "
                f"{config.data.num_streams}: each stream has as many of a batch's rows"
            )
        stages.append(
            BatchStage(
                first_step=step,
                first_tokens=tokens,
                accumulation_steps=accumulation,
                batch_tokens=phase.batch_tokens,
            )
        )
        num_steps = math.ceil((until - tokens) / phase.batch_tokens)
        step, tokens = step + num_steps, tokens + num_steps * phase.batch_tokens
    return tuple(stages), step


def _phases(
    config: RunConfig, micro_batch_tokens: int, batch_law: AppliedLaw | None
) -> tuple[BatchPhase, ...]:
    batch = config.batch.global_batch_tokens
    if isinstance(batch, tuple):
        return batch
    if batch_law is not None:
        batch = max(1, round(batch_law.value / micro_batch_tokens)) * micro_batch_tokens
    elif batch is None:
        batch = micro_batch_tokens * (config.batch.gradient_accumulation_steps or 1)
    assert isinstance(batch, int)
    return (BatchPhase(from_tokens=0, batch_tokens=batch),)


def _state_bytes_per_device(config: RunConfig, sizes: tuple[int, ...]) -> Counter[str]:
    """Master weights and optimizer state by memory; gradients and activations come on top."""
    mesh = abstract_mesh(sizes)
    leaves = jax.tree.leaves(abstract_state(config))
    shardings = jax.tree.leaves(state_shardings(config, mesh))
    found: Counter[str] = Counter()
    for leaf, sharding in zip(leaves, shardings, strict=True):
        found[sharding.memory_kind or "device"] += shard_bytes(leaf, sharding)
    return found


def _rows(plan: Plan) -> list[tuple[str, str]]:
    config, optimizer, batch = plan.config, plan.config.optimizer, plan.config.batch
    end_tokens = optimizer.start_tokens + optimizer.train_tokens
    total_flops = plan.flops_per_token * optimizer.train_tokens
    non_embedding = num_non_embedding_parameters(config.model)
    at_most = " (without length buckets)" if config.data.length_buckets else ""
    host = plan.host_state_bytes_per_device
    host = f"; {host:,} more in the host's memory" if host else ""
    mesh = ", ".join(f"{a} {n}" for a, n in zip(MESH_AXES, plan.mesh_sizes, strict=True))
    rows = [
        ("parameters", f"{plan.num_parameters:,} ({non_embedding:,} without embeddings)"),
        (
            "FLOPs per token",
            f"{plan.flops_per_token:.4g} (windows counted, T {batch.max_target_length})",
        ),
        ("FLOPs of the run", f"{total_flops:.4g}{at_most}"),
        ("devices", f"{math.prod(plan.mesh_sizes)} ({mesh})"),
        (
            "bytes per device",
            f"{plan.state_bytes_per_device:,} (weights and optimizer state{host})",
        ),
        ("steps", f"{plan.total_steps:,}"),
        (
            "tokens",
            f"{optimizer.train_tokens:,}, schedule {optimizer.start_tokens:,} to {end_tokens:,}",
        ),
    ]
    for stage in plan.stages:
        rows.append(
            (
                f"batch from step {stage.first_step:,}",
                f"{stage.batch_tokens:,} tokens = {stage.accumulation_steps} x "
                f"{plan.micro_batch_rows} rows x {batch.max_target_length}",
            )
        )
    for number, bucket in enumerate(config.data.length_buckets):
        flops = f"{plan.bucket_flops_per_token[number]:.4g} FLOP per token"
        rows.append((f"length bucket {number}", f"{length_bucket_text(bucket)}, {flops}"))
    rows += _law_rows(plan)
    steps = sorted({0, *_milestones(plan), plan.total_steps - 1})
    rates = ", ".join(
        f"{float(plan.learning_rate(step)):.3g} at step {step + 1:,}" for step in steps
    )
    return [*rows, ("learning rate", rates)]


def _law_rows(plan: Plan) -> list[tuple[str, str]]:
    """Of each set of laws in use what it says, where it is from, and whether it was fitted here."""
    found = [("learning rate", "", plan.learning_rate_law), ("batch", " tokens", plan.batch_law)]
    used = [(name, unit, law) for name, unit, law in found if law is not None]
    rows, told = [], None
    for name, unit, law in used:
        if law.laws != told:
            told = law.laws
            rows += [
                ("law: source", law.laws.describe()),
                (
                    "law: compute C",
                    f"{law.compute_flops:.4g} FLOP = {law.flops_per_token:.4g} per token "
                    f"({law.laws.flops_count} count) x {law.tokens:,} tokens",
                ),
                ("law: range", law.laws.describe_distance(law.compute_flops)),
            ]
        rows.append((f"law: {name}", law.describe(unit)))
    return rows


def _milestones(plan: Plan) -> set[int]:
    """Steps at the end of the warm-up, at a change of the batch and at the middle of the run."""
    last, warmup_tokens = plan.total_steps - 1, plan.config.optimizer.warmup_tokens
    steps = {plan.total_steps // 2} | {stage.first_step for stage in plan.stages}
    warm = [stage for stage in plan.stages if stage.first_tokens < warmup_tokens]
    if warm:
        left = warmup_tokens - warm[-1].first_tokens
        steps.add(warm[-1].first_step + math.ceil(left / warm[-1].batch_tokens) - 1)
    return {step for step in steps if step <= last}
