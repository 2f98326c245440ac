"""Self-bootstrapping: episodes with high returns become dialogs, which SFT learns from anew.

The report restarts SFT from the mid-training checkpoint with the new dialogs, not from the policy
that wrote them.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from cwm_jax.data.chat import Message, encode_message
from cwm_jax.data.dialogs import parse_dialog, to_json
from cwm_jax.rl.trajectory import Trajectory
from cwm_jax.storage import write_whole
from cwm_jax.tokenizer import END_HEADER, END_OF_TURN, START_HEADER, Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptReport:
    """What became of the episodes."""

    kept: int
    low_return: int
    enough_of_task: int
    no_dialog: int
    """What a dialog cannot say in the same tokens: a cut answer, a special token within a text."""
    there_already: int = 0
    """Of those that are kept, in the file that they were to be added to."""
    in_file: int
    """Dialogs that the file has now."""

    def __str__(self) -> str:
        there = f", {self.there_already:,} that are there already" if self.there_already else ""
        return (
            f"{self.kept:,} dialogs; left out: {self.low_return:,} for their returns, "
            f"{self.enough_of_task:,} since their tasks had enough, {self.no_dialog:,} that are no "
            f"dialog in the same tokens{there}; {self.in_file:,} in the file"
        )


def keep_dialogs(
    trajectories: Iterable[Trajectory],
    tokenizer: Tokenizer,
    path: Path,
    *,
    min_return: float,
    per_task: int,
    append: bool = False,
) -> KeptReport:
    """Writes a source of kind ``chat``: of each task the shortest answers of those that are good.

    Args:
        trajectories: of a run.
        tokenizer: of the policy.
        path: of the JSONL file; it is written whole or not at all.
        min_return: of an episode, the reward's own, unshaped.
        per_task: episodes at most.
        append: add what is new to a file that is there, which is else refused.

    Raises:
        ValueError: none is left, or the file is there.
    """
    if path.exists() and not append:
        raise ValueError(
            f"{path} is there already; expected a new file: name another, or add --append to add "
            "to it"
        )
    counts: collections.Counter[str] = collections.Counter()
    by_task: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for trajectory in trajectories:
        messages = None
        if trajectory.ending != "done" or trajectory.total_reward < min_return:
            counts["low_return"] += 1
        elif (messages := dialog_of(trajectory, tokenizer)) is None:
            counts["no_dialog"] += 1
        else:
            line = json.dumps({"messages": to_json(messages)}, ensure_ascii=False)
            key = (trajectory.environment, trajectory.task.name)
            by_task.setdefault(key, []).append((trajectory.num_action_tokens, line))
    lines = []
    for found in by_task.values():
        distinct = sorted(set(found))
        lines += [line for _, line in distinct[:per_task]]
        counts["enough_of_task"] += len(found) - len(distinct[:per_task])
    if not lines:
        raise ValueError(
            f"no episode is left ({dict(counts)}); expected some with a return of {min_return:g} "
            "or more: lower --min-return"
        )
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    new = [line for line in lines if line not in set(before)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(line + "\n" for line in [*before, *new]).encode())
    names = ("low_return", "enough_of_task", "no_dialog")
    return KeptReport(
        kept=len(new),
        there_already=len(lines) - len(new),
        in_file=len(before) + len(new),
        **{name: counts[name] for name in names},
    )


def dialog_of(trajectory: Trajectory, tokenizer: Tokenizer) -> list[Message] | None:
    """The messages whose encoding is the trajectory's tokens; None if there are none."""
    tokens = [t for turn in trajectory.turns for t in (*turn.observation, *turn.action)]
    special = tokenizer.special_tokens
    if not tokens or tokens[0] != tokenizer.bos_id:
        return None
    messages = []
    for part in _split(tokens[1:], special[START_HEADER]):
        if special[END_HEADER] not in part or part[-1] != special[END_OF_TURN]:
            return None
        at = part.index(special[END_HEADER])
        body = tokenizer.decode(part[at + 1 : -1])
        if not body.startswith("\n\n"):
            return None
        try:
            messages.append(Message(tokenizer.decode(part[:at]), body[2:]))
        except ValueError:
            return None
    encoded = [tokenizer.bos_id]
    for message in messages:
        encoded += encode_message(tokenizer, message)
    if encoded != tokens:
        return None
    try:
        return parse_dialog(to_json(messages))
    except ValueError:
        return None


def _split(tokens: Sequence[int], mark: int) -> list[list[int]]:
    """What stands after each mark; what stands before the first makes a part of its own."""
    parts: list[list[int]] = []
    for token in tokens:
        if token == mark:
            parts.append([])
        elif parts:
            parts[-1].append(token)
        else:
            return [[token]]
    return parts
