"""Runs that follow each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from cwm_jax.config.run import RunConfig
from cwm_jax.config.schema import check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Phases, each a run with its own folder; a config file may return one in place of a run.

    They are started in their order, each when the one before it is finished; a finished one is not
    trained again.
    """

    phases: tuple[RunConfig, ...]

    def __post_init__(self) -> None:
        check_types(self)
        names = [phase.run_name for phase in self.phases]
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"the phases of a recipe are named {names}; expected one or more, each with its "
                "own run_name"
            )

    def check_paths(self) -> None:
        """Raises ValueError where a phase reads what is not there and no phase before it writes.

        Phases that have begun are passed over: they go on from their own checkpoints.
        """
        written: list[Path] = []
        for number, phase in enumerate(self.phases):
            written += [
                Path(source.path)
                for source in phase.data.sources
                if source.generate is not None and source.path is not None
            ]
            folder = Path(phase.base_output_directory, phase.run_name)
            for key, path in _read_paths(phase) if not _has_begun(folder) else ():
                made = any(Path(path).is_relative_to(place) for place in written)
                if not made and not Path(path).exists():
                    raise ValueError(
                        f"phase {number} ({phase.run_name}): {key} is {path}; expected what is "
                        "there, or what an earlier phase writes, below its own folder: name that"
                    )
            written.append(folder)


def _has_begun(folder: Path) -> bool:
    return any(folder.glob("checkpoints/[0-9]*"))


def _read_paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """(key, path) of what a run reads."""
    predicted, rl = config.trace_evaluation, config.rl
    found = [
        ("checkpoint.load_parameters_path", config.checkpoint.load_parameters_path),
        ("checkpoint.load_full_state_path", config.checkpoint.load_full_state_path),
        ("tokenizer.path", config.tokenizer.path),
        *((f"data.sources.{n}.path", s.path) for n, s in enumerate(config.data.sources)),
        *(
            (f"rl.environments.{n}.path", e.path)
            for n, e in enumerate(rl.environments if rl else ())
        ),
        ("trace_evaluation.corpus", predicted.corpus if predicted else None),
        ("trace_evaluation.jsonl", predicted.jsonl if predicted else None),
    ]
    return ((key, path) for key, path in found if path is not None)
