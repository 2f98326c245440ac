"""What a sweep has done: one line for each finished run, added and never changed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cwm_jax.config import SweepConfig, schema
from cwm_jax.storage import LineFile, write_json
from cwm_jax.sweeps.design import RunSpec
from cwm_jax.sweeps.lockstep import Finished

RUNS_FILE = "runs.jsonl"
CONFIG_FILE = "sweep.json"
_FIRST_STEPS = 20  # of which each loss is kept
_CURVE_POINTS = 50
_OF_THE_FIT = {"near_optimum"}
# What a record has of its run's `RunSpec`.
_SPEC_FIELDS = (
    "name",
    "kind",
    "learning_rate",
    "batch_tokens",
    "steps",
    "tokens",
    "seed",
    "unique_tokens",
    "factor",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run.

    Attributes:
        name, kind, learning_rate, batch_tokens, steps, tokens, seed, unique_tokens, factor: as of
            its `RunSpec`.
        compute_flops: of its scale.
        params: N, without embeddings.
        heldout_loss: nats per token; None where it is not finite.
        train_loss: mean over the last tenth of its steps, likewise.
        first_losses: of the first 20 steps.
        curve: (step, mean training loss up to it since the point before), 50 points at most.
        skipped_steps: whose loss or gradient was not finite.
        time_s: of its group, divided by the group's runs.
        device: where it ran.
    """

    name: str
    kind: str
    learning_rate: float
    batch_tokens: int
    steps: int
    tokens: int
    seed: int
    unique_tokens: int | None
    factor: float | None
    compute_flops: float
    params: int
    heldout_loss: float | None
    train_loss: float | None
    first_losses: tuple[float | None, ...]
    curve: tuple[tuple[int, float | None], ...]
    skipped_steps: int
    time_s: float
    device: str

    @classmethod
    def of(
        cls, spec: RunSpec, finished: Finished, *, params: int, time_s: float, device: str
    ) -> RunRecord:
        losses = finished.losses
        every = -(-len(losses) // _CURVE_POINTS)
        starts = range(0, len(losses), every)
        return cls(
            **{name: getattr(spec, name) for name in _SPEC_FIELDS},
            compute_flops=spec.scale.compute_flops,
            params=params,
            heldout_loss=_finite(finished.heldout_loss),
            train_loss=_finite(losses[-max(1, len(losses) // 10) :].mean()),
            first_losses=tuple(_finite(loss) for loss in losses[:_FIRST_STEPS]),
            curve=tuple(
                (min(s + every, len(losses)), _finite(losses[s : s + every].mean())) for s in starts
            ),
            skipped_steps=finished.skipped_steps,
            time_s=time_s,
            device=device,
        )

    def is_of(self, spec: RunSpec) -> bool:
        """Whether it is that very run."""
        return all(getattr(self, name) == getattr(spec, name) for name in _SPEC_FIELDS)

    def to_line(self) -> bytes:
        return json.dumps(schema.to_json(self)).encode() + b"\n"


class SweepFolder:
    """The folder of a sweep, open for one process; it goes on where it was stopped.

    What changes no run, ``near_optimum``, may change: the laws are fitted again.

    Raises:
        ValueError: it is the folder of another sweep, or another process writes it.
    """

    def __init__(self, config: SweepConfig):
        self.path = Path(config.base.base_output_directory) / config.base.run_name
        self.path.mkdir(parents=True, exist_ok=True)
        described = json.loads(json.dumps(schema.to_json(config)))
        file = self.path / CONFIG_FILE
        found = json.loads(file.read_text()) if file.exists() else described
        differing = sorted(k for k in described if found.get(k) != described[k])
        if set(differing) - _OF_THE_FIT:
            raise ValueError(
                f"{self.path} is of a sweep with other values of {', '.join(differing)}; expected "
                "the one that it began with: set another base.run_name, or remove the folder"
            )
        self._file = LineFile(
            self.path / RUNS_FILE, shown=self.path, otherwise="set another base.run_name"
        )
        write_json(file, described)

    def __enter__(self) -> SweepFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def finished(self, specs: Iterable[RunSpec]) -> dict[str, RunRecord]:
        """Those of these runs that are there, by name.

        A run of the same name with another rate, batch or length is none of them: the laws of a
        search that has grown ask for others.
        """
        records = [schema.from_json(RunRecord, json.loads(line)) for line in self._file.lines()]
        wanted = {spec.name: spec for spec in specs}
        return {r.name: r for r in records if r.name in wanted and r.is_of(wanted[r.name])}

    def add(self, lines: bytes) -> None:
        """Appends lines of records; they are on the disk when it returns."""
        self._file.add(lines)


def by_kind(records: Iterable[RunRecord], kind: str) -> list[RunRecord]:
    return [record for record in records if record.kind == kind]


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
