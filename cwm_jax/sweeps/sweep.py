"""A whole sweep: the search, the fit, and the runs that test it."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from cwm_jax.config import ModelConfig, SweepConfig
from cwm_jax.sweeps import design, findings, report
from cwm_jax.sweeps.design import RunSpec
from cwm_jax.sweeps.lockstep import FASTEST, Lockstep, Together
from cwm_jax.sweeps.records import RunRecord, SweepFolder
from cwm_jax.sweeps.rows import SweepRows
from cwm_jax.trace.corpus.engines import Engine
from cwm_jax.training.scaling.flops import num_non_embedding_parameters
from cwm_jax.training.scaling.laws import Laws, save_laws

LAWS_FILE = "laws.json"
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


def run_sweep(config: SweepConfig, count: int, options: SweepOptions) -> int:
    """Search, fit, and what the fit is tested on; 1 where the search gives no law.

    Writes ``laws.json``, ``report.md`` and plots into the sweep's folder. Args as of ``train_all``;
    ``count`` are the runs of each scale.
    """
    with SweepFolder(config) as folder:
        return _run_sweep(config, count, options, folder)


def _run_sweep(config: SweepConfig, count: int, options: SweepOptions, folder: SweepFolder) -> int:
    _rows(config)  # made once, before there are workers
    search = train_all(config, design.search_runs(config, count), folder, options)
    try:
        fit = findings.fit(config, search)
    except ValueError as error:
        print(f"cwm_jax sweep: no law: {error}", file=sys.stderr)
        return 1
    save_laws(folder.path / LAWS_FILE, fit.laws, fit.to_json())
    rate, batch = fit.laws.learning_rate, _batch_law(config, fit.laws)
    tests = design.confirmation_runs(config, rate, batch)
    tests += design.loss_runs(config, rate, batch)
    tests += design.repetition_runs(config, rate, batch)
    tested = train_all(config, tests, folder, options)
    print(report.write(config, folder, fit, [*search, *tested], _rows(config).train_tokens))
    return 0


def _batch_law(config: SweepConfig, laws: Laws) -> design.Law:
    """Where one batch was swept, it is taken for every compute."""
    return laws.batch_tokens or (lambda _: float(config.batch_tokens[0]))


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
    done = folder.finished(specs)
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
    done = folder.finished(specs)
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
