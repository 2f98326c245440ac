"""Trajectories: what an agent did in a repository and what came of it, one JSON object a line.

They are what ``forage run`` writes. For training they are dialogs: `dialogs` reads ``messages`` and
ignores the other keys, which are about the episode and not part of what is said.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.data.chat import Message
from cwm_jax.data.dialogs import parse_dialog, to_json

ENVIRONMENT = "environment"  # the outcome where a sandbox or the host failed: nobody's fault


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One episode.

    Attributes:
        name: unique in its file.
        task: of the task; several trajectories may be of one.
        kind: of the task, ``mutate-fix``, ``issue-fix`` or another word.
        repository: what near-duplicates are looked for within.
        policy: who acted, as ``fixer`` or a model's name.
        outcome: how it ended: ``finished`` where the agent said so, `ENVIRONMENT` where what it
            works in failed, else the limit that ended it.
        solved: whether the hidden tests pass with what it left; None where nothing judged.
        reason: why not; empty where they pass.
        messages: system, user, then assistant and ``tool: NAME`` in turn, ending with the
            assistant; none where it had no turn.
    """

    name: str
    task: str
    kind: str
    repository: str
    policy: str
    outcome: str
    solved: bool | None
    reason: str
    messages: Sequence[Message]

    def to_json(self) -> dict[str, Any]:
        """As `trajectory_from_json` reads it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "messages": to_json(self.messages)}


def trajectory_from_json(values: Mapping[str, Any]) -> Trajectory:
    """The inverse of `Trajectory.to_json`.

    Raises:
        ValueError: a key is missing or unknown, a type is another, or the messages are no dialog.
    """
    names = {field.name for field in dataclasses.fields(Trajectory)}
    if not isinstance(values, Mapping) or set(values) != names:
        found = sorted(values) if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(
            f"a trajectory has {found}; expected the keys {sorted(names)}: give a file that "
            "`forage run` has written"
        )
    for name in sorted(names - {"messages", "solved"}):
        if not isinstance(values[name], str):
            raise ValueError(f"{name} is {values[name]!r}; expected a text")
    if not isinstance(values["solved"], bool | None):
        raise ValueError(f"solved is {values['solved']!r}; expected true, false or null")
    messages = parse_dialog(values["messages"]) if values["messages"] != [] else []
    return Trajectory(**{**values, "messages": messages})


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """Those of a file, in its order.

    Raises:
        ValueError: with path and line, as of `trajectory_from_json`.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield trajectory_from_json(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: {error}") from error
