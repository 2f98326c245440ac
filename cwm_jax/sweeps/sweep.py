"""A whole sweep: the search, the fit, and the runs that test it."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from cwm_jax.config import ModelConfig, SweepConfig
from cwm_jax.sweeps import design
from cwm_jax.sweeps.design import RunSpec
from cwm_jax.sweeps.lockstep import FASTEST, Lockstep, Together
from cwm_jax.sweeps.records import RunRecord, SweepFolder
from cwm_jax.sweeps.rows import SweepRows
from cwm_jax.trace.corpus.engines import Engine
from cwm_jax.training.scaling import num_non_embedding_parameters

_GROUP_RUNS = 16  # assumed: runs side by side on an accelerator
_Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How a sweep is run, which changes no loss beyond rounding.

    Attributes:
        together: how the runs of a group share a device; None is the backend's fastest.
        group_runs: runs of a group; None is one where they go one by one, else 16.
        engine: processes, of this machine or a cluster; None is this process.
    """

    together: Together | None = None
    group_runs: int | None = None
    engine: Engine | None = None


def train_all(
    config: SweepConfig,
    specs: Sequence[RunSpec],
    folder: SweepFolder,
    options: SweepOptions,
    *,
    note: _Note = print,
) -> list[RunRecord]:
    """The records of these runs; those that are not there yet are trained.

    Raises:
        RuntimeError: a worker failed.
    """
    done = folder.finished()
    missing = [spec for spec in specs if spec.name not in done]
    if missing:
        flops = sum(spec.scale.compute_flops for spec in missing)
        note(f"{len(missing)} of {len(specs)} runs to train, {flops:.3g} FLOP")
    together = options.together or FASTEST[jax.default_backend()]
    size = options.group_runs or (1 if together == "one_by_one" else _GROUP_RUNS)
    work = functools.partial(train_group, config, together)
    count, began = 0, time.monotonic()
    for lines in _answers(work, list(design.groups(missing, size)), options.engine):
        folder.add(lines)
        count += lines.count(b"\n")
        note(f"{count}/{len(missing)} runs, {time.monotonic() - began:.0f} s")
    done = folder.finished()
    return [done[spec.name] for spec in specs]


def train_group(
    config: SweepConfig, together: Together, groups: Sequence[Sequence[RunSpec]]
) -> bytes:
    """Trains the runs of each group side by side; lines of their records."""
    lines = []
    for specs in groups:
        began = time.monotonic()
        runs = [design.run_config(config, spec) for spec in specs]
        rows, first = _rows(config), specs[0]
        tokens = max(spec.tokens for spec in specs)
        if first.unique_tokens is None:
            batches = rows.micro_batches(first.seed, train_tokens=tokens)
        else:
            batches = rows.repeated(
                first.seed, train_tokens=tokens, unique_tokens=first.unique_tokens
            )
        heldout = rows.heldout(train_tokens=tokens)
        finished = _lockstep(config, first.scale.model, together).train(runs, batches, heldout)
        device = jax.devices()[0]
        lines += [
            RunRecord.of(
                spec,
                result,
                params=num_non_embedding_parameters(spec.scale.model),
                time_s=(time.monotonic() - began) / len(specs),
                device=device.device_kind,
            ).to_line()
            for spec, result in zip(specs, finished, strict=True)
        ]
    return b"".join(lines)


def _answers(
    work: Callable[[Sequence[Sequence[RunSpec]]], bytes],
    groups: Sequence[Sequence[RunSpec]],
    engine: Engine | None,
) -> Iterator[bytes]:
    if engine is None:
        yield from (work([group]) for group in groups)
    else:
        yield from engine.map_chunks(work, [[group] for group in groups], _died)


def _died(group: Sequence[RunSpec]) -> bytes:
    raise RuntimeError(
        f"the process of {', '.join(spec.name for spec in group)} died twice; expected it to have "
        "memory enough: look at its message above, give fewer --workers or a smaller --group"
    )


@functools.cache
def _rows(config: SweepConfig) -> SweepRows:
    """Of this process."""
    return SweepRows(config.base)


@functools.lru_cache(maxsize=1)  # runs come scale by scale
def _lockstep(config: SweepConfig, model: ModelConfig, together: Together) -> Lockstep:
    return Lockstep(dataclasses.replace(config.base, model=model), together)
