"""Trajectory files as one file of dialogs, which a source of kind ``chat`` reads.

Beside it lies ``NAME.manifest.json``, which says what was kept and has the file's SHA-256.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwm_jax.data.trajectories import ENVIRONMENT, Trajectory, read_trajectories
from cwm_jax.forager.trajectories.deduplication import TrajectoryIndex
from cwm_jax.storage import file_sha256, write_json

_COUNTED = ("kind", "policy", "outcome", "solved")


def manifest_path(out: Path) -> Path:
    """Where the counts of an exported file lie."""
    return out.with_name(f"{out.name}.manifest.json")


def export(inputs: Sequence[Path], out: Path) -> dict[str, Any]:
    """Writes the trajectories that are no near-duplicates, in their order, as dialogs.

    Failures are kept as what was solved is: both show what an environment answers. What is left out
    are those whose environment failed, and those without a turn.

    Returns:
        The manifest: ``read``, ``kept``, ``duplicates``, and ``unusable``, which is the other
        two; of what is kept the number ``by`` each kind, policy, outcome and ``solved``, and the
        file's ``sha256``.

    Raises:
        ValueError: a line is no trajectory, or ``out`` is one of the inputs.
    """
    if out.resolve() in {path.resolve() for path in inputs}:
        raise ValueError(f"{out} is read and written; expected a new file: choose another --out")
    index, read, kept, unusable = TrajectoryIndex(), 0, 0, 0
    counts = {name: collections.Counter[str]() for name in _COUNTED}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        for path in inputs:
            for trajectory in read_trajectories(path):
                read += 1
                if trajectory.outcome == ENVIRONMENT or not trajectory.messages:
                    unusable += 1
                    continue
                if not index.add(trajectory):
                    continue
                kept += 1
                for name, counter in counts.items():
                    counter[str(getattr(trajectory, name)).lower()] += 1
                file.write(_line(trajectory))
        file.flush()
        os.fsync(file.fileno())
    digest = file_sha256(partial)
    os.replace(partial, out)
    by = {name: dict(counter) for name, counter in counts.items()}
    manifest = {
        "read": read,
        "kept": kept,
        "duplicates": read - kept - unusable,
        "unusable": unusable,
        "by": by,
        "sha256": digest,
    }
    write_json(manifest_path(out), manifest)
    return manifest


def _line(trajectory: Trajectory) -> str:
    values = trajectory.to_json()
    record = {"id": values["name"], "messages": values["messages"]}
    return json.dumps(record, ensure_ascii=False) + "\n"
