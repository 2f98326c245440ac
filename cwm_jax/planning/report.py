"""A cluster plan as text and as JSON, and the table of a run's shardings."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import textwrap
from typing import Any

import jax

from cwm_jax.config import RunConfig
from cwm_jax.model.transformer import abstract_params, logical_axes
from cwm_jax.planning.cluster import Attempt, ClusterPlan, describe_work
from cwm_jax.planning.estimate import flops
from cwm_jax.planning.targets import Target
from cwm_jax.sharding import MESH_AXES, abstract_mesh, sharding_table
from cwm_jax.training.hardware import GIB
from cwm_jax.training.plan import make_plan
from cwm_jax.training.state import abstract_state, state_shardings

_PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax")
_GIGA, _TERA = 1e9, 1e12
_LINKS = (
    "times at full bandwidth, without latency: an axis uses each torus dimension that it extends "
    "in, both ways if the dimension is a ring; across GPU nodes the members of a group share their "
    "NICs"
)


def to_json(plan: ClusterPlan) -> dict[str, Any]:
    """All of a plan as numbers and texts; bytes are those of a device in a step."""
    attempt, target = plan.attempt, plan.target
    return {
        "run": plan.config.run_name,
        "target": target.name,
        "platform": target.platform,
        "accelerator": dataclasses.asdict(target.accelerator),
        "num_devices": target.num_devices,
        "topology": list(target.shape),
        "changes": attempt.candidate.changes,
        **_layout(attempt),
        "fits": plan.fits,
        "compiled": attempt.program is not None,
        "compile": _compile(attempt),
        "memory": _memory(attempt, target),
        "flops_per_token": dataclasses.asdict(plan.roofline.flops)
        | {"model": plan.roofline.flops.model, "hardware": plan.roofline.flops.hardware},
        "buckets_flops_per_token": _buckets(attempt),
        "traffic_bytes": plan.roofline.traffic_bytes,
        "collectives": [dataclasses.asdict(use) for use in plan.roofline.links],
        "seconds": {
            "products": plan.roofline.products_s,
            "attention": plan.roofline.attention_s,
            "memory": plan.roofline.memory_s,
            "collectives": plan.roofline.collective_s,
            "overlapped": plan.roofline.overlapped_s,
            "serial": plan.roofline.serial_s,
        },
        "tokens_per_s": list(plan.tokens_per_s),
        "mfu": list(plan.mfu),
        "phase": {
            "train_tokens": plan.config.optimizer.train_tokens,
            "steps": attempt.plan.total_steps,
            "days": list(plan.phase_days),
            "device_hours": list(plan.device_hours),
        },
        "tried": [_tried(other, target) for other in plan.tried],
        "remedy": _tried(plan.remedy, target) if plan.remedy else None,
        "smallest_num_devices": plan.smallest_num_devices,
        "versions": _versions(),
    }


def to_text(plan: ClusterPlan) -> str:
    """The same for people; the number of devices first."""
    blocks = [
        _head(plan),
        _memory_text(plan),
        _work_text(plan),
        _links_text(plan),
        _time_text(plan),
    ]
    if not plan.fits:
        blocks.append(_remedy_text(plan))
    return "\n\n".join([*blocks, _basis_text(plan)])


def shardings_text(config: RunConfig, num_devices: int | None) -> str:
    """Every parameter's layout on a mesh, and what the state takes on a device.

    Args:
        config: the run.
        num_devices: of the mesh; None: those present.

    Raises:
        ValueError: the mesh does not fit the devices, or a parameter does not divide.
    """
    plan = make_plan(config, num_devices=num_devices)
    mesh = abstract_mesh(plan.mesh_sizes)
    table = sharding_table(mesh, logical_axes(config.model), abstract_params(config.model))
    sizes = ", ".join(f"{a} {n}" for a, n in zip(MESH_AXES, plan.mesh_sizes, strict=True))
    state = abstract_state(config)
    shardings = state_shardings(config, mesh)
    params, moments = (
        _bytes_on_a_device(getattr(state, name), getattr(shardings, name))
        for name in ("params", "opt_state")
    )
    return (
        f"mesh: {sizes}\n{table}\n"
        f"on a device: parameters {params / GIB:.2f} GiB, optimizer state {moments / GIB:.2f} GiB "
        "(moments lie as their parameters)"
    )


def _bytes_on_a_device(arrays: Any, shardings: Any) -> int:
    placed = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(s.shard_shape(x.shape), x.dtype), arrays, shardings
    )
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(placed))


# ---------------------------------------------------------------- parts of the JSON


def _layout(attempt: Attempt) -> dict[str, Any]:
    work, execution = attempt.work, attempt.work.config.execution
    return {
        "mesh": dict(zip(MESH_AXES, work.sizes, strict=True)),
        "rows": work.rows,
        "row_tokens": work.row_tokens,
        "accumulation_steps": work.accumulation,
        "step_tokens": work.step_tokens,
        "remat_policy": execution.remat_policy,
        "attention": execution.attention,
        "context_layout": execution.context_layout,
        "loss_chunk_tokens": execution.loss_chunk_tokens,
    }


def _compile(attempt: Attempt) -> dict[str, Any] | None:
    program = attempt.program
    return program and {
        "lower_s": program.lower_s,
        "compile_s": program.compile_s,
        "custom_calls": list(program.custom_calls),
    }


def _memory(attempt: Attempt, target: Target) -> dict[str, Any]:
    program, needed = attempt.program, attempt.needed_bytes
    return {
        "device": target.accelerator.memory_bytes,
        "usable": target.usable_bytes,
        "needed": needed,
        "excess": None if needed is None else max(0, needed - target.usable_bytes),
        "peak": None if program is None else program.peak_bytes,
        "parts": None if program is None else dataclasses.asdict(program.memory),
        "refusal": str(attempt.refusal).strip() if attempt.refusal else None,
        "estimate": attempt.candidate.memory,
    }


def _tried(attempt: Attempt, target: Target) -> dict[str, Any]:
    return {
        "changes": attempt.candidate.changes,
        **_layout(attempt),
        "fits": attempt.fits,
        "memory": _memory(attempt, target),
        "compile": _compile(attempt),
        "estimated_seconds": {
            "overlapped": attempt.candidate.roofline.overlapped_s,
            "serial": attempt.candidate.roofline.serial_s,
        },
    }


def _buckets(attempt: Attempt) -> dict[str, float]:
    """Model FLOPs per token under each attention cap of the run."""
    caps = (bucket.attention_cap for bucket in attempt.work.config.data.length_buckets)
    return {str(cap): flops(attempt.work, cap).model for cap in sorted({c for c in caps if c})}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# ---------------------------------------------------------------- parts of the text


def _head(plan: ClusterPlan) -> str:
    work, target = plan.attempt.work, plan.target
    execution = work.config.execution
    rows = [
        ("devices", f"{target.describe()} ({target.name})"),
        ("run", f"{plan.config.run_name}: {work.row_tokens:,} tokens in a row"),
        ("mesh", ", ".join(f"{a} {n}" for a, n in zip(MESH_AXES, work.sizes, strict=True))),
        (
            "step",
            f"{work.step_tokens:,} tokens = {work.accumulation} x {work.rows} rows x "
            f"{work.row_tokens:,}",
        ),
        (
            "program",
            f"remat {execution.remat_policy}, attention {execution.attention}, rows "
            f"{execution.context_layout}",
        ),
    ]
    changes = _set_text(plan.attempt)
    if changes:
        rows.append(("chosen for it", changes))
    if plan.attempt.program:
        program = plan.attempt.program
        rows.append(("compiled in", f"{program.lower_s + program.compile_s:.0f} s"))
    return _table(rows)


def _set_text(attempt: Attempt) -> str:
    changes = attempt.candidate.changes
    return "--set " + " ".join(f"{k}={v}" for k, v in changes.items()) if changes else ""


def _memory_text(plan: ClusterPlan) -> str:
    attempt, target = plan.attempt, plan.target
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines = [f"memory of a device, GiB: {verdict}"]
    if attempt.program is not None:
        m = attempt.program.memory
        rows = [
            ("parameters", m.params),
            ("optimizer state", m.optimizer),
            ("batch, counters, code", m.batch + m.counters + m.code),
            ("gradients, float32", m.gradients),
            ("activations, temporaries", m.activations),
            ("sum", m.total),
            ("in use at one time", attempt.program.peak_bytes),
        ]
    else:
        lines.append(f"  XLA refuses the program: {_first_sentences(str(attempt.refusal))}")
        rows = [(f"{name} (estimate)", part) for name, part in attempt.candidate.memory.items()]
        needed = attempt.needed_bytes
        rows += [("sum, as XLA says", needed)] if needed else []
    device = target.accelerator.memory_bytes
    rows += [("of the device", device), ("of it usable", target.usable_bytes)]
    if not plan.fits and attempt.needed_bytes is not None:
        rows.append(("too much", attempt.needed_bytes - target.usable_bytes))
    width = max(len(name) for name, _ in rows)
    return "\n".join([*lines, *(f"  {name:<{width}} {size / GIB:9.2f}" for name, size in rows)])


def _first_sentences(text: str) -> str:
    """A refusal's numbers without the list of buffers that follows them."""
    return " ".join(text.split("\n\n")[0].split())[:300]


def _work_text(plan: ClusterPlan) -> str:
    count, moved = plan.roofline.flops, plan.roofline.traffic_bytes
    buckets = _buckets(plan.attempt).items()
    rows = [
        (
            "model FLOPs",
            f"{count.model / _GIGA:.1f} GFLOP a token (products {count.products / _GIGA:.1f}, "
            f"attention {count.attention / _GIGA:.1f}), rows of one document",
        ),
        *(
            ("", f"{value / _GIGA:.1f} where global attention is capped at {int(cap):,}")
            for cap, value in buckets
        ),
        (
            "recomputed",
            f"{(count.recomputed_products + count.recomputed_attention) / _GIGA:.1f} GFLOP a token",
        ),
        (
            "memory traffic",
            f"{sum(moved.values()) / _GIGA:,.0f} GB a step, at least ("
            + ", ".join(f"{name} {size / _GIGA:,.0f}" for name, size in moved.items())
            + ")",
        ),
    ]
    return "work\n" + _table(rows, indent="  ")


def _links_text(plan: ClusterPlan) -> str:
    source = "compiled" if plan.attempt.program else "estimated"
    lines = [f"collectives of a device in a step, {source}"]
    for use in plan.roofline.links:
        name = f"{'+'.join(use.axes) or 'itself'} {use.kind}"
        lines.append(
            f"  {name:<32} {use.sent_bytes / _GIGA:9,.1f} GB in {use.executions:>6,} "
            f"{use.seconds:8.2f} s"
        )
    if not plan.roofline.links:
        lines.append("  none")
    return "\n".join(lines)


def _time_text(plan: ClusterPlan) -> str:
    r = plan.roofline
    steps, tokens = plan.attempt.plan.total_steps, plan.config.optimizer.train_tokens
    rows = [
        (
            "terms",
            f"products {r.products_s:.2f}, attention {r.attention_s:.2f}, memory {r.memory_s:.2f}, "
            f"collectives {r.collective_s:.2f} s",
        ),
        ("step", f"{_range(plan.step_s, '.2f')} s"),
        ("tokens/s", _range(plan.tokens_per_s, ",.0f")),
        ("MFU", f"{_range(tuple(100 * x for x in plan.mfu), '.1f')} %, recomputation not counted"),
        ("phase", f"{tokens:,} tokens, {steps:,} steps: {_range(plan.phase_days, ',.1f')} days"),
        ("device-hours", _range(plan.device_hours, ",.0f")),
    ]
    return "time, everything overlapped to nothing overlapped\n" + _table(rows, indent="  ")


def _remedy_text(plan: ClusterPlan) -> str:
    if plan.remedy is not None:
        found = plan.remedy
        times = found.candidate.roofline
        return (
            f"cheapest change that fits, compiled: {_set_text(found)}\n"
            f"  {describe_work(found.work)}: {(found.needed_bytes or 0) / GIB:.2f} GiB, a step "
            f"{times.overlapped_s:.2f} to {times.serial_s:.2f} s by the estimate"
        )
    if plan.smallest_num_devices is not None:
        return (
            "no mesh, number of rows or remat policy fits; by the estimate "
            f"{plan.smallest_num_devices} {plan.target.accelerator.name} would be enough"
        )
    return "nothing that was tried fits, on any number of these devices"


def _basis_text(plan: ClusterPlan) -> str:
    device, work = plan.target.accelerator, plan.attempt.work
    if plan.attempt.program:
        compiled = "compiled for the target, nothing run: memory (XLA's), collectives; "
    else:
        compiled = "nothing compiled fits: memory and collectives are estimates; "
    caps = {bucket.attention_cap for bucket in work.config.data.length_buckets}
    capped = (
        f"; {len(caps)} programs in the run, one for each attention cap: planned is the uncapped"
        if len(caps) > 1
        else ""
    )
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    paragraphs = (
        f"basis: {compiled}all else analytic{capped}",
        f"peaks {device.peak_flops / _TERA:.0f} TFLOP/s, memory "
        f"{device.memory_bytes_per_s / _TERA:.2f} TB/s, link {device.link_bytes_per_s / _GIGA:.0f} "
        f"GB/s one way, network {device.network_bytes_per_s / _GIGA:.2f} GB/s (secondary); "
        f"attained: products {device.product_fraction:.2f} of the peak, attention "
        f"{device.attention_fraction:.2f} ({device.status})",
        _LINKS,
        versions,
    )
    return "\n".join(
        textwrap.fill(text, 100, initial_indent="  " if i else "", subsequent_indent="  ")
        for i, text in enumerate(paragraphs)
    )


def _range(values: tuple[float, ...], form: str) -> str:
    low, high = (format(value, form) for value in values)
    return low if low == high else f"{low} to {high}"


def _table(rows: list[tuple[str, str]], indent: str = "") -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{indent}{name:<{width}}  {value}".rstrip() for name, value in rows)
